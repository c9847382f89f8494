"""Random router calls for the search: shapes, dtypes, strides, flags, values that break routers.

hypothesis draws which kinds meet; the numbers come from a seeded generator, so that an example
is a few words to print and quick to make.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from sglang_moe_ext.ops.spec import LOGITS_DTYPES, RouterSpec

INF, NAN = math.inf, math.nan
ULP = 2.0**-23
SPECIAL = (0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, 88.0, -88.0, -104.0, 3e38, -3e38, INF, -INF, NAN)


class Draw:
    """Seeded random tensors of one size."""

    def __init__(self, seed: int, *size: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._size = size

    def normal(self) -> Tensor:
        return torch.randn(self._size, generator=self._generator)

    def uniform(self) -> Tensor:
        return torch.rand(self._size, generator=self._generator)

    def integers(self, low: int, high: int) -> Tensor:
        """From low to high - 1, as float32."""
        return torch.randint(low, high, self._size, generator=self._generator).float()

    def choose(self, values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values)[self.integers(0, len(values)).long()]

    def one(self, values: tuple[float, ...]) -> float:
        return values[int(torch.randint(len(values), (), generator=self._generator))]

    def sprinkle(self, tensor: Tensor, value: float, share: float) -> Tensor:
        return torch.where(self.uniform() < share, value, tensor)


def _nan_logits(draw: Draw) -> Tensor:
    x = draw.sprinkle(draw.normal() * 3, NAN, 0.2)
    x[0] = NAN
    return x


def _one_hot(draw: Draw) -> Tensor:
    bias = torch.zeros_like(draw.normal())
    bias.view(-1)[int(draw.normal().argmax())] = draw.one((1.0, 1e4, 1e30, INF))
    return bias


LOGITS: dict[str, Callable[[Draw], Tensor]] = {
    "normal": lambda d: d.normal() * 3,
    "saturated": lambda d: d.normal() * 30,
    "levels": lambda d: d.integers(-2, 3),
    "constant": lambda d: torch.zeros_like(d.normal()) + d.one((0.0, 1.5, -7.0, -60.0)),
    "near ties": lambda d: d.integers(1, 3) * (1 + ULP * d.integers(0, 4)),
    "denormal": lambda d: d.integers(-8, 9) * 1e-45 + d.integers(-1, 2) * 1e-39,
    "huge": lambda d: d.normal().clamp(-3, 3) * 1e38,
    "underflow": lambda d: d.normal() * 50 - 200,
    "tail": lambda d: d.uniform() * -20 - 84,
    "infinite": lambda d: d.sprinkle(d.sprinkle(d.normal() * 3, INF, 0.1), -INF, 0.2),
    "NaN": _nan_logits,
    "special": lambda d: d.choose(SPECIAL),
}
BIASES: dict[str, Callable[[Draw], Tensor]] = {
    "zero": lambda d: torch.zeros_like(d.normal()),
    "normal": lambda d: d.normal() / 10,
    "levels": lambda d: d.integers(-2, 3) / 4,
    "near ties": lambda d: 1 + ULP * d.integers(0, 4),
    "offset": lambda d: d.normal() / 10 + d.one((-3.0, 7.0, 30.0, -1e4, 1e4)),
    "huge offset": lambda d: d.integers(0, 3) + d.one((1e6, -1e6, 1e30, -3e38)),
    "one hot": _one_hot,
    "denormal": lambda d: d.integers(-8, 9) * 1e-45,
    "banned": lambda d: d.sprinkle(d.normal() / 10, -INF, d.one((0.3, 0.9, 1.0))),
    "forced": lambda d: d.sprinkle(d.sprinkle(d.normal() / 10, INF, 0.1), -INF, 0.2),
    "NaN": lambda d: d.sprinkle(d.normal() / 10, NAN, 0.2),
    "special": lambda d: d.choose(SPECIAL),
}
ORDINARY = ("normal", "levels", "near ties", "saturated", "zero", "offset")

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "columns of a wider tensor": lambda t: _inside(t, 0, 5, 3),
    "every other row": lambda t: t.repeat_interleave(2, dim=0)[::2],
    "transposed": lambda t: t.t().contiguous().t(),
    "one row for all": lambda t: t[:1].expand_as(t),
}


def _inside(tensor: Tensor, *columns: int) -> Tensor:
    """A view of the same values, with NaN to its left and right."""
    left, right = columns[1], columns[2]
    wide = tensor.new_full((tensor.shape[0], left + tensor.shape[1] + right), NAN)
    wide[:, left : left + tensor.shape[1]] = tensor
    return wide[:, left : left + tensor.shape[1]]


@dataclass(frozen=True)
class Example:
    """One call; printed, it is the whole recipe.

    groups, kept, shared: G, TG, S. topk: columns, shared ones included. relation: which
        property beside equality is tried (see properties.py).
    """

    rows: int
    experts: int
    topk: int
    groups: int
    kept: int
    shared: int
    renormalize: bool
    factor: float | None
    apply: bool
    logits: str
    bias: str
    logits_dtype: torch.dtype
    bias_dtype: torch.dtype
    per_token_bias: bool
    layout: str
    bias_step: int
    relation: str
    seed: int

    def arguments(self) -> dict[str, object]:
        """Of `biased_grouped_topk`, beyond logits and bias."""
        return {
            "topk": self.topk,
            "renormalize": self.renormalize,
            "num_expert_group": self.groups,
            "topk_group": self.kept,
            "num_fused_shared_experts": self.shared,
            "routed_scaling_factor": self.factor,
            "apply_routed_scaling_factor_on_output": self.apply,
        }

    def spec(self) -> RouterSpec:
        factor = 1.0 if self.factor is None else self.factor
        return RouterSpec(
            self.experts,
            self.topk,
            self.groups,
            self.kept,
            self.shared,
            self.renormalize,
            factor,
            self.apply,
            self.logits_dtype,
            self.bias_dtype,
            self.per_token_bias,
        )

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Logits [T, E] and bias [E] or [T, E], with their strides."""
        logits = LOGITS[self.logits](Draw(self.seed, self.rows, self.experts))
        size = (self.rows, self.experts) if self.per_token_bias else (self.experts,)
        bias = BIASES[self.bias](Draw(self.seed + 1, *size)).to(self.bias_dtype)
        if self.bias_step > 1:
            bias = bias.repeat_interleave(self.bias_step, dim=-1)[..., :: self.bias_step]
        return LAYOUTS[self.layout](logits.to(self.logits_dtype)), bias


