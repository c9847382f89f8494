"""Checkpoints made for tests: a small healthy one per family, and a huge hollow one.

Tensors are written by the safetensors library, so that our reader meets another's writer.
Only what routes is made; experts and attention are left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_TORCH = {"BF16": torch.bfloat16, "F32": torch.float32, "F8_E4M3": torch.float8_e4m3fn}
HIDDEN = 64
EXPERTS = 32
BIAS = "mlp.gate.e_score_correction_bias"


@dataclass(frozen=True)
class Plan:
    """config: of the language model. layers: prefixes of those that have a router."""

    config: dict[str, Any]
    layers: tuple[str, ...]
    gate: str = "mlp.gate.weight"
    bias: str | None = BIAS
    norm: str = "post_attention_layernorm.weight"
    bias_shape: tuple[int, ...] = (EXPERTS,)
    wrapper: str | None = None


def _layers(*numbers: int, prefix: str = "model.layers.") -> tuple[str, ...]:
    return tuple(f"{prefix}{number}." for number in numbers)


_COMMON = {"num_hidden_layers": 4, "first_k_dense_replace": 1, "hidden_size": HIDDEN}
_DEEPSEEK = _COMMON | {
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "topk_method": "noaux_tc",
}
_GROUPED = {"n_group": 4, "topk_group": 2, "num_nextn_predict_layers": 1}
_SPARSE = {"mlp_layer_types": ["dense", "dense", "sparse", "sparse"]}
_LING = {
    "num_experts": EXPERTS,
    "num_experts_per_tok": 4,
    "moe_router_enable_expert_bias": True,
}

PLANS = {
    "deepseek_v3": Plan(_DEEPSEEK | _GROUPED, _layers(1, 2, 3, 4)),
    "deepseek_v2": Plan(_DEEPSEEK | {"topk_method": "greedy"}, _layers(1, 2, 3), bias=None),
    "kimi_k2": Plan(_DEEPSEEK, _layers(1, 2, 3)),
    "kimi_k25": Plan(
        _DEEPSEEK | {"model_type": "kimi_k2"},
        _layers(1, 2, 3, prefix="language_model.model.layers."),
        wrapper="text_config",
    ),
    "glm4_moe": Plan(_DEEPSEEK, _layers(1, 2, 3)),
    "glm4_moe_lite": Plan(_DEEPSEEK | _SPARSE, _layers(2, 3)),
    "glm_moe_dsa": Plan(_DEEPSEEK | _SPARSE, _layers(2, 3)),
    "minimax_m2": Plan(
        {
            "num_hidden_layers": 2,
            "hidden_size": HIDDEN,
            "num_local_experts": EXPERTS,
            "num_experts_per_tok": 4,
            "scoring_func": "sigmoid",
            "use_routing_bias": True,
        },
        _layers(0, 1),
        gate="block_sparse_moe.gate.weight",
        bias="block_sparse_moe.e_score_correction_bias",
    ),
    "nemotron_h": Plan(
        _DEEPSEEK
        | {
            "num_hidden_layers": 5,
            "hybrid_override_pattern": "ME*ME",
            "mtp_hybrid_override_pattern": "*E",
            "num_nextn_predict_layers": 1,
        },
        ("backbone.layers.1.", "backbone.layers.4.", "mtp.layers.1."),
        gate="mixer.gate.weight",
        bias="mixer.gate.e_score_correction_bias",
        norm="norm.weight",
    ),
    "bailing_moe": Plan(
        _COMMON | _LING | _GROUPED, _layers(1, 2, 3, 4), bias="mlp.gate.expert_bias"
    ),
    "bailing_hybrid": Plan(_COMMON | _LING, _layers(1, 2, 3), bias="mlp.gate.expert_bias"),
    "hy_v3": Plan(
        _COMMON | {"num_experts": EXPERTS, "num_experts_per_tok": 4},
        _layers(1, 2, 3),
        gate="mlp.router.gate.weight",
        bias="mlp.expert_bias",
    ),
    "hy_v4": Plan(
        _DEEPSEEK | {"num_nextn_predict_layers": 1},
        (*_layers(1, 2, 3), "model.mtp_layers.0."),
    ),
    "hunyuan_v1_moe": Plan(
        {"num_hidden_layers": 2, "hidden_size": HIDDEN, "num_experts": EXPERTS, "moe_topk": [4, 4]},
        _layers(0, 1),
        gate="mlp.gate.wg.weight",
        bias=None,
    ),
    "ernie4_5_moe": Plan(
        {
            "num_hidden_layers": 4,
            "hidden_size": HIDDEN,
            "moe_num_experts": EXPERTS,
            "moe_k": 4,
            "moe_layer_start_index": 1,
        },
        _layers(1, 2, 3),
        bias="mlp.moe_statics.e_score_correction_bias",
        bias_shape=(1, EXPERTS),
    ),
}


def make_tensors(model_type: str, seed: int = 0) -> dict[str, Tensor]:
    """Gates in bfloat16, biases in float32 within ±0.1, norms of ones, as a trained model."""
    plan = PLANS[model_type]
    random = torch.Generator().manual_seed(seed)
    tensors = {"model.embed_tokens.weight": torch.zeros(8, HIDDEN)}
    for layer in plan.layers:
        gate = torch.randn(EXPERTS, HIDDEN, generator=random) / HIDDEN**0.5
        tensors[layer + plan.gate] = gate.bfloat16()
        tensors[layer + plan.norm] = torch.ones(HIDDEN)
        tensors[layer + "mlp.experts.0.down_proj.weight"] = torch.zeros(4, 4)
        if plan.bias:
            bias = torch.rand(plan.bias_shape, generator=random) * 0.2 - 0.1
            tensors[layer + plan.bias] = bias
    return tensors


def make_config(model_type: str, **changes: Any) -> dict[str, Any]:
    """A key changed to None is left out."""
    plan = PLANS[model_type]
    config = {"model_type": model_type} | plan.config | changes
    config = {key: value for key, value in config.items() if value is not None}
    return {"model_type": model_type, plan.wrapper: config} if plan.wrapper else config


def write(
    folder: Path, config: dict[str, Any] | None, tensors: dict[str, Tensor], shards: int = 1
) -> Path:
    """A checkpoint directory; with more than one shard, an index too."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    names = list(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in names[i::shards]}, folder / file)
        weight_map |= dict.fromkeys(names[i::shards], file)
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def make_healthy(folder: Path, model_type: str = "deepseek_v3", shards: int = 1) -> Path:
    return write(folder, make_config(model_type), make_tensors(model_type), shards)


