"""The table of families against models that transformers itself builds and saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sglang_moe_ext.checkpoint.findings import PROBLEM
from sglang_moe_ext.checkpoint.inspection import inspect_checkpoint
from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.ops.reference import reference_topk
from sglang_moe_ext.ops.spec import RouterSpec

transformers = pytest.importorskip("transformers", minversion="5.12")

register_cpu_ci(est_time=8, suite="base-a-test-cpu")

TINY = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
ROUTED = {"n_routed_experts": 16, "num_experts_per_tok": 4}
MODELS: dict[str, dict[str, Any]] = {
    "deepseek_v3": MLA | ROUTED | {"n_group": 4, "topk_group": 2, "first_k_dense_replace": 1},
    "deepseek_v32": MLA | ROUTED | {"n_group": 4, "topk_group": 2, "first_k_dense_replace": 1},
    "deepseek_v2": MLA | ROUTED | {"first_k_dense_replace": 1},
    "glm4_moe": ROUTED | {"first_k_dense_replace": 1, "head_dim": 8},
    "glm4_moe_lite": MLA | ROUTED,
    "glm_moe_dsa": MLA
    | ROUTED
    | {"first_k_dense_replace": 1, "index_head_dim": 16, "index_n_heads": 2},
    # transformers always has the bias; SGLang only where the configuration says so.
    "minimax_m2": {
        "num_local_experts": 16,
        "num_experts_per_tok": 4,
        "head_dim": 8,
        "use_routing_bias": True,
    },
    "nemotron_h": ROUTED
    | {
        "layers_block_type": ["linear_attention", "moe", "full_attention"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "ssm_state_size": 8,
        "head_dim": 8,
        "moe_shared_expert_intermediate_size": 16,
    },
    "hy_v3": {"num_experts": 16, "num_experts_per_tok": 4, "head_dim": 8},
    "hunyuan_v1_moe": {"num_experts": 16, "moe_topk": 4, "head_dim": 8},
    "ernie4_5_moe": {"moe_num_experts": 16, "moe_k": 4},
}


GATES = ("gate.weight", "gate.wg.weight")


def build(model_type: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **TINY | MODELS[model_type] | changes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith(GATES) and not parameter.any():
            torch.nn.init.normal_(parameter)  # transformers leaves those of ERNIE at zero
    return model


def biases(model: Any) -> dict[str, torch.Tensor]:
    return {
        name: buffer
        for name, buffer in model.state_dict().items()
        if name.endswith("score_correction_bias")
    }


@pytest.mark.parametrize("model_type", MODELS)
def test_saved_by_transformers(tmp_path: Path, model_type: str) -> None:
    model = build(model_type)
    for bias in biases(model).values():
        bias.uniform_(-1, 1)
    model.save_pretrained(tmp_path)
    report = inspect_checkpoint(tmp_path)
    assert [finding for finding in report.findings if finding.severity == PROBLEM] == []
    routing = report.routing
    assert (routing.num_experts, routing.topk) == (16, 4)
    assert routing.has_bias == bool(biases(model))
    gates = [name for name in model.state_dict() if name.endswith(GATES)]
    assert len(report.layers) == len(gates) > 0
    lows = sorted(row.bias_low for row in report.layers if row.bias_low is not None)
    assert lows == sorted(bias.min().item() for bias in biases(model).values())


def test_estimate_against_hidden_states_of_a_model(tmp_path: Path) -> None:
    """What a bfloat16 bias moves: estimated from the weights, counted on a running model."""
    model = build("deepseek_v3", n_routed_experts=64, num_experts_per_tok=8, initializer_range=0.2)
    for bias in biases(model).values():
        bias.uniform_(6.8, 7.1)
    model.save_pretrained(tmp_path)
    estimates = [row.moved_by_rounding for row in inspect_checkpoint(tmp_path).layers]

    seen: list[torch.Tensor] = []
    gates = [layer.mlp.gate for layer in model.model.layers[1:]]
    for gate in gates:
        gate.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].view(-1, 32)))
    with torch.no_grad():
        model(torch.randint(0, 512, (1, 1024)))
    spec = RouterSpec(64, 8, 4, 2)
    for share, gate, states in zip(estimates, gates, seen, strict=True):
        logits = states.float() @ gate.weight.T
        bias = gate.e_score_correction_bias
        exact = reference_topk(logits, bias, spec)[1].sort().values
        rounded = reference_topk(logits, bias.bfloat16(), spec)[1].sort().values
        counted = (exact != rounded).any(dim=1).double().mean().item()
        assert counted > 0.1
        assert share == pytest.approx(counted, abs=0.05)


if __name__ == "__main__":
    run_file(__file__)
