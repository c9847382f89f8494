"""The stand-in's `topk_sigmoid`, and what all its operations do with memory.

Expected values are written out from the specification, not taken from the stand-in's code.
"""

from __future__ import annotations

import itertools

import pytest
import sgl_kernel
import torch
from stand_in import (
    HAS,
    STRICT,
    only,
    outputs,
    random_inputs,
    topk_sigmoid,
)

from sglang_moe_ext.ops.compare import find_mismatch
from sglang_moe_ext.ops.spec import RouterSpec


@only("S1", "S2")
@pytest.mark.parametrize("E", [8, 12, 100, 128, 256])
def test_topk_sigmoid_agrees_with_the_reference(E: int) -> None:
    logits, bias = random_inputs(9, E)
    spec = RouterSpec(E, 4)
    assert find_mismatch(*topk_sigmoid(logits, 4, True, bias), logits, bias, spec) is None


@only("S1", "S2")
def test_topk_sigmoid_recovers_weights_by_subtracting_the_bias() -> None:
    logits, bias = random_inputs(5, 16)
    weights, ids = topk_sigmoid(logits - 5, 4, False, bias + 30)
    key = (logits.cpu() - 5).sigmoid() + (bias.cpu() + 30)
    recovered = (key - (bias.cpu() + 30)).gather(1, ids.long())
    assert torch.allclose(weights, recovered, rtol=0, atol=2e-6)
    exact = (logits.cpu() - 5).sigmoid().gather(1, ids.long())
    assert not torch.allclose(weights, exact, rtol=1e-5)


@only("S2")
def test_topk_sigmoid_scales_only_if_it_renormalises() -> None:
    logits, bias = random_inputs(5, 16)
    renormalised = topk_sigmoid(logits, 4, True, bias, routed_scaling_factor=2.5)[0]
    assert torch.allclose(renormalised.sum(1), torch.full((5,), 2.5))
    raw = topk_sigmoid(logits, 4, False, bias)[0]
    assert torch.equal(topk_sigmoid(logits, 4, False, bias, routed_scaling_factor=2.5)[0], raw)


@only("S2")
@pytest.mark.parametrize("renormalize", [True, False])
def test_topk_sigmoid_shared_slot(renormalize: bool) -> None:
    logits, bias = random_inputs(5, 16)
    weights, ids = topk_sigmoid(
        logits, 5, renormalize, bias, routed_scaling_factor=2.5, num_fused_shared_experts=1
    )
    assert ids[:, 4].tolist() == [16] * 5
    expected = torch.ones(5) if renormalize else weights[:, :4].sum(1) / 2.5
    assert torch.allclose(weights[:, 4], expected)


@only("S1", "S2")
def test_topk_sigmoid_where_the_scores_sum_to_zero() -> None:
    x = torch.full((1, 8), -200.0, device="xpu")
    weights = topk_sigmoid(x, 2, True, None)[0]
    assert weights.isnan().all() if "S1" in HAS else (weights == 0).all()
    general = topk_sigmoid(torch.full((1, 12), -200.0, device="xpu"), 2, True, None)[0]
    assert (general == 0).all()


@only("S1", "S2")
@pytest.mark.parametrize("E", [8, 12], ids=["power of two", "general"])
def test_topk_sigmoid_with_too_few_experts(E: int) -> None:
    bias = torch.full((E,), -torch.inf, device="xpu")
    bias[5] = 0.0
    x = torch.zeros(1, E, device="xpu")
    if STRICT:
        with pytest.raises(RuntimeError, match="fewer experts"):
            topk_sigmoid(x, 2, False, bias)
        return
    weights, ids = topk_sigmoid(x, 2, False, bias)
    # The fast path takes its -10000 again, the general one answers 0.
    assert ids.tolist() == ([[5, 5]] if E == 8 else [[5, 0]])
    assert weights[0, 1] == (-10000.0 if E == 8 else -torch.inf) or weights[0, 1].isnan()


SIGMOID_CHECKS = [
    ("2D", dict(x=torch.zeros(8)), RuntimeError, "gating_output must be 2D"),
    ("experts", dict(x=torch.zeros(1, 257)), RuntimeError, "n_experts only support up to 256"),
    ("weights", dict(weights=torch.float64), RuntimeError, "topk_weights should be Float"),
    ("ids", dict(ids=torch.int64), RuntimeError, "topk_indices should be Int"),
    ("topk", dict(k=9), RuntimeError, "topk must be less than or equal"),
    ("bias shape", dict(bias=torch.zeros(7)), RuntimeError, "correction_bias must be 1D"),
    (
        "bias dtype",
        dict(bias=torch.zeros(16).bfloat16()),
        RuntimeError,
        "correction_bias must be f",
    ),
    ("dtype", dict(x=torch.zeros(1, 16).double()), NotImplementedError, '"fused_topk_sigmoid_ker'),
]


