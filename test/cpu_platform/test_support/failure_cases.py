"""Built inputs for routing failures that reached users, with the only right answer to each.

The names are the failure classes; each `what` says what a wrong router does. Logits of 0
score 0.5 exactly, so dyadic biases make exact keys and ties are real ties.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

INF, NAN = math.inf, math.nan


@dataclass(frozen=True)
class Case:
    """One row (or batch) and the answer.

    ids: expected ids, the same for every row. weights: expected, or None if not the point.
    arguments: of `biased_grouped_topk` beyond logits, bias and topk; renormalize is True.
    """

    failure: str
    what: str
    logits: Tensor  # [T, E]
    bias: Tensor  # [E]
    ids: Sequence[int]
    weights: Sequence[float] | None = None
    arguments: dict[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.failure}-{self.what}".replace(" ", "-")


def row(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor([values], dtype=dtype)


def bias(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def shares(*logits: float) -> list[float]:
    """Renormalised sigmoid scores, in Python's float64."""
    scores = [1 / (1 + math.exp(-x)) for x in logits]
    return [score / sum(scores) for score in scores]


def groups(G: int, TG: int, **more: object) -> dict[str, object]:
    return {"num_expert_group": G, "topk_group": TG, **more}


def in_four_groups(*members: Sequence[float]) -> Tensor:
    """A bias [128] in four groups of 32, a shape with a kernel on every device.

    members: the biases of the first groups' first experts; every other one is -8.
    """
    full = torch.full((4, 32), -8.0)
    for group, values in enumerate(members):
        full[group, : len(values)] = torch.tensor(values)
    return full.view(128)


zeros8, zeros128 = torch.zeros(1, 8), torch.zeros(1, 128)
rising8 = torch.arange(8) / 10
QUARTERS, HALVES = [0.25] * 4, [0.5] * 2

