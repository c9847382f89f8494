"""Build the installed SGLang's own mixture-of-experts blocks on a CPU, without a server.

    SGLANG_PLATFORM=plain_cpu python -m test_support.sglang_blocks

prints one JSON line per family: what is known of its biases, and what became of them in
loads and updates as SGLang's model loaders do them.
"""

from __future__ import annotations

import importlib
import inspect
import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Family file in sglang/srt/models -> its block; every one that routes with a correction bias.
BLOCKS = {
    "afmoe": "AfmoeMoE",
    "bailing_moe": "BailingMoESparseMoeBlock",
    "bailing_moe_linear": "BailingMoE",
    "bailing_moe_v3": "BailingMoE",
    "beam": "BeamMoE",
    "deepseek_v2": "DeepseekV2MoE",
    "dots3_common.modeling": "Dots3MoE",
    "ernie4": "Ernie4Moe",
    "ernie45_moe_vl": "Ernie4_5_VLMoeMoE",
    "exaone_moe": "ExaoneMoESparseMoEBlock",
    "glm4_moe": "Glm4MoeSparseMoeBlock",
    "glm4_moe_lite": "Glm4MoeLiteSparseMoeBlock",
    "hunyuan_v3": "HYV3MoEFused",
    "kimi_linear": "KimiMoE",
    "laguna": "LagunaMoE",
    "lfm2_moe": "Lfm2MoeSparseMoeBlock",
    "llada2": "LLaDA2MoeSparseMoeBlock",
    "longcat_flash": "LongcatFlashMoE",
    "mimo_v2": "MiMoV2MoE",
    "minimax_m2": "MiniMaxM2MoE",
    "minimax_m3": "MiniMaxM3MoE",
    "nemotron_h": "NemotronHMoE",
    "sarvam_moe": "SarvamMoESparseMoeBlock",
    "step3p5": "Step3p5MoEMLP",
    "xllm": "XllmSparseMoeBlock",
}
E, H = 16, 32
# The keys of all families in one; they do not contradict each other but for CHANGES.
CONFIG: dict[str, Any] = {
    "activation_situ_beta": None,
    "activation_situ_linear_beta": None,
    "architectures": ["made for a test"],
    "first_k_dense_replace": 0,
    "hidden_act": "silu",
    "hidden_size": H,
    "intermediate_size": H,
    "mlp_bias": False,
    "mlp_hidden_act": "relu2",
    "model_type": "made_for_a_test",
    "moe_apply_router_weight_on_input": False,
    "moe_gate_bias": True,
    "moe_intermediate_size": E,
    "moe_k": 4,
    "moe_latent_size": None,
    "moe_layer_end_index": -1,
    "moe_layer_freq": 1,
    "moe_layer_start_index": 0,
    "moe_num_experts": E,
    "moe_num_shared_experts": 0,
    "moe_renormalize": True,
    "moe_routed_scaling_factor": 2.5,
    "moe_router_enable_expert_bias": True,
    "moe_router_score_func": "sigmoid",
    "moe_router_scaling_factor": 2.5,
    "moe_shared_expert_intermediate_size": E,
    "moe_shared_expert_overlap": False,
    "moe_top_k": 4,
    "moe_topk": 4,
    "n_group": 4,
    "n_routed_experts": E,
    "n_shared_experts": None,
    "need_fp32_gate": True,
    "norm_topk_prob": True,
    "num_expert_group": 4,
    "num_experts": E,
    "num_experts_per_tok": 4,
    "num_experts_per_token": 4,
    "num_hidden_layers": 2,
    "num_local_experts": E,
    "num_shared_experts": 0,
    "rounter_params_dtype": "float32",
    "route_norm": True,
    "route_scale": 1.0,
    "routed_scaling_factor": 2.5,
    "router_bias": False,
    "router_scaling_factor": 2.5,
    "score_func": "sigmoid",
    "score_function": "sigmoid",
    "scoring_func": "sigmoid",
    "share_expert_dim": E,
    "shared_expert_intermediate_size": E,
    "swiglu_alpha": 1.0,
    "swiglu_limit": 1.0,
    "swiglu_limits": [0, 0],
    "swiglu_limits_shared": [0, 0],
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "use_bias": False,
    "use_expert_bias": True,
    "use_moe_router_bias": True,
    "use_routing_bias": True,
    "zero_expert_num": 0,
    "zero_expert_type": None,
}
CHANGES: dict[str, dict[str, Any]] = {
    "ernie45_moe_vl": {
        "moe_num_experts": [E, E],
        "moe_intermediate_size": [E, E],
        "moe_layer_start_index": [0, 0],
        "moe_layer_end_index": [1, 1],
    }
}


