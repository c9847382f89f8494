"""The reference against a plain Python float64 evaluation, and `torch` against the reference."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.ops import RouterSpec, biased_grouped_topk
from sglang_moe_ext.ops.compare import find_mismatch
from sglang_moe_ext.ops.reference import reference_topk
from sglang_moe_ext.ops.torch_router import torch_topk

register_cpu_ci(est_time=7, suite="base-a-test-cpu")

SHAPES = {
    "DeepSeek-V3 256/8 g8 tg4": RouterSpec(256, 8, 8, 4),
    "Kimi-K2 384/8": RouterSpec(384, 8),
    "Nemotron-3-Nano 128/6": RouterSpec(128, 6),
    "GLM-5 256/8": RouterSpec(256, 8),
    "Nemotron-3-Super 512/22": RouterSpec(512, 22),
    "Kimi-K3 896/16": RouterSpec(896, 16),
}


def in_python(logits: list[float], bias: list[float], spec: RouterSpec) -> tuple[list, list]:
    """Weights and ids of one row, written out with Python's float64 and plain sorts."""

    def float32(value: float) -> float:
        return torch.tensor(value, dtype=torch.float64).float().item()

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))

    E, G = spec.num_experts, spec.num_expert_group
    keys = [float32(float32(sigmoid(x)) + b) for x, b in zip(logits, bias, strict=True)]
    members = [range(g * E // G, (g + 1) * E // G) for g in range(G)]
    scores = [float32(sum(sorted((keys[e] for e in m), reverse=True)[:2])) for m in members]
    kept = sorted(range(G), key=lambda g: (-scores[g], g))[: spec.topk_group]
    running = [e for g in kept for e in members[g]] if G > 1 else range(E)
    ids = sorted(running, key=lambda e: (-keys[e], e))[: spec.topk_routed]
    weights = [sigmoid(logits[e]) for e in ids]
    if spec.renormalize:
        weights = [w / sum(weights) for w in weights]
    return [w * spec.output_scale for w in weights], ids


def inputs(spec: RouterSpec, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, spec.num_experts, generator=generator)
    return logits, torch.randn(spec.num_experts, generator=generator) / 10


@pytest.mark.parametrize("spec", SHAPES.values(), ids=SHAPES)
def test_reference_equals_float64(spec: RouterSpec) -> None:
    logits, bias = inputs(spec, rows=33)
    weights, ids = reference_topk(logits, bias, spec)
    for row in range(33):
        expected_weights, expected_ids = in_python(logits[row].tolist(), bias.tolist(), spec)
        assert ids[row].tolist() == expected_ids
        assert weights[row].tolist() == pytest.approx(expected_weights, rel=1e-6)


@pytest.mark.parametrize("offset", [-5, 0, 7, 30], ids="bias{:+}".format)
@pytest.mark.parametrize("spec", SHAPES.values(), ids=SHAPES)
def test_float32_keys_decide_with_an_offset_bias(spec: RouterSpec, offset: int) -> None:
    """With a large offset many keys tie in float32, by contract, not in float64."""
    logits, bias = inputs(spec, rows=7, seed=1)
    logits -= 6
    bias += offset
    _, ids = reference_topk(logits, bias, spec)
    for row in range(7):
        assert ids[row].tolist() == in_python(logits[row].tolist(), bias.tolist(), spec)[1]


def test_sigmoid_keeps_its_relative_error_down_to_the_last_normal_number() -> None:
    """Without renormalising, the weight is the score itself."""
    logits = torch.linspace(-87, 20, 1000).unsqueeze(1)  # [1000, 1]
    spec = RouterSpec(1, 1, renormalize=False)
    exact = 1 / (1 + (-logits.double()).exp())
    for backend in ("reference", "torch"):
        weights, _ = biased_grouped_topk(logits, torch.zeros(1), 1, False, backend=backend)
        error = ((weights.double() - exact) / exact).abs().max().item()
        assert error <= 1e-6, f"{backend}: {error:.1e} for {spec}"


@pytest.mark.parametrize("level", [-90.0, -800.0, -3e38])
def test_torch_where_scores_underflow(level: float) -> None:
    """Beyond -746 also in float64, in which it computes on a CPU."""
    spec = RouterSpec(16, 4)
    logits, bias = torch.full((3, 16), level), torch.arange(16) / 100
    logits[1, 12] = level / 2
    weights, ids = torch_topk(logits, bias, spec)
    assert find_mismatch(weights, ids, logits, bias, spec) is None


@pytest.mark.parametrize("rows", [1, 7, 63, 129], ids="T{}".format)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("spread", [1, 40], ids=["normal", "saturated"])
@pytest.mark.parametrize("spec", SHAPES.values(), ids=SHAPES)
def test_torch_equals_reference(
    spec: RouterSpec, spread: float, dtype: torch.dtype, rows: int
) -> None:
    logits, bias = inputs(spec, rows, seed=rows)
    logits = (logits * spread).to(dtype)
    weights, ids = torch_topk(logits, bias, spec)
    assert find_mismatch(weights, ids, logits, bias, spec) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("where", ["logits", "bias", "both"])
@pytest.mark.parametrize("spec", SHAPES.values(), ids=SHAPES)
def test_torch_equals_reference_on_special_values(
    spec: RouterSpec, where: str, value: float
) -> None:
    logits, bias = inputs(spec, rows=17, seed=5)
    generator = torch.Generator().manual_seed(6)
    if where in ("logits", "both"):
        logits[torch.rand(logits.shape, generator=generator) < 0.3] = value
        logits[3] = value
    if where in ("bias", "both"):
        bias[torch.rand(bias.shape, generator=generator) < 0.3] = value
    weights, ids = torch_topk(logits, bias, spec)
    assert weights.isfinite().all()
    assert find_mismatch(weights, ids, logits, bias, spec) is None


def test_torch_decides_near_ties_alone_as_in_a_batch() -> None:
    """float32 sigmoids differ in the last bit between vectors and the scalar end of a batch."""
    x = torch.rand(4096, generator=torch.Generator().manual_seed(0)) * 3
    together, alone = x.sigmoid(), torch.cat([each.sigmoid() for each in x.split(1)])
    E, T = 17, 16  # the last expert is in the scalar end of a row, not in that of the batch
    for i in (together != alone).nonzero().flatten()[:20].tolist():
        logits, bias = torch.full((T, E), -50.0), torch.zeros(E)
        logits[:, 0], logits[:, -1] = 0, x[i]
        bias[0] = torch.minimum(together[i], alone[i]) - 0.5  # expert 0 is the smaller of both
        ids = torch_topk(logits, bias, RouterSpec(E, 1))[1]
        assert torch.equal(torch_topk(logits[:1], bias, RouterSpec(E, 1))[1], ids[:1])


@pytest.mark.parametrize("spec", SHAPES.values(), ids=SHAPES)
def test_a_bias_per_token_is_a_bias_per_row(spec: RouterSpec) -> None:
    logits, bias = inputs(spec, rows=5)
    per_token = bias + torch.arange(5)[:, None] * bias.flip(0)
    arguments = (spec.topk, True, spec.num_expert_group, spec.topk_group)
    for backend in ("reference", "torch"):
        weights, ids = biased_grouped_topk(logits, per_token, *arguments, backend=backend)
        for row in range(5):
            alone = biased_grouped_topk(
                logits[row : row + 1], per_token[row], *arguments, backend=backend
            )
            assert torch.equal(ids[row], alone[1][0])
            assert torch.equal(weights[row], alone[0][0])


if __name__ == "__main__":
    run_file(__file__)
