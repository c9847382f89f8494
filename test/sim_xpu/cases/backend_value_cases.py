"""The `xpu` backend on values that break router kernels."""

from __future__ import annotations

import math

import pytest
import torch
from backend import SERVED, check, random_inputs, route, spec_of
from test_support.failure_cases import CASES, Case
from torch import Tensor

from sglang_moe_ext.ops import xpu_router
from sglang_moe_ext.ops.compare import find_mismatch
from sglang_moe_ext.ops.spec import RouterSpec


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_failures_of_other_routers(case: Case) -> None:
    arguments = dict(case.arguments)
    for name in ("num_expert_group", "topk_group", "routed_scaling_factor"):
        arguments[name] = arguments.get(name) or 1  # None and 0 mean 1 to SGLang
    spec = RouterSpec(
        case.logits.shape[1],
        len(case.ids),
        **arguments,
        logits_dtype=case.logits.dtype,
        bias_dtype=case.bias.dtype,
        per_token_bias=case.bias.dim() == 2,
        device_type="xpu",
    )
    check(spec, case.logits, case.bias)


@pytest.mark.parametrize("shape", SERVED.values(), ids=SERVED)
@pytest.mark.parametrize("renormalize", [True, False], ids=["renormalised", "raw"])
@pytest.mark.parametrize("offset", [-3.0, 0.5, 7.0, 30.0])
def test_weights_do_not_cancel_under_a_large_bias(
    shape: tuple[int, int, int, int], renormalize: bool, offset: float
) -> None:
    logits, bias = random_inputs(shape[0], offset=offset)
    check(spec_of(*shape, renormalize=renormalize), logits - 8, bias)


@pytest.mark.parametrize("shape", SERVED.values(), ids=SERVED)
@pytest.mark.parametrize("level", [-100.0, -200.0, 100.0])
def test_extreme_logits(shape: tuple[int, int, int, int], level: float) -> None:
    logits, bias = random_inputs(shape[0])
    check(spec_of(*shape), logits + level, bias)
    logits[::2, ::3] = -torch.inf
    logits[1::2, ::5] = torch.inf
    check(spec_of(*shape), logits, bias)


@pytest.mark.parametrize("shape", SERVED.values(), ids=SERVED)
def test_ties_go_to_the_lower_expert_and_group(shape: tuple[int, int, int, int]) -> None:
    E = shape[0]
    check(spec_of(*shape), torch.zeros(7, E), torch.zeros(E))
    check(spec_of(*shape), torch.zeros(7, E), (torch.arange(E) % 3) / 4)


@pytest.mark.parametrize("shape", SERVED.values(), ids=SERVED)
@pytest.mark.parametrize("allowed", [0, 1, 3, 20])
def test_banned_experts_weigh_nothing_and_come_last(
    shape: tuple[int, int, int, int], allowed: int
) -> None:
    """Allowed experts are spread one to a group, from group 0 on."""
    E, _, G, _ = shape
    logits, values = random_inputs(E)
    bias = torch.full((E,), -torch.inf)
    chosen = [(i % G) * (E // G) + i // G for i in range(allowed)]
    bias[chosen] = values[chosen]
    if G > 1 and allowed < 2 * shape[3]:
        bias[chosen] = -torch.inf  # see the grouped deviation in xpu_router
    check(spec_of(*shape), logits, bias)


@pytest.mark.parametrize("shape", SERVED.values(), ids=SERVED)
def test_forced_experts_come_first(shape: tuple[int, int, int, int]) -> None:
    logits, bias = random_inputs(shape[0])
    bias[[3, 70]] = torch.inf
    bias[4] = -torch.inf
    check(spec_of(*shape), logits, bias)


@pytest.mark.parametrize("shape", SERVED.values(), ids=SERVED)
def test_biases_below_the_sentinel_lose(shape: tuple[int, int, int, int]) -> None:
    logits, bias = random_inputs(shape[0])
    bias[1::2] = -20000.0
    check(spec_of(*shape), logits, bias)


@pytest.mark.parametrize("shape", SERVED.values(), ids=SERVED)
@pytest.mark.parametrize("value", [-20000.0, math.nan, -torch.inf])
def test_too_few_experts_to_select_still_gives_distinct_ids(
    shape: tuple[int, int, int, int], value: float
) -> None:
    logits, bias = random_inputs(shape[0])
    bias[2:] = value
    answer = route(spec_of(*shape), logits, bias)
    if answer is not None:
        assert_safe(*answer, experts=shape[0])


@pytest.mark.parametrize("shape", SERVED.values(), ids=SERVED)
def test_nan_logits_are_safe_and_leave_other_rows_alone(shape: tuple[int, int, int, int]) -> None:
    spec = spec_of(*shape)
    logits, bias = random_inputs(shape[0])
    clean = [row for row in range(33) if row not in (0, 5, 9)]
    logits[0] = math.nan
    logits[5, ::2] = math.nan
    logits[9, 0] = math.nan
    answer = route(spec, logits, bias)
    if answer is None:
        return
    weights, ids = answer[0].cpu(), answer[1].cpu()
    assert_safe(weights, ids, experts=shape[0])
    selected_nan = logits.gather(1, ids.long()).isnan()
    assert (weights[selected_nan] == 0).all()
    assert (weights[~selected_nan] > 0).all()
    assert find_mismatch(weights[clean], ids[clean], logits[clean], bias, spec) is None


def assert_safe(weights: Tensor, ids: Tensor, experts: int) -> None:
    weights, ids = weights.cpu(), ids.cpu()
    assert weights.isfinite().all()
    assert (ids >= 0).all()
    assert (ids < experts).all()
    assert all(len(set(row)) == len(row) for row in ids.tolist())


@pytest.mark.parametrize("shape", SERVED.values(), ids=SERVED)
def test_a_bias_rewritten_in_place_is_seen(shape: tuple[int, int, int, int]) -> None:
    spec = spec_of(*shape, bias_dtype=torch.bfloat16)
    if xpu_router.supports(spec) is not None:
        return
    run = xpu_router.prepare(spec).run
    logits, old = random_inputs(shape[0])
    bias = old.bfloat16().to("xpu")
    run(logits.to("xpu"), bias)
    for new in (old.flip(0), old + 30, torch.where(old > 0, -torch.inf, old)):
        bias.data.copy_(new.bfloat16())  # as weight loaders write: no version counter moves
        answer = run(logits.to("xpu"), bias)
        assert find_mismatch(*answer, logits, new.bfloat16(), spec) is None
