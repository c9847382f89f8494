"""What SGLang's own router does on the simulated XPU, and what ours does with the same call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sglang.srt.layers.moe.topk import biased_grouped_topk_gpu
from torch import Tensor

from sglang_moe_ext.ops.compare import find_mismatch
from sglang_moe_ext.ops.dispatch import biased_grouped_topk
from sglang_moe_ext.ops.spec import RouterSpec

Answer = tuple[Tensor, Tensor]
FACTOR = 2.5


def inputs(E: int, tokens: int = 33, level: float = 0.0, offset: float = 0.0) -> Answer:
    generator = torch.Generator().manual_seed(E)
    logits = level + 2 * torch.randn(tokens, E, generator=generator)
    bias = offset + 0.3 * torch.randn(E, generator=generator)
    return logits.to("xpu"), bias.to("xpu")


def route_both(logits: Tensor, bias: Tensor, spec: RouterSpec) -> tuple[Answer, Answer]:
    """The answers of SGLang's function and of ours."""
    arguments: dict[str, Any] = dict(
        topk=spec.topk,
        renormalize=spec.renormalize,
        num_expert_group=spec.num_expert_group,
        topk_group=spec.topk_group,
        routed_scaling_factor=FACTOR,
        apply_routed_scaling_factor_on_output=spec.apply_routed_scaling_factor_on_output,
    )
    hidden = torch.zeros(logits.shape[0], 8, device="xpu")
    stock = biased_grouped_topk_gpu(hidden, logits, bias, **arguments)
    return stock, biased_grouped_topk(logits, bias, **arguments)


def spec_of(E: int, K: int, G: int = 1, TG: int = 1, **changes: Any) -> RouterSpec:
    return RouterSpec(E, K, G, TG, routed_scaling_factor=FACTOR, device_type="xpu", **changes)


def test_ordinary_calls_agree() -> None:
    for spec in (spec_of(128, 6), spec_of(256, 8, 8, 4)):
        logits, bias = inputs(spec.num_experts)
        for answer in route_both(logits, bias, spec):
            assert find_mismatch(*answer, logits, bias, spec) is None


@pytest.mark.parametrize(("E", "G", "TG"), [(64, 8, 4), (128, 16, 8), (512, 32, 16)])
def test_groups_that_the_kernel_is_not_compiled_for(E: int, G: int, TG: int) -> None:
    spec = spec_of(E, 4, G, TG)
    logits, bias = inputs(E)
    stock, ours = route_both(logits, bias, spec)
    assert "expected" in find_mismatch(*stock, logits, bias, spec)
    assert find_mismatch(*ours, logits, bias, spec) is None


def test_the_factor_is_lost_without_renormalisation() -> None:
    spec = spec_of(128, 6, renormalize=False, apply_routed_scaling_factor_on_output=True)
    logits, bias = inputs(128)
    stock, ours = route_both(logits, bias, spec)
    assert torch.allclose(stock[0] * FACTOR, ours[0], rtol=1e-4)
    assert find_mismatch(*ours, logits, bias, spec) is None


def test_weights_cancel_under_an_offset_bias() -> None:
    spec = spec_of(256, 8)
    logits, bias = inputs(256, level=-8.0, offset=7.0)
    stock, ours = route_both(logits, bias, spec)
    assert "weights" in find_mismatch(*stock, logits, bias, spec)
    assert find_mismatch(*ours, logits, bias, spec) is None


def test_scores_that_underflow_weigh_nothing() -> None:
    spec = spec_of(256, 8, 8, 4)
    logits, bias = inputs(256, level=-200.0)
    stock, ours = route_both(logits, bias, spec)
    assert (stock[0] == 0).all()
    assert find_mismatch(*ours, logits, bias, spec) is None


@pytest.mark.parametrize("defect", ["empty batch", "strided logits", "NaN logits"])
def test_calls_that_are_undefined_on_the_device(defect: str) -> None:
    spec = spec_of(256, 8, 8, 4) if defect == "empty batch" else spec_of(128, 6)
    logits, bias = inputs(spec.num_experts, tokens=0 if defect == "empty batch" else 9)
    if defect == "strided logits":
        logits = torch.cat([logits, logits], dim=1)[:, : spec.num_experts]
    elif defect == "NaN logits":
        logits[3, 5] = torch.nan
    with pytest.raises(RuntimeError, match="undefined on the device"):
        route_both(logits, bias, spec)
    weights, ids = biased_grouped_topk(
        logits, bias, spec.topk, True, spec.num_expert_group, spec.topk_group
    )
    assert weights.shape == ids.shape == (logits.shape[0], spec.topk)
    assert weights.isfinite().all()
    assert (ids < spec.num_experts).all()
