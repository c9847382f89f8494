"""The judge: what rounding explains is accepted, everything else is named."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.ops.compare import find_mismatch
from sglang_moe_ext.ops.reference import reference_topk
from sglang_moe_ext.ops.spec import RouterSpec

register_cpu_ci(est_time=5, suite="base-a-test-cpu")

INF, NAN = math.inf, math.nan
ULP = 2.0**-23
SPEC = RouterSpec(4, 2, renormalize=False)


def judge(ids: list[int], logits: list[float], bias: list[float], spec: RouterSpec) -> str | None:
    """The verdict on these ids with the weights that belong to them."""
    x, b = torch.tensor([logits]), torch.tensor(bias)
    weights = torch.where(b[ids] > -INF, x[0, ids].double().sigmoid(), 0).float()[None]
    return find_mismatch(weights, torch.tensor([ids], dtype=torch.int32), x, b, spec)


@pytest.mark.parametrize("ids", [[0, 1], [1, 0], [1, 2], [2, 0]], ids=str)
def test_near_ties_may_go_either_way(ids: list[int]) -> None:
    assert judge(ids, [0, 4 * ULP, 8 * ULP, -3], [0, 0, 0, 0], SPEC) is None


@pytest.mark.parametrize(
    ("ids", "logits", "bias", "why"),
    [
        pytest.param([1, 0], [0] * 4, [0] * 4, "lower id first", id="equal inputs, wrong order"),
        pytest.param([0, 2], [0] * 4, [0] * 4, "expert 1 comes before", id="equal inputs, skipped"),
        pytest.param([0, 3], [2, 1, 0, -1], [0] * 4, "expert 1 comes", id="a larger key left out"),
        pytest.param([1, 0], [2, 1, 0, -1], [0] * 4, "descending", id="a larger key second"),
        pytest.param([0, 0], [2, 1, 0, -1], [0] * 4, "repeated", id="twice the same"),
        pytest.param([0, 2], [2, 1, 0, -1], [1e30, 0, 0, 0], "expert 1 comes", id="beside 1e30"),
        pytest.param([1, 3], [0] * 4, [-INF, -INF, -INF, -INF], "expert 0", id="all banned"),
        pytest.param([2, 1], [0] * 4, [0, INF, INF, 0], "lower id first", id="two forced"),
        pytest.param([0, 3], [0] * 4, [INF, -INF, 0, -INF], "comes before", id="banned before 0"),
    ],
)
def test_what_rounding_does_not_explain(
    ids: list[int], logits: list[float], bias: list[float], why: str
) -> None:
    verdict = judge(ids, logits, bias, SPEC)
    assert verdict is not None
    assert why in verdict


def test_shared_slots_come_last_in_order() -> None:
    spec = RouterSpec(4, 3, num_fused_shared_experts=2)
    x, b = torch.tensor([[2.0, 1, 0, -1]]), torch.zeros(4)
    weights, ids = reference_topk(x, b, spec)
    assert find_mismatch(weights, ids, x, b, spec) is None
    verdict = find_mismatch(weights, ids[:, [0, 2, 1]], x, b, spec)
    assert verdict is not None
    assert "shared slots" in verdict


@pytest.mark.parametrize("ids", [[0], [1]], ids=str)
def test_what_a_near_tie_chose_has_its_own_weight(ids: list[int]) -> None:
    """Equal keys of unequal scores: 1/2 + 1/4 and, all but for rounding, 1/4 + 1/2."""
    logits, bias = [0, -math.log(3)], [0.25, 0.5]
    assert judge(ids, logits, bias, RouterSpec(2, 1, renormalize=False)) is None


def test_near_ties_beside_infinities_and_nan() -> None:
    spec = RouterSpec(6, 3, renormalize=False)
    bias = [INF, 0, 0, -INF, 0, 0]
    assert judge([0, 2, 1], [0, 1, 1 + ULP, 5, -2, NAN], bias, spec) is None
    assert judge([0, 1, 2], [0, 1, 1 + ULP, 5, -2, NAN], bias, spec) is None
    verdict = judge([0, 1, 4], [0, 1, 1 + ULP, 5, -2, NAN], bias, spec)
    assert verdict is not None
    assert "expert 2" in verdict


def test_nan_comes_after_a_banned_expert() -> None:
    """Also as an answer: the judge has the order, whatever the weights say."""
    spec = RouterSpec(4, 3, renormalize=False)
    logits, bias = [0, NAN, 0, 0], [0, 0, -INF, -INF]
    assert judge([0, 2, 3], logits, bias, spec) is None
    verdict = judge([0, 1, 2], logits, bias, spec)
    assert verdict is not None
    assert "order" in verdict


@pytest.mark.parametrize("ids", [[0, 1], [1, 0]], ids=str)
def test_operands_that_cancel_leave_their_errors(ids: list[int]) -> None:
    """Scores of 1/2 are known to 2**-25 at best, however small the keys are."""
    assert judge(ids, [0, 0, -9, -9], [-0.5, -0.5 + 2**-25, -1, -1], SPEC) is None


def test_scores_below_the_normal_numbers_may_be_flushed() -> None:
    assert judge([0, 1], [-100, -95, -110, -98], [0] * 4, SPEC) is None
    assert judge([0, 1], [-100, -60, -110, -98], [0] * 4, SPEC) is not None


GROUPED = RouterSpec(8, 2, 4, 2, renormalize=False)


@pytest.mark.parametrize(
    ("ids", "bias", "why"),
    [
        pytest.param([0, 2], [0.0] * 8, "not the best groups|expert 1", id="equal groups"),
        pytest.param([4, 6], [0.0] * 8, "not the best groups", id="equal groups, last ones"),
        pytest.param([4, 5], [0, 0, 1, 1, 0, 0, 2, 2], "not the best groups", id="a worse group"),
        pytest.param([2, 0], [2, 0, 2, 0, 3, 0, 9, 0], "not the best groups", id="two worse"),
    ],
)
def test_groups(ids: list[int], bias: list[float], why: str) -> None:
    verdict = judge(ids, [0.0] * 8, bias, GROUPED)
    assert verdict is not None
    assert any(part in verdict for part in why.split("|"))


def test_too_many_groups() -> None:
    spec = RouterSpec(8, 3, 4, 2, renormalize=False)
    verdict = judge([0, 2, 4], [0, ULP, 2 * ULP, 0, 3 * ULP, 0, ULP, 0], [0.0] * 8, spec)
    assert verdict is not None
    assert "too many groups" in verdict


def test_a_group_near_the_cut_may_be_dropped() -> None:
    """Groups 1 and 2 are three units apart: with either, its best experts are right."""
    logits = [4, 4, 1, -3, 1 + 3 * ULP, -3, -5, -5]
    spec = RouterSpec(8, 3, 4, 2, renormalize=False)
    for third in (2, 4):
        assert judge([0, 1, third], logits, [0.0] * 8, spec) is None
    assert judge([0, 1, 6], logits, [0.0] * 8, spec) is not None


def test_sums_of_groups_overflow_as_in_float32() -> None:
    """Found by the search: both groups score infinity, so the first is kept."""
    spec = RouterSpec(8, 3, 2, 1, renormalize=False)
    logits = [0.0, 0.0, 1.0, 1 + ULP, 0.0, 0.0, 0.0, 0.0]
    bias = [2e38, 2e38, 0, 0, 3e38, 3e38, 0, 0]
    for third in (2, 3):
        assert judge([0, 1, third], logits, bias, spec) is None
    assert judge([4, 5, 6], logits, bias, spec) is not None


@pytest.mark.parametrize("index", [(0, 0), (2, 1)], ids=str)
@pytest.mark.parametrize("value", [1.0001, NAN, INF, 0.0], ids=str)
def test_wrong_weights_are_named(value: float, index: tuple[int, int]) -> None:
    logits: Tensor = torch.arange(12.0).reshape(3, 4) / 8
    weights, ids = reference_topk(logits, torch.zeros(4), SPEC)
    weights[index] *= value
    verdict = find_mismatch(weights, ids, logits, torch.zeros(4), SPEC)
    assert verdict is not None
    assert verdict.startswith(f"row {index[0]}: ids")


if __name__ == "__main__":
    run_file(__file__)
