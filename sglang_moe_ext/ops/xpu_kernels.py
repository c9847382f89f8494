"""Which routing operations of Intel's `sgl_kernel` this process has, told by their schemas.

Version strings say nothing: every commit of a year calls itself 0.1.8, and the CUDA package
has the same import name. So an operation counts if it has a kernel for the XPU dispatch key,
if its argument names are those of a known variant, and if its Python wrapper agrees.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from sglang_moe_ext import notice
from sglang_moe_ext.notice import describe

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A usable operation: `variant` as in VARIANTS, `call` its Python wrapper."""

    name: str
    variant: str
    call: Callable[..., Any]

    def __str__(self) -> str:
        return f"sgl_kernel.{self.name} ({self.variant})"


_SIGMOID = (
    "topk_weights",
    "topk_indices",
    "gating_output",
    "renormalize",
    "correction_bias",
)
_GATE = ("input", "bias", "num_expert_group", "topk_group", "topk", "num_fused_shared_experts")
_SCALE = ("routed_scaling_factor", "apply_routed_scaling_factor_on_output")
_BIASED = ("input", "bias", "output", "indices", "topk", "scoring_func", "num_fused_shared_experts")

# Operation -> argument names of its schema -> variant; commits of sgl-kernel-xpu.
VARIANTS: dict[str, dict[tuple[str, ...], str]] = {
    "topk_sigmoid": {
        _SIGMOID: "S1",  # e8670ada, 2026-05-08
        (*_SIGMOID, "routed_scaling_factor", "num_fused_shared_experts"): "S2",  # 9647e179
    },
    "moe_fused_gate": {
        (*_GATE, *_SCALE): "F1",  # cff40041, 2026-01-19
        (*_GATE, "scoring_func", "renormalize", *_SCALE): "F2",  # 79fdda65, 2026-07-15
    },
    "biased_topk": {
        (*_BIASED, "renormalize", *_SCALE): "B1",  # 2542f5f4, 2026-07-29
    },
}
# What the adapters pass to a wrapper by keyword, per variant.
KEYWORDS: dict[str, tuple[str, ...]] = {
    "S1": (),
    "S2": (),
    "F1": _SCALE,
    "F2": ("renormalize", "scoring_func", *_SCALE),
    "F3": ("renormalize", "scoring_func", *_SCALE),
    "B1": ("scoring_func",),
}


@cache
def find(name: str) -> Kernel | str:
    """The operation, or the reason why it cannot be used."""
    try:
        import sgl_kernel
    except Exception as error:  # a library built for another PyTorch raises anything
        reason = f"sgl_kernel cannot be imported: {describe(error)}"
        notice.once(logger.error, f"sglang-moe-ext: {reason}; its operations do not serve")
        return reason
    packet = getattr(torch.ops.sgl_kernel, name, None)
    if packet is None:
        return f"this sgl_kernel has no operation {name}"
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"sgl_kernel::{name}", "XPU"):
        return f"this sgl_kernel has {name} for other devices only, not for XPU"
    arguments = packet.default._schema.arguments
    names = tuple(argument.name for argument in arguments)
    variant = VARIANTS[name].get(names)
    if variant is None:
        return f"{name} has unknown arguments ({', '.join(names)}); newer than this package?"
    if variant == "F2" and isinstance(arguments[1].type, torch.OptionalType):
        variant = "F3"  # 6a211ffc, 2026-07-17
    wrapper = getattr(sgl_kernel, name, None)
    if wrapper is None:
        return f"this sgl_kernel has the operation {name} but no Python function for it"
    missing = set(KEYWORDS[variant]) - set(inspect.signature(wrapper).parameters)
    if missing:
        return f"the Python function {name} lacks {', '.join(sorted(missing))} of its operation"
    if variant == "S1" and not _takes_float32(wrapper):
        return "topk_sigmoid takes no float32 logits here (sgl-kernel-xpu before 318fa6d6)"
    return Kernel(name, variant, wrapper)


def _takes_float32(topk_sigmoid: Callable[..., Any]) -> bool:
    """The schema doesn't say; one launch on the device does."""
    weights = torch.empty(1, 1, device="xpu")
    ids = torch.empty(1, 1, dtype=torch.int32, device="xpu")
    try:
        topk_sigmoid(weights, ids, torch.zeros(1, 8, device="xpu"), False)
    except NotImplementedError:
        return False
    return True