def make_hollow_giant(folder: Path, layers: int = 61, shards: int = 300) -> Path:
    """DeepSeek-V3 in full size: real headers, an index of every expert, and files of holes.

    Of the data only the biases and a row of each gate are written; the rest reads as zeros
    and takes no disk.
    """
    folder.mkdir(parents=True)
    E, H, width = 256, 7168, 2048
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for layer in range(3, layers):
        path = f"model.layers.{layer}."
        shapes[path + "mlp.gate.weight"] = ("BF16", (E, H))
        shapes[path + BIAS] = ("F32", (E,))
        shapes[path + "post_attention_layernorm.weight"] = ("BF16", (H,))
        for expert in range(E):
            for name, shape in (("gate", (width, H)), ("up", (width, H)), ("down", (H, width))):
                stem = f"{path}mlp.experts.{expert}.{name}_proj.weight"
                shapes[stem] = ("F8_E4M3", shape)
                shapes[stem + "_scale_inv"] = ("F32", (shape[0] // 128, shape[1] // 128))
    names, weight_map = list(shapes), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        some = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        _write_hollow(folder / file, {name: shapes[name] for name in some})
        weight_map |= dict.fromkeys(some, file)
    write_index(folder, weight_map)
    config = PLANS["deepseek_v3"].config | {
        "model_type": "deepseek_v3",
        "num_hidden_layers": layers,
        "first_k_dense_replace": 3,
        "hidden_size": H,
        "n_routed_experts": E,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _write_hollow(file: Path, shapes: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    header, end = {}, 0
    for name, (dtype, shape) in shapes.items():
        start, end = end, end + _TORCH[dtype].itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        for name, fields in header.items():
            if name.endswith(("gate.weight", "correction_bias")):
                row = torch.rand(fields["shape"][-1]).to(_TORCH[fields["dtype"]])
                stream.seek(8 + len(raw) + fields["data_offsets"][0])
                stream.write(row.view(torch.uint8).numpy().tobytes())
        stream.truncate(8 + len(raw) + end)
