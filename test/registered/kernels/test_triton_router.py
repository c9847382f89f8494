"""The Triton router under Triton's interpreter: numerics on any machine, no compiled code."""

from __future__ import annotations

import os
from itertools import pairwise

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

import pytest
import torch
import triton
from torch import Tensor

from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.ops import triton_router
from sglang_moe_ext.ops.compare import find_mismatch
from sglang_moe_ext.ops.reference import reference_topk
from sglang_moe_ext.ops.selfcheck import find_failure
from sglang_moe_ext.ops.spec import RouterSpec

register_cpu_ci(est_time=67, suite="base-a-test-cpu")

del os.environ["TRITON_INTERPRET"]  # the kernels are interpreted from now on; spare other tests
if isinstance(triton_router.route, triton.JITFunction):
    pytest.skip("triton came up without its interpreter: run this file alone", True)

SHAPES = {
    "256/8 g8 tg4": RouterSpec(256, 8, 8, 4),
    "256/8+1 g8 tg4": RouterSpec(256, 9, 8, 4, num_fused_shared_experts=1),
    "384/8": RouterSpec(384, 8),
    "128/6": RouterSpec(128, 6),
    "512/22": RouterSpec(512, 22),
    "896/16": RouterSpec(896, 16),
    "160/6 g8 tg3": RouterSpec(160, 6, 8, 3),
    "72/4+2 g9 tg4": RouterSpec(72, 6, 9, 4, num_fused_shared_experts=2),
    "8/4 g8 tg4, one expert to a group": RouterSpec(8, 4, 8, 4),
    "61/5, odd": RouterSpec(61, 5),
    "1/1": RouterSpec(1, 1),
}


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel leaves unwritten is NaN or -777."""
    new_empty = Tensor.new_empty

    def poisoned(tensor: Tensor, *size: object, **options: object) -> Tensor:
        new = new_empty(tensor, *size, **options)
        return new.fill_(torch.nan if new.is_floating_point() else -777)

    monkeypatch.setattr(Tensor, "new_empty", poisoned)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def route(logits: Tensor, bias: Tensor, spec: RouterSpec) -> tuple[Tensor, Tensor]:
    assert triton_router.supports(spec) is None
    return triton_router.prepare(spec).run(logits, bias)


def draw(tokens: int, experts: int, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens * 1000 + experts)
    logits = torch.randn(tokens, experts, generator=generator) * spread
    return logits, torch.randn(experts, generator=generator) / 10


def variant(spec: RouterSpec, **changes: object) -> RouterSpec:
    fields = {name: getattr(spec, name) for name in RouterSpec.__slots__}
    return RouterSpec(**(fields | changes))


@pytest.mark.parametrize("spec", SHAPES.values(), ids=SHAPES)
def test_every_shape(spec: RouterSpec) -> None:
    logits, bias = draw(5, spec.num_experts)
    assert find_mismatch(*route(logits, bias, spec), logits, bias, spec) is None


@pytest.mark.parametrize("renormalize", [True, False], ids=["renormalised", "raw"])
@pytest.mark.parametrize("applied", [True, False], ids=["scaled", "scaled later"])
def test_flags(renormalize: bool, applied: bool) -> None:
    spec = variant(
        SHAPES["72/4+2 g9 tg4"],
        renormalize=renormalize,
        routed_scaling_factor=2.5,
        apply_routed_scaling_factor_on_output=applied,
    )
    logits, bias = draw(4, spec.num_experts)
    assert find_mismatch(*route(logits, bias, spec), logits, bias, spec) is None


@pytest.mark.parametrize("bias_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype: torch.dtype, bias_dtype: torch.dtype) -> None:
    spec = RouterSpec(96, 6, logits_dtype=dtype, bias_dtype=bias_dtype)
    logits, bias = draw(4, 96)
    logits, bias = logits.to(dtype), bias.to(bias_dtype)
    assert find_mismatch(*route(logits, bias, spec), logits, bias, spec) is None


def test_bias_per_token() -> None:
    spec = RouterSpec(60, 4, per_token_bias=True)
    logits, _ = draw(5, 60)
    bias = draw(5, 61)[0][:, :60].contiguous()
    assert find_mismatch(*route(logits, bias, spec), logits, bias, spec) is None


@pytest.mark.parametrize("offset", [0, 1, 4], ids="column {}".format)
def test_rows_of_a_wider_tensor(offset: int) -> None:
    spec = RouterSpec(60, 4)
    wide, bias = draw(5, 72)
    logits = wide[:, offset : offset + 60]
    assert find_mismatch(*route(logits, bias[:60], spec), logits, bias[:60], spec) is None


@pytest.mark.parametrize(
    "spec",
    [RouterSpec(32, 4), RouterSpec(64, 6, 8, 4), RouterSpec(40, 5, 4, 2)],
    ids=str,
)
def test_built_batches_of_the_self_check(spec: RouterSpec) -> None:
    """Ties at the cut and in groups, large and negative biases, scores that underflow."""
    assert find_failure(triton_router.prepare(spec).run, spec, torch.device("cpu")) is None


def test_lower_id_first_among_equal_winners() -> None:
    logits, bias = torch.arange(128.0)[None] / -16, torch.zeros(128)
    logits[0, [41, 42]] = 2.0  # side by side: one lane holds both
    logits[0, [9, 100]] = 1.0
    assert route(logits, bias, RouterSpec(128, 6))[1].tolist() == [[41, 42, 9, 100, 0, 1]]


@pytest.mark.parametrize("spec", [SHAPES["512/22"], SHAPES["256/8 g8 tg4"]], ids=str)
def test_most_winners_in_one_lane(spec: RouterSpec) -> None:
    """Experts 4l..4l+3 of every chunk of 128 share lane l, which lists only four of them."""
    logits, bias = draw(4, spec.num_experts, spread=1.0)
    for row, lanes in enumerate([(0,), (5,), (5, 31), (30,)]):
        in_lanes = torch.isin(torch.arange(spec.num_experts) // 4 % 32, torch.tensor(lanes))
        logits[row, in_lanes] += 2.0 + row
    assert find_mismatch(*route(logits, bias, spec), logits, bias, spec) is None


def test_nan_ranks_last_and_weighs_nothing() -> None:
    spec = RouterSpec(32, 4)
    logits, bias = draw(4, 32)
    logits[0] = torch.nan
    logits[1, 3:] = torch.nan
    logits[2, ::2] = torch.nan
    weights, ids = route(logits, bias, spec)
    assert ids[0].tolist() == [0, 1, 2, 3]
    assert weights[0].tolist() == [0, 0, 0, 0]
    assert sorted(ids[1, :3].tolist()) == [0, 1, 2]
    assert (ids[1, 3].item(), weights[1, 3].item()) == (3, 0)
    assert find_mismatch(weights, ids, logits, bias, spec) is None


def test_nan_in_a_group_counts_as_banned() -> None:
    """Not as a second copy of the best: a maximum that drops NaN finds that twice."""
    logits = torch.full((2, 128), -5.0)
    logits[:, :2] = torch.tensor([torch.nan, 1.0])
    logits[:, 32:34] = torch.tensor([0.9, 0.8])
    weights, ids = route(logits, torch.zeros(128), RouterSpec(128, 2, 4, 1))
    assert ids.tolist() == [[32, 33]] * 2
    assert find_mismatch(weights, ids, logits, torch.zeros(128), RouterSpec(128, 2, 4, 1)) is None


@pytest.mark.parametrize("spec", [RouterSpec(32, 4), RouterSpec(32, 4, 4, 2)], ids=str)
def test_banned_and_forced_experts(spec: RouterSpec) -> None:
    logits, bias = draw(5, 32)
    logits[3] = torch.inf
    logits[4] = -torch.inf
    bias[:30] = -torch.inf
    bias[7] = torch.inf
    weights, ids = route(logits, bias, spec)
    assert ids[:, 0].tolist() == [7] * 5
    assert find_mismatch(weights, ids, logits, bias, spec) is None


@pytest.mark.parametrize("level", [0.0, -50.0, -90.0, -200.0, -3e38])
def test_equal_logits_weigh_the_same_at_every_level(level: float) -> None:
    logits = torch.full((2, 16), level)
    weights, _ = route(logits, torch.arange(16) / 100, RouterSpec(16, 4))
    assert torch.equal(weights, torch.full((2, 4), 0.25))


def test_ratios_of_scores_at_the_end_of_float32() -> None:
    """Found by the search on an H100: logits below -3e38 weighed nothing, or all the same."""
    logits, bias = torch.full((2, 16), -3.4e38), torch.arange(16) / 100
    logits[:, 3], bias[3] = -3.3e38, 1
    weights, ids = route(logits, bias, RouterSpec(16, 4))
    assert ids.tolist() == [[3, 15, 14, 13]] * 2
    torch.testing.assert_close(weights, torch.eye(4)[:1].expand(2, 4), rtol=0, atol=1e-37)


def test_small_scores_keep_their_precision() -> None:
    """Relative error of the sigmoid down to the smallest normal float32."""
    x = torch.linspace(-87, 20, 64)[None]
    spec = RouterSpec(64, 1, renormalize=False)
    for expert in range(0, 64, 7):
        bias = torch.zeros(64)
        bias[expert] = torch.inf
        weights, ids = route(x, bias, spec)
        assert ids.item() == expert
        # The interpreter rounds fma twice; compiled code is held to 1e-6.
        expected = x[0, expert].double().sigmoid().item()
        assert weights.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("spec", [RouterSpec(64, 6, 8, 4), RouterSpec(96, 6)], ids=str)
def test_a_row_does_not_depend_on_its_batch(spec: RouterSpec) -> None:
    logits, bias = draw(19, spec.num_experts)
    weights, ids = route(logits, bias, spec)
    for start, end in pairwise([0, 1, 2, 19]):
        part = route(logits[start:end], bias, spec)
        assert torch.equal(part[0], weights[start:end])
        assert torch.equal(part[1], ids[start:end])


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (RouterSpec(1025, 8), "1025 experts, at most 1024"),
        (RouterSpec(64, 33), "33 columns, at most 32"),
        (RouterSpec(64, 8, 64, 64), "64 groups, at most 32"),
        (RouterSpec(64, 8, device_type="meta"), "no Triton for meta tensors"),
        (RouterSpec(64, 8, device_type="xpu"), "this Triton has no driver for XPU"),
    ],
    ids=str,
)
def test_refusals_name_the_limit(spec: RouterSpec, reason: str) -> None:
    assert triton_router.supports(spec) == reason


def test_reference_disagrees_with_a_changed_answer() -> None:
    """The judge of this file can say no."""
    spec = SHAPES["128/6"]
    logits, bias = draw(2, 128)
    weights, ids = reference_topk(logits, bias, spec)
    assert find_mismatch(weights.flip(1), ids.flip(1), logits, bias, spec) is not None


if __name__ == "__main__":
    run_file(__file__)