def publish_runtime() -> None:
    """What SGLang's layers ask for when they are built: arguments and groups of one process."""
    from sglang.srt.distributed.parallel_state import (
        init_distributed_environment,
        initialize_model_parallel,
    )
    from sglang.srt.layers.dp_attention import initialize_dp_attention
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import ServerArgs

    arguments = ServerArgs(
        model_path="dummy", device="cpu", attention_backend="torch_native", dtype="float32"
    )
    publish(arguments, role="test", ranks=SpawnRanks(world_rank=0))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    init_distributed_environment(
        world_size=1, rank=0, distributed_init_method=address, local_rank=0, backend="gloo"
    )
    initialize_model_parallel()
    initialize_dp_attention(arguments)


def build(family: str) -> Any:
    block = getattr(importlib.import_module(f"sglang.srt.models.{family}"), BLOCKS[family])
    given = {
        "config": SimpleNamespace(**CONFIG | CHANGES.get(family, {})),
        "layer_id": 0,
        "layer_idx": 0,
        "prefix": "mlp",
        "quant_config": None,
    }
    takes = inspect.signature(block).parameters
    return block(**{name: value for name, value in given.items() if name in takes})


def examine(family: str, folder: Path) -> dict[str, Any]:
    import torch
    from sglang.srt.model_loader.weight_utils import default_weight_loader
    from torch import nn

    from sglang_moe_ext.loading import CheckpointError, make_initializer
    from sglang_moe_ext.parameters import held_biases, routing_parameters

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = build(family)

        def load_weights(self, weights: Any) -> None:
            parameters = dict(self.named_parameters())
            for name, tensor in weights:
                loader = getattr(parameters[name], "weight_loader", default_weight_loader)
                loader(parameters[name], tensor)

    def make() -> Any:
        return make_initializer(lambda config: Model())(SimpleNamespace(model_path=str(folder)))

    def values(seed: int) -> dict[str, torch.Tensor]:
        random = torch.Generator().manual_seed(seed)
        found = routing_parameters(model)
        return {p.name: torch.rand(p.parameter.shape, generator=random) for p in found}

    def refusal(load: Any) -> str:
        try:
            load()
        except CheckpointError as error:
            return str(error)
        return ""

    model = make()
    biases = [each for each in routing_parameters(model) if each.is_bias]
    first, second = values(1), values(2)
    model.load_weights(iter(first.items()))
    # What deepseek_v2.py and others keep of a bias for some dispatchers, at this point or before.
    kept = [each.parameter.data for each in biases]
    configs = [m.topk_config for m in model.modules() if hasattr(m, "topk_config")]
    cast = [config.correction_bias_for_dtype(torch.bfloat16) for config in configs]
    model.load_weights(list(second.items()))
    # A TopK may hold a row of the bias or a flat view of it.
    new = [second[each.name].flatten() for each in biases]
    held = [bias.flatten() for bias in held_biases(model)]
    return {
        "family": family,
        "names": [each.name for each in biases],
        "topks": len(held),
        "kept": all(torch.equal(k.flatten(), n) for k, n in zip(kept, new, strict=True)),
        "held": all(_holds(n, h) for n in new for h in held),
        "cast": all(
            torch.equal(c.correction_bias_for_dtype(torch.bfloat16), c.correction_bias.bfloat16())
            and not torch.equal(c.correction_bias_for_dtype(torch.bfloat16), old)
            for c, old in zip(configs, cast, strict=True)
        ),
        "without": {
            each.name: refusal(
                lambda name=each.name: make().load_weights(
                    iter((n, v) for n, v in first.items() if n != name)
                )
            )
            for each in biases
        },
        "nan": refusal(
            lambda: model.load_weights([(each.name, each.parameter * torch.nan) for each in biases])
        ),
        "still": [torch.equal(b.parameter.flatten(), n) for b, n in zip(biases, new, strict=True)],
        "bypassed": refusal(lambda: make().eval()),
        "rebalanced": _rebalanced(model),
    }


def _rebalanced(model: Any) -> list[str] | None:
    """Parameters that SGLang moves between ranks when it rebalances experts, if it can."""
    if not hasattr(model.mlp, "get_moe_weights"):
        return None
    moved = {weight.data_ptr() for weight in model.mlp.get_moe_weights()}
    return [name for name, parameter in model.named_parameters() if parameter.data_ptr() in moved]


def _holds(whole: Any, part: Any) -> bool:
    import torch

    size = part.numel()
    return any(torch.equal(whole[i : i + size], part) for i in range(0, whole.numel(), size))


def main() -> None:
    from sglang.srt.plugins import load_plugins

    load_plugins()
    publish_runtime()
    for family in BLOCKS:
        print(json.dumps(examine(family, Path("made-for-a-test"))), flush=True)


if __name__ == "__main__":
    main()
