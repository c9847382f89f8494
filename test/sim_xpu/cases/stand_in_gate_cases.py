"""The stand-in's `moe_fused_gate`.

Expected values are written out from the specification, not taken from the stand-in's code.
"""

from __future__ import annotations

import pytest
import sgl_kernel
import torch
from stand_in import (
    HAS,
    STRICT,
    fused_gate,
    only,
    random_inputs,
)

from sglang_moe_ext.ops.compare import find_mismatch
from sglang_moe_ext.ops.reference import reference_topk
from sglang_moe_ext.ops.spec import RouterSpec


@only("F1", "F2", "F3")
@pytest.mark.parametrize(
    ("E", "G", "TG", "k"),
    [(512, 16, 8, 8), (256, 8, 4, 8), (256, 16, 4, 6), (128, 4, 2, 2), (128, 8, 8, 4)],
)
def test_fused_gate_agrees_with_the_reference(E: int, G: int, TG: int, k: int) -> None:
    x, bias = random_inputs(9, E)
    assert find_mismatch(*fused_gate(x, bias, G, TG, k), x, bias, RouterSpec(E, k, G, TG)) is None


@only("F1", "F2", "F3")
def test_fused_gate_counts_a_doubled_maximum_twice() -> None:
    x = torch.full((1, 128), -9.0, device="xpu")
    x[0, [0, 1]] = 1.0  # group 0: the best twice
    x[0, 32] = 2.0  # group 1: a better one, alone
    ids = fused_gate(x, torch.zeros(128, device="xpu"), 4, 1, 2)[1]
    assert ids.tolist() == [[0, 1]]


@only("F1", "F2", "F3")
def test_fused_gate_ignores_groups_outside_its_pairs() -> None:
    x, bias = random_inputs(9, 64)
    answer = fused_gate(x, bias, 8, 4, 4)
    assert find_mismatch(*answer, x, bias, RouterSpec(64, 4, 8, 4)) is not None
    assert find_mismatch(*answer, x, bias, RouterSpec(64, 4)) is None
    assert find_mismatch(*fused_gate(x, bias, 8, 8, 4), x, bias, RouterSpec(64, 4, 8, 8)) is None


@only("F1", "F2", "F3")
@pytest.mark.parametrize(("E", "G", "TG"), [(64, 8, 3), (256, 32, 4)], ids=["tg 3", "64 per lane"])
def test_fused_gate_where_it_is_undefined(E: int, G: int, TG: int) -> None:
    x, bias = random_inputs(3, E)
    if STRICT:
        with pytest.raises(RuntimeError, match="undefined on the device"):
            fused_gate(x, bias, G, TG, 4)
    else:
        answer = fused_gate(x, bias, G, TG, 4)
        assert find_mismatch(*answer, x, bias, RouterSpec(E, 4)) is None


@only("F1", "F2", "F3")
def test_fused_gate_ranks_in_the_dtype_of_its_input() -> None:
    """At 7, bfloat16 steps by 0.03: the better expert loses to the first."""
    x = torch.full((1, 128), -2.0, device="xpu")
    x[0, :2] = torch.tensor([0.0, 0.04])
    bias = torch.zeros(128, device="xpu")
    bias[:2] = 7.0
    assert fused_gate(x, bias, 4, 4, 1)[1].item() == 1
    assert fused_gate(x.bfloat16(), bias.bfloat16(), 4, 4, 1)[1].item() == 0


@only("F1", "F2", "F3")
def test_fused_gate_where_the_scores_sum_to_zero() -> None:
    x = torch.full((1, 128), -200.0, device="xpu")
    weights = fused_gate(x, torch.zeros(128, device="xpu"), 4, 4, 2)[0]
    assert weights.isnan().all() if "F1" in HAS else (weights == 0).all()


@only("F2", "F3")
def test_fused_gate_scales_only_if_it_renormalises_and_is_asked_to() -> None:
    x, bias = random_inputs(3, 128)
    scaled = dict(routed_scaling_factor=2.5, apply_routed_scaling_factor_on_output=True)
    assert torch.allclose(fused_gate(x, bias, 4, 2, 4, **scaled)[0].sum(1), torch.full((3,), 2.5))
    raw = fused_gate(x, bias, 4, 2, 4, renormalize=False)[0]
    assert torch.equal(fused_gate(x, bias, 4, 2, 4, renormalize=False, **scaled)[0], raw)
    reference = reference_topk(x, bias, RouterSpec(128, 4, 4, 2, renormalize=False))[0]
    assert torch.allclose(raw, reference.cpu(), rtol=1e-5)


@only("F1", "F2", "F3")
def test_fused_gate_shared_slots() -> None:
    x, bias = random_inputs(3, 128)
    more = dict(num_fused_shared_experts=2, routed_scaling_factor=2.5)
    weights, ids = fused_gate(x, bias, 4, 2, 6, **more)
    assert ids[:, 4:].tolist() == [[128, 129]] * 3
    assert torch.allclose(weights[:, 4:], torch.full((3, 2), 1 / 2.5))
    default_factor = fused_gate(x, bias, 4, 2, 6, num_fused_shared_experts=2)[0]
    assert default_factor[:, 4:].isinf().all()  # the wrapper's default factor is 0


@only("F2", "F3")
def test_fused_gate_positions_moved() -> None:
    """Arguments in the order before 79fdda65 reach other parameters."""
    x, bias = random_inputs(3, 128)
    with pytest.raises(AttributeError, match="lower"):
        sgl_kernel.moe_fused_gate(x, bias, 4, 2, 4, 0, 2.5, False)


@only("F1", "F2", "F3")
@pytest.mark.parametrize(
    ("E", "G", "bias_dtype", "message"),
    [
        (128, 4, torch.bfloat16, "input and bias should have the same dtype"),
        (96, 4, torch.float32, "num_experts must be a power of 2"),
        (128, 3, torch.float32, "num_experts must be divisible"),
        (128, 2, torch.float32, "Per group experts"),
    ],
)
def test_fused_gate_checks(E: int, G: int, bias_dtype: torch.dtype, message: str) -> None:
    x, bias = random_inputs(1, E)
    with pytest.raises(RuntimeError, match=message):
        fused_gate(x, bias.to(bias_dtype), G, 1, 2)
