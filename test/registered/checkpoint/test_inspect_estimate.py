"""The numpy router routes as the reference does, and its estimates hold where one can count."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_support.made_checkpoints import make_config

from sglang_moe_ext.checkpoint import estimate
from sglang_moe_ext.checkpoint.routing import Routing, routing_of
from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.ops.reference import reference_topk
from sglang_moe_ext.ops.spec import RouterSpec

register_cpu_ci(est_time=6, suite="base-a-test-cpu")

TOKENS = 300


def routing(experts: int, topk: int, groups: int = 1, kept: int = 1) -> Routing:
    return routing_of(
        make_config(
            "deepseek_v3",
            n_routed_experts=experts,
            num_experts_per_tok=topk,
            n_group=groups,
            topk_group=kept,
        )
    )


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "many ties"])
@pytest.mark.parametrize(
    ("experts", "topk", "groups", "kept"),
    [(256, 8, 8, 4), (384, 8, 1, 1), (60, 6, 6, 2), (8, 4, 8, 4), (160, 8, 1, 1)],
    ids=lambda value: str(value),
)
def test_selects_as_the_reference(
    experts: int, topk: int, groups: int, kept: int, ties: bool
) -> None:
    random = torch.Generator().manual_seed(experts)
    logits = torch.randn(TOKENS, experts, generator=random)
    bias = torch.rand(experts, generator=random)
    if ties:
        # Sums of multiples of 1/8 are exact, so that keys and group scores tie exactly.
        logits, bias = torch.zeros_like(logits), (8 * bias).round() / 8
    _, ids = reference_topk(logits, bias, RouterSpec(experts, topk, groups, kept))
    expected = torch.zeros(TOKENS, experts, dtype=torch.bool).scatter_(1, ids.long(), True)

    keys = (logits.sigmoid() + bias).numpy()
    assert (estimate.selected(keys, routing(experts, topk, groups, kept)) == expected.numpy()).all()


def test_rounds_as_torch() -> None:
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 10
    halfway = (torch.arange(-300, 300).float() + 0.5) / 128 + 2
    values = torch.cat([values, halfway, torch.tensor([0.0, -0.0, 1e-40, 3e38])])
    rounded = torch.from_numpy(estimate.round_to_bfloat16(values.numpy()))
    assert torch.equal(rounded, values.bfloat16().float())


def test_large_offset_small_spread() -> None:
    """ROUTING_FAILURES.md F13, whose 494 of 512 rows were counted with another router."""
    e, t = np.arange(256), np.arange(512)[:, None]
    bias = (6.817 + 0.246 * ((97 * e) % 256) / 255).astype(np.float32)
    logits = -6 + 2 * np.sin(0.7 * t + 1.3 * e)
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    assert estimate.moved_by_rounding(scores, bias, routing(256, 8), None) == 494 / 512


@pytest.mark.parametrize("spread", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("offset", [0.0, 1.0, 7.0])
def test_rounded_copy_tells_what_rounding_did(offset: float, spread: float) -> None:
    """The estimate from a bfloat16 copy alone is near the share that its rounding moved."""
    random = np.random.default_rng(int(10 * offset))
    gate = random.standard_normal((256, 512), np.float32) / 16
    exact = (offset + spread * random.standard_normal(256)).astype(np.float32)
    shape = routing(256, 8, 8, 4)
    scores = estimate.simulated_scores(gate, None, shape)
    truth = estimate.moved_by_rounding(scores, exact, shape, None)
    copy = estimate.round_to_bfloat16(exact)
    assert estimate.moved_by_rounding(scores, copy, shape, 8) == pytest.approx(truth, abs=0.08)


def test_bias_that_survives_moves_nobody() -> None:
    scores = np.random.default_rng(0).random((512, 32), np.float32)
    bias = np.linspace(0, 31, 32, dtype=np.float32)
    assert estimate.moved_by_rounding(scores, bias, routing(32, 4), None) == 0


def test_scores_of_large_logits_are_finite() -> None:
    gate = np.full((32, 64), 1e3, np.float32)
    scores = estimate.simulated_scores(gate, np.full(64, 10, np.float32), routing(32, 4))
    assert np.isfinite(scores).all()
    assert scores.min() == 0
    assert scores.max() == 1


if __name__ == "__main__":
    run_file(__file__)