@dataclass(frozen=True)
class Limits:
    """What a backend is tried with.

    shapes: (E, G) pairs to take half of the examples from. experts: most of others.
    topk: most columns. groups: most. rows: most. only_shapes: take all from `shapes`.
    """

    shapes: tuple[tuple[int, int], ...]
    experts: int
    topk: int
    groups: int
    rows: int
    only_shapes: bool = False
    per_token_bias: bool = True


@st.composite
def examples(draw: st.DrawFn, limits: Limits, relations: tuple[str, ...]) -> Example:
    if limits.only_shapes or draw(st.booleans()):
        experts, groups = draw(st.sampled_from(limits.shapes))
    else:
        experts = draw(st.integers(1, limits.experts))
        divisors = [g for g in range(1, min(experts, limits.groups) + 1) if experts % g == 0]
        groups = draw(st.sampled_from(divisors))
    kept = draw(st.integers(1, groups))
    routed = draw(st.integers(1, min(kept * experts // groups, limits.topk)))
    shared = draw(st.sampled_from((0, 0, 0, 1, 2))) if routed + 2 <= limits.topk else 0
    ordinary = draw(st.booleans())
    kinds = [tuple(k for k in kinds if not ordinary or k in ORDINARY) for kinds in (LOGITS, BIASES)]
    return Example(
        rows=draw(st.sampled_from((1, 2, 3, 7, 16, 17, 24, 33, 129)[: limits.rows])),
        experts=experts,
        topk=routed + shared,
        groups=groups,
        kept=kept,
        shared=shared,
        renormalize=draw(st.booleans()),
        factor=draw(st.sampled_from((None, 1.0, 2.5, 0.125, -3.0, 1e-3))),
        apply=draw(st.booleans()),
        logits=draw(st.sampled_from(kinds[0])),
        bias=draw(st.sampled_from(kinds[1])),
        logits_dtype=draw(st.sampled_from(LOGITS_DTYPES)),
        bias_dtype=draw(st.sampled_from(LOGITS_DTYPES)),
        per_token_bias=limits.per_token_bias and draw(st.sampled_from((False, False, True))),
        layout=draw(st.sampled_from(tuple(LAYOUTS))),
        bias_step=draw(st.sampled_from((1, 1, 2))),
        relation=draw(st.sampled_from(relations)),
        seed=draw(st.integers(0, 2**32 - 1)),
    )
