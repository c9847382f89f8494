"""Make a small DeepSeek-V3 checkpoint that SGLang and transformers load: random, repeatable.

    python scripts/make_checkpoint.py /tmp/tiny
    python scripts/make_checkpoint.py /tmp/v3 --experts 256 --groups 8 --kept-groups 4 --topk 8

The same arguments always give the same bytes. The weights are random, so the text that the
model writes means nothing; its routing is as real as that of a trained model.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Q_LORA, KV_LORA, ROPE, NOPE, V_HEAD, HEADS = 64, 64, 32, 32, 32, 4
MIN_VOCAB, MAX_VOCAB = 300, 4096
CORPUS = (
    "The router sends every token to the experts that score best.",
    "A correction bias takes part in the choice, never in the weights.",
    "Experts are arranged in groups; only the best groups are searched.",
    "0123456789 + - * / = ( ) [ ] { } , . ; : ! ?",
)


def main() -> None:
    args = _arguments()
    tokenizer, first_word = _tokenizer(args.vocab)
    config = _config(args)
    tensors = _tensors(args)
    # Bytes and special tokens are for reading only; an end token would cut answers short.
    tensors["lm_head.weight"][:first_word] = 0
    args.path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(args.path / "tokenizer.json"))
    _write_json(args.path / "config.json", config)
    _write_json(
        args.path / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "bos_token": "<bos>"},
    )
    _write_json(args.path / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1})
    save_file(tensors, args.path / "model.safetensors", metadata={"format": "pt"})
    size = (args.path / "model.safetensors").stat().st_size / 2**20
    print(f"{args.path}: {args.layers} layers, {args.experts} experts, {size:.1f} MiB")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="directory to write, made if absent")
    add = parser.add_argument
    add("--experts", type=int, default=16, help="routed experts per layer (default 16)")
    add("--groups", type=int, default=4, help="expert groups, 1 for none (default 4)")
    add("--kept-groups", type=int, default=2, help="groups kept per token (default 2)")
    add("--topk", type=int, default=4, help="routed experts per token (default 4)")
    add("--shared", type=int, default=1, help="shared experts (default 1)")
    add("--layers", type=int, default=3, help="layers, the first of them dense (default 3)")
    add("--hidden", type=int, default=128, help="hidden size (default 128)")
    add("--expert-hidden", type=int, default=64, help="hidden size of an expert (default 64)")
    add("--vocab", type=int, default=512, help="vocabulary size (default 512)")
    add("--scale", type=float, default=2.5, help="routed scaling factor (default 2.5)")
    add("--dtype", choices=DTYPES, default="bfloat16", help="of the weights")
    add("--bias-dtype", choices=DTYPES, default="float32", help="of the correction bias")
    add("--bias-offset", type=float, default=0.0, help="added to every bias (default 0)")
    add("--bias-spread", type=float, default=0.1, help="standard deviation (default 0.1)")
    add("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.experts % args.groups:
        parser.error(f"--groups {args.groups} must divide --experts {args.experts}")
    if args.topk > args.kept_groups * args.experts // args.groups:
        parser.error(f"--topk {args.topk} is more than the kept groups hold")
    if not MIN_VOCAB < args.vocab <= MAX_VOCAB:
        parser.error(f"--vocab {args.vocab} must be {MIN_VOCAB + 1}..{MAX_VOCAB}")
    return args


def _config(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "torch_dtype": args.dtype,
        "vocab_size": args.vocab,
        "hidden_size": args.hidden,
        "intermediate_size": 2 * args.hidden,
        "moe_intermediate_size": args.expert_hidden,
        "num_hidden_layers": args.layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "n_routed_experts": args.experts,
        "n_shared_experts": args.shared,
        "num_experts_per_tok": args.topk,
        "n_group": args.groups,
        "topk_group": args.kept_groups,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": args.scale,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "q_lora_rank": Q_LORA,
        "kv_lora_rank": KV_LORA,
        "qk_rope_head_dim": ROPE,
        "qk_nope_head_dim": NOPE,
        "v_head_dim": V_HEAD,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        # SGLang's torch_native path needs a yarn entry; this one changes next to nothing.
        "rope_scaling": {
            "type": "yarn",
            "factor": 1.0001,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
        "tie_word_embeddings": False,
        "num_nextn_predict_layers": 0,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def _tensors(args: argparse.Namespace) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(args.seed)
    dtype, H = DTYPES[args.dtype], args.hidden
    tensors: dict[str, Tensor] = {}

    def normal(name: str, *shape: int, std: float | None = None) -> None:
        scale = 1 / math.sqrt(shape[-1]) if std is None else std
        tensors[name] = (torch.randn(shape, generator=generator) * scale).to(dtype)

    def ones(name: str, size: int) -> None:
        tensors[name] = torch.ones(size, dtype=dtype)

    def mlp(prefix: str, width: int) -> None:
        normal(f"{prefix}.gate_proj.weight", width, H)
        normal(f"{prefix}.up_proj.weight", width, H)
        normal(f"{prefix}.down_proj.weight", H, width)

    normal("model.embed_tokens.weight", args.vocab, H, std=1.0)
    for layer in range(args.layers):
        p = f"model.layers.{layer}"
        ones(f"{p}.input_layernorm.weight", H)
        ones(f"{p}.post_attention_layernorm.weight", H)
        normal(f"{p}.self_attn.q_a_proj.weight", Q_LORA, H)
        ones(f"{p}.self_attn.q_a_layernorm.weight", Q_LORA)
        normal(f"{p}.self_attn.q_b_proj.weight", HEADS * (NOPE + ROPE), Q_LORA)
        normal(f"{p}.self_attn.kv_a_proj_with_mqa.weight", KV_LORA + ROPE, H)
        ones(f"{p}.self_attn.kv_a_layernorm.weight", KV_LORA)
        normal(f"{p}.self_attn.kv_b_proj.weight", HEADS * (NOPE + V_HEAD), KV_LORA)
        normal(f"{p}.self_attn.o_proj.weight", H, HEADS * V_HEAD)
        if layer == 0:
            mlp(f"{p}.mlp", 2 * H)
            continue
        normal(f"{p}.mlp.gate.weight", args.experts, H)
        bias = torch.randn(args.experts, generator=generator) * args.bias_spread + args.bias_offset
        tensors[f"{p}.mlp.gate.e_score_correction_bias"] = bias.to(DTYPES[args.bias_dtype])
        for expert in range(args.experts):
            mlp(f"{p}.mlp.experts.{expert}", args.expert_hidden)
        if args.shared:
            mlp(f"{p}.mlp.shared_experts", args.shared * args.expert_hidden)
    ones("model.norm.weight", H)
    normal("lm_head.weight", args.vocab, H)
    return tensors


def _tokenizer(vocab: int) -> tuple[Tokenizer, int]:
    """A byte-level BPE tokenizer that encodes any text, and the number of its first word.

    From that id on, the vocabulary holds made-up words: what the model may write.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MIN_VOCAB,
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    first_word = tokenizer.get_vocab_size()
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    words = [f" {first}{second}" for first in syllables for second in syllables]
    step = len(words) // 7 | 1  # neighbours sound different
    chosen = [words[number * step % len(words)] for number in range(vocab - first_word)]
    tokenizer.add_tokens(chosen)
    return tokenizer, first_word


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