@only("S1", "S2")
@pytest.mark.parametrize(
    ("broken", "error", "message"),
    [c[1:] for c in SIGMOID_CHECKS],
    ids=[c[0] for c in SIGMOID_CHECKS],
)
def test_topk_sigmoid_checks(broken: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call_topk_sigmoid(broken)


@only("S1", "S2")
def test_topk_sigmoid_checks_in_order() -> None:
    """Each pair of neighbours broken at once: the earlier one is reported."""
    for (_, first, error, message), (_, second, *_) in itertools.pairwise(SIGMOID_CHECKS):
        if not set(first) & set(second):
            with pytest.raises(error, match=message):
                call_topk_sigmoid({**second, **first})


def call_topk_sigmoid(broken: dict) -> None:
    k = broken.get("k", 2)
    weights = torch.empty(1, k, dtype=broken.get("weights", torch.float32), device="xpu")
    ids = torch.empty(1, k, dtype=broken.get("ids", torch.int32), device="xpu")
    x = broken.get("x", torch.zeros(1, 16)).to("xpu")
    bias = broken.get("bias", torch.zeros(16)).to("xpu")
    sgl_kernel.topk_sigmoid(weights, ids, x, True, bias)


@only("S1a")
def test_topk_sigmoid_before_float32() -> None:
    x, bias = random_inputs(3, 16)
    with pytest.raises(NotImplementedError, match="not implemented for 'Float'"):
        topk_sigmoid(x, 2, True, bias)
    spec = RouterSpec(16, 2, logits_dtype=torch.bfloat16)
    x = x.bfloat16()
    assert find_mismatch(*topk_sigmoid(x, 2, True, bias), x, bias, spec) is None


@only("S1", "S2")
def test_one_dimensional_weights_are_an_index_error() -> None:
    weights = torch.empty(2, device="xpu")
    ids = torch.empty(2, dtype=torch.int32, device="xpu")
    with pytest.raises(IndexError):
        sgl_kernel.topk_sigmoid(weights, ids, torch.zeros(1, 8, device="xpu"), True)


@only("S1", "S2")
@pytest.mark.parametrize("broken", ["strided", "misaligned", "host bias", "rows", "empty", "NaN"])
def test_what_only_strict_mode_refuses(broken: str) -> None:
    x, bias = random_inputs(4, 16)
    weights, ids = outputs(4, 2)
    if broken == "strided":
        x = torch.randn(4, 32).to("xpu")[:, ::2]
    elif broken == "misaligned":
        x = torch.randn(65).to("xpu")[1:].view(4, 16)
    elif broken == "host bias":
        bias = bias.cpu()
    elif broken == "rows":
        weights = torch.empty(9, 2, device="xpu")
    elif broken == "empty":
        x, weights, ids = x[:0], weights[:0], ids[:0]
    elif broken == "NaN":
        x[0, 3] = torch.nan
    if STRICT or broken == "NaN":
        with pytest.raises(RuntimeError, match="undefined on the device"):
            sgl_kernel.topk_sigmoid(weights, ids, x, True, bias)
    else:
        sgl_kernel.topk_sigmoid(weights, ids, x, True, bias)


@only("S1", "S2")
def test_faithful_mode_reads_strided_logits_as_dense() -> None:
    if STRICT:
        return
    wide, bias = random_inputs(4, 32)
    narrow, dense = wide[:, :16], wide.flatten()[:64].view(4, 16)
    bias = bias[:16].contiguous()
    assert torch.equal(
        topk_sigmoid(narrow, 2, True, bias)[1], topk_sigmoid(dense, 2, True, bias)[1]
    )
    honest = topk_sigmoid(narrow.contiguous(), 2, True, bias)[1]
    assert not torch.equal(topk_sigmoid(narrow, 2, True, bias)[1], honest)


@only("S1", "S2")
def test_rows_that_the_kernel_does_not_write_show() -> None:
    if STRICT:
        return
    x, bias = random_inputs(2, 16)
    weights = torch.zeros(4, 2, device="xpu")
    ids = torch.zeros(4, 2, dtype=torch.int32, device="xpu")
    sgl_kernel.topk_sigmoid(weights, ids, x, True, bias)
    assert (weights[2:] == 0).all()  # untouched, and nothing said so
