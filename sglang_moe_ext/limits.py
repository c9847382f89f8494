"""Which shapes a backend takes, without importing it: no torch, no kernels.

The routers of ops/ refuse by these tables, and `inspect` reads them beside a checkpoint of
hundreds of gigabytes on a machine that may have none of the libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

# Per device type, fastest first; PORTABLE ends every list.
PREFERENCE = MappingProxyType(
    {"cpu": ("cpu",), "cuda": ("triton",), "xpu": ("xpu", "triton")},
)
PORTABLE = ("torch", "reference")
# What a backend is built on.
LIBRARIES = MappingProxyType({"cpu": "numba", "triton": "triton", "xpu": "sgl_kernel"})

TRITON_EXPERTS, TRITON_TOPK, TRITON_GROUPS = 1024, 32, 32
# (experts, groups) that moe_fused_gate is compiled for. For every other pair it takes
# topk_group for the number of groups and silently returns wrong experts.
COMPILED_PAIRS = ((128, 4), (128, 8), (256, 8), (256, 16), (512, 16))


class Shape(Protocol):
    """What the limits are about; see ops/spec.py."""

    @property
    def num_experts(self) -> int: ...
    @property
    def topk(self) -> int: ...
    @property
    def topk_routed(self) -> int: ...
    @property
    def num_expert_group(self) -> int: ...
    @property
    def topk_group(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Rule:
    """An operation of Intel's sgl_kernel, what it takes as (text, test) pairs, and what it
    does to anything else."""

    operation: str
    takes: tuple[tuple[str, Callable[[Shape], bool]], ...]
    otherwise: str

    def refusal(self, shape: Shape) -> str | None:
        for text, holds in self.takes:
            if not holds(shape):
                return f"{self.operation} takes {text}, {self.otherwise}"
        return None


_UNGROUPED: tuple[str, Callable[[Shape], bool]] = (
    "one group, or all groups kept",
    lambda s: s.topk_group == s.num_expert_group,  # no group is ever dropped
)

# The first that serves wins.
XPU_RULES = (
    Rule(
        "topk_sigmoid",
        (
            _UNGROUPED,
            ("at most 256 experts", lambda s: s.num_experts <= 256),
            ("at most top-8", lambda s: s.topk_routed <= 8),
        ),
        otherwise="raises otherwise",
    ),
    Rule(
        "moe_fused_gate",
        (
            (
                "experts/groups " + ", ".join(f"{e}/{g}" for e, g in COMPILED_PAIRS),
                lambda s: (s.num_experts, s.num_expert_group) in COMPILED_PAIRS,
            ),
            ("at most top-8", lambda s: s.topk_routed <= 8),
        ),
        otherwise="is silently wrong or untested otherwise",
    ),
    Rule(
        "biased_topk",
        (
            _UNGROUPED,
            ("at most 512 experts", lambda s: s.num_experts <= 512),
            ("at most top-16", lambda s: s.topk_routed <= 16),
        ),
        otherwise="raises otherwise",
    ),
)


def xpu_refusal(shape: Shape) -> str | None:
    """Why no operation of sgl_kernel takes the shape, None if one does."""
    refusals = [rule.refusal(shape) for rule in XPU_RULES]
    return None if None in refusals else "; ".join(why for why in refusals if why)


def triton_refusal(shape: Shape) -> str | None:
    for name, found, limit in (
        ("experts", shape.num_experts, TRITON_EXPERTS),
        ("columns", shape.topk, TRITON_TOPK),
        ("groups", shape.num_expert_group, TRITON_GROUPS),
    ):
        if found > limit:
            return f"{found} {name}, at most {limit}"
    return None


def refusal(backend: str, shape: Shape) -> str | None:
    """Why a backend does not take a shape on its own device, None if it does."""
    checks = {"xpu": xpu_refusal, "triton": triton_refusal}
    return checks[backend](shape) if backend in checks else None