CASES = (
    Case("F01", "second best of a tied group lost", zeros8, bias(1, 1, 0, 0, 1.25, 0.5, 0, 0),
         [0, 1], HALVES, groups(2, 1)),
    Case("F02", "group of equals scores minus infinity", zeros8,
         bias(1, 1, 1, 1, 0.25, 0.125, 0, 0), [0, 1], HALVES, groups(2, 1)),
    Case("F03", "dropped groups masked with zero", zeros8,
         bias(-1, -1, -1, -1, -0.625, -0.625, -2, -2), [4, 5], HALVES, groups(2, 1)),
    Case("F04", "running maximum seeded too high", torch.zeros(1, 4), bias(-3, -2.5, -4, -2.75),
         [1, 3], HALVES),
    Case("F05", "group score is the maximum, not the top two", zeros8,
         bias(0.375, -0.375, -0.5, -0.5, 0.25, 0.125, -0.5, -0.5), [4, 5], HALVES, groups(2, 1)),
    Case("F01", "second best of a tied group lost, 128 experts", zeros128,
         in_four_groups([1, 1], [1.25, 0.5]), [0, 1], HALVES, groups(4, 1)),
    Case("F02", "group of equals scores minus infinity, 128 experts", zeros128,
         in_four_groups([1] * 32, [0.25, 0.125]), [0, 1], HALVES, groups(4, 1)),
    Case("F03", "dropped groups masked with zero, 128 experts", zeros128,
         in_four_groups([-1] * 32, [-0.625, -0.625]), [32, 33], HALVES, groups(4, 1)),
    Case("F05", "group score is the maximum, 128 experts", zeros128,
         in_four_groups([0.375, -0.375], [0.25, 0.125]), [32, 33], HALVES, groups(4, 1)),
    Case("F06", "ties depend on the batch, grouped", torch.zeros(7, 256), torch.zeros(256),
         list(range(8)), [0.125] * 8, groups(8, 4)),
    Case("F06", "nine equal keys around the eighth place", torch.zeros(3, 64),
         torch.tensor([0.5] * 4 + [0.25] * 9 + [0.0] * 51), list(range(8)), [0.125] * 8),
    Case("F07", "a tie across the cut makes NaN", -20 - 0.01 * torch.arange(256.0)[None],
         torch.full((256,), 11.25), list(range(8)),
         shares(*(-20 - 0.01 * e for e in range(8)))),
    Case("F09", "experts beyond a thread's capacity", torch.where(
        torch.arange(512) < 502, -4.0, 4.0)[None], torch.zeros(512), list(range(502, 512)),
        [0.1] * 10),
    Case("F10", "a NaN row fills every slot with one id", torch.full((2, 128), NAN),
         torch.zeros(128), list(range(8)), [0.0] * 8),
    Case("F10", "plus infinity in the logits", row(0, INF, -1, -2), bias(0, 0, 0, 0), [1, 0],
         [2 / 3, 1 / 3]),
    Case("F11", "a NaN logit is chosen first", row(0, 0, 0, NAN, 0, 0, 0, 0), rising8,
         [7, 6, 5, 4], QUARTERS),
    Case("F12", "banned experts get weight", zeros8, bias(0, 0, *[-INF] * 6), [0, 1, 2, 3],
         [0.5, 0.5, 0, 0]),
    Case("F12", "a forced expert loses its group", zeros8,
         bias(0.5, 0.5, 0.5, 0.5, -INF, INF, -INF, -INF), [5, 4], [1.0, 0.0], groups(2, 1)),
    Case("F13", "bias rounded to bfloat16", torch.zeros(1, 2), bias(7.0, 7.01), [1], [1.0]),
    Case("F14", "scores rounded to the logits' type", row(7, 8, dtype=torch.bfloat16), bias(0, 0),
         [1], [1.0]),
    Case("F17", "sigmoid flushed to zero", -20 - torch.arange(16.0)[None], torch.zeros(16),
         list(range(8)), shares(*range(-20, -28, -1))),
    Case("F18", "weights recovered as key minus bias", row(-18, -17, 0, 0), bias(12, 12, 0, 0),
         [0, 1], shares(-18, -17)),
    Case("F19", "zero over zero when scores underflow", torch.full((1, 8), -200.0),
         torch.arange(8) / 100, [7, 6, 5, 4], QUARTERS),
    Case("F20", "an epsilon swallows small sums", torch.full((1, 8), -50.0), rising8,
         [7, 6, 5, 4], QUARTERS),
    Case("F21", "weights taken from biased keys", torch.zeros(1, 4), bias(3, 1, 0, 0), [0, 1],
         HALVES),
    *(
        Case("F22", f"factor with renormalise {r:d} apply {a:d}", zeros8, rising8,
             [7, 6, 5, 4], [total / 4] * 4, {"renormalize": r, "routed_scaling_factor": 2.5,
             "apply_routed_scaling_factor_on_output": a})
        for r, a, total in ((True, True, 2.5), (True, False, 1.0), (False, True, 5.0),
                            (False, False, 2.0))
    ),
    Case("F22", "no factor given but applied", zeros8, rising8, [7, 6, 5, 4], QUARTERS,
         {"apply_routed_scaling_factor_on_output": True}),
    Case("F23", "shared slot scaled twice", zeros8, rising8, [7, 6, 8], [1.25, 1.25, 1.0],
         {"num_fused_shared_experts": 1, "routed_scaling_factor": 2.5,
          "apply_routed_scaling_factor_on_output": True}),
    Case("F23", "shared slot not prepared for a later factor", zeros8, rising8, [7, 6, 8],
         [0.5, 0.5, 0.4], {"num_fused_shared_experts": 1, "routed_scaling_factor": 2.5}),
    Case("F23", "shared slot without renormalising", zeros8, rising8, [7, 6, 8], [0.5, 0.5, 0.4],
         {"num_fused_shared_experts": 1, "routed_scaling_factor": 2.5, "renormalize": False}),
    Case("F24", "a routed expert in the shared column", zeros8, rising8, [7, 6, 8], None,
         {"num_fused_shared_experts": 1}),
    Case("F25", "two shared slots share one column", zeros8, rising8, [7, 6, 8, 9],
         [0.5, 0.5, 0.4, 0.4], {"num_fused_shared_experts": 2, "routed_scaling_factor": 2.5}),
    Case("F27", "one group given as 1 and 1", zeros8, rising8, [7, 6, 5, 4], None, groups(1, 1)),
    Case("F27", "one group given as 0 and 0", zeros8, rising8, [7, 6, 5, 4], None, groups(0, 0)),
    Case("F33", "experts not a power of two", torch.zeros(5, 60), torch.arange(60) / 64,
         [59, 58, 57, 56], QUARTERS, groups(6, 3)),
    Case("F34", "groups of one expert", zeros8, rising8, [7, 6, 5, 4], QUARTERS, groups(8, 4)),
)  # fmt: skip
