"""The `triton` backend: binds the kernel of ops/triton_kernels.py to a specification."""

from __future__ import annotations

import sys
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from sglang_moe_ext import limits
from sglang_moe_ext.ops.backend import Prepared
from sglang_moe_ext.ops.spec import RouterSpec
from sglang_moe_ext.ops.triton_kernels import route
from sglang_moe_ext.ops.triton_select import LANES

CHUNK = 4 * LANES  # experts, the least that a row is padded to


class Launch(NamedTuple):
    """How the kernel runs on one kind of device: programs of one warp to a row.

    lane_lists: select from the four best of every lane, else by rounds over the whole row.
    many: from so many tokens on, `rows` of up to `wide` padded experts share a program.
    """

    lane_lists: bool
    many: int
    rows: int
    wide: int


# H200, microseconds of a captured call, one row to a program / four: 256/8g8tg4 3.0/3.9 at 1024
# tokens, 5.4/5.6 at 4096, 10.5/8.1 at 8192; 128/6 1.8/2.3, 5.4/3.7, 10.2/5.2; 896/16 4.9/5.2,
# 9.7/10.0, 15.3/16.8. Eight rows to a program, or several warps to a row, gain nothing. ROCm
# and XPU were never measured: rounds of whole-row maxima are known to run there.
LAUNCH = MappingProxyType(
    {
        "cuda": Launch(lane_lists=True, many=4096, rows=4, wide=512),
        "hip": Launch(lane_lists=False, many=4096, rows=4, wide=512),
        "xpu": Launch(lane_lists=False, many=4096, rows=4, wide=512),
        "interpreter": Launch(lane_lists=True, many=2, rows=16, wide=1024),
    }
)


def supports(spec: RouterSpec) -> str | None:
    kind = _kind(spec.device_type)
    if kind is None:
        return f"no Triton for {spec.device_type} tensors"
    if kind == "xpu" and not _has_xpu_driver():
        return "this Triton has no driver for XPU"
    return limits.triton_refusal(spec)


def prepare(spec: RouterSpec) -> Prepared:
    kind = _kind(spec.device_type)
    assert kind is not None, "prepare() follows a supports() that returned None"
    launch = LAUNCH[kind]
    groups, per_group = _groups(spec)
    pdl = kind == "cuda" and torch.cuda.get_device_capability() >= (9, 0)
    constants = (*_constants(spec), launch.lane_lists, kind == "cuda", pdl)
    # XPU and ROCm reject the very keyword, even as False.
    options = {"launch_pdl": True} if pdl else {}
    many = launch.many if groups * per_group <= launch.wide else sys.maxsize
    compiled: dict[int, Any] = {}

    def run(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        T = logits.shape[0]
        weights = logits.new_empty((T, spec.topk), dtype=torch.float32)
        ids = logits.new_empty((T, spec.topk), dtype=torch.int32)
        row_stride = logits.stride(0)
        rows = 1 if many > T else launch.rows
        grid = ((T + rows - 1) // rows, 1, 1)
        if (logits.data_ptr() | bias.data_ptr()) % 16 or row_stride % 4:
            unaligned = (logits, bias, weights, ids, T, row_stride, False, rows, *constants)
            route[grid](*unaligned, num_warps=rows, **options)
            return weights, ids
        arguments = (logits, bias, weights, ids, T, row_stride, True, rows, *constants)
        # A compiled kernel is launched directly: Triton's own launcher finds it anew by every
        # argument of every call, which takes longer than the kernel runs.
        kernel = compiled.get(rows)
        if kernel is not None:
            kernel[grid](*arguments)
        else:
            compiled[rows] = route[grid](*arguments, num_warps=rows, **options)
        return weights, ids

    return Prepared(run, f"{kind} kernel" + (", programmatic dependent launch" if pdl else ""))


def _kind(device_type: str) -> str | None:
    """Row of LAUNCH for a device type, None if Triton cannot compile for it."""
    if device_type == "cuda":
        return "hip" if torch.version.hip else "cuda"
    if device_type == "xpu":
        return "xpu"
    if device_type == "cpu" and triton.knobs.runtime.interpret:
        return "interpreter"
    return None


def _has_xpu_driver() -> bool:
    """Importing Triton finds a driver or not; without one, its first launch raises."""
    try:
        return bool(triton.runtime.driver.active.get_current_target().backend == "xpu")
    except RuntimeError:
        return False


def _groups(spec: RouterSpec) -> tuple[int, int]:
    """Groups and experts of each, padded to powers of two and at least one chunk together."""
    groups = triton.next_power_of_2(spec.num_expert_group)
    return groups, max(triton.next_power_of_2(spec.experts_per_group), CHUNK // groups)


def _constants(spec: RouterSpec) -> tuple[Any, ...]:
    """The kernel's constants from E to TOKEN_BIAS, in order."""
    return (
        spec.num_experts,
        spec.topk,
        spec.num_fused_shared_experts,
        spec.num_expert_group,
        spec.topk_group,
        *_groups(spec),
        spec.renormalize,
        spec.output_scale,
        spec.shared_weight,
        spec.per_token_bias,
    )
