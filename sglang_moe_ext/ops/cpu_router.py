"""Routing on a CPU: launches the compiled kernel, on torch's threads when there is much to do."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numba
import torch
from torch import Tensor

from sglang_moe_ext.ops.backend import Prepared
from sglang_moe_ext.ops.cpu_kernels import compiled
from sglang_moe_ext.ops.cpu_layout import BFLOAT16, FLOAT16, FLOAT32, Call
from sglang_moe_ext.ops.spec import RouterSpec

_DTYPES = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
# torch's own grain: with fewer logits a second thread costs more than it saves.
_SERIAL_LOGITS = 1 << 15


def supports(spec: RouterSpec) -> str | None:
    if spec.device_type != "cpu":
        return f"tensors are on {spec.device_type}, expected cpu"
    return None


def prepare(spec: RouterSpec) -> Prepared:
    """Compile the kernel on first use in a machine's life, load it from numba's cache later."""
    kernel, fork = _kernel(), _team_of_torch()
    route, address = kernel.ctypes, kernel.address
    K, E = spec.topk, spec.num_experts
    logits_size, bias_size = spec.logits_dtype.itemsize, spec.bias_dtype.itemsize
    rows_in_serial = max(_SERIAL_LOGITS // E, 1)
    constants = (
        _DTYPES[spec.logits_dtype],
        _DTYPES[spec.bias_dtype],
        E,
        spec.num_expert_group,
        spec.topk_group,
        K,
        spec.topk_routed,
        spec.renormalize,
        spec.output_scale,
        spec.shared_weight,
    )
    bias_stride = E * bias_size if spec.per_token_bias else 0

    def run(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        rows = logits.size(0)
        # torch.empty takes 0.4 us longer: it also looks for a memory format.
        weights = torch.empty_strided((rows, K), (K, 1), dtype=torch.float32)
        ids = torch.empty_strided((rows, K), (K, 1), dtype=torch.int32)
        call = Call(
            0,
            rows,
            logits.data_ptr(),
            logits.stride(0) * logits_size,
            bias.data_ptr(),
            bias_stride,
            weights.data_ptr(),
            ids.data_ptr(),
            *constants,
        )
        if rows <= rows_in_serial or fork is None or (threads := torch.get_num_threads()) == 1:
            route(ctypes.byref(call))
        else:
            fork(address, ctypes.byref(call), threads, 0)
        return weights, ids

    threading = "torch's OpenMP threads" if fork else "one thread, torch has no OpenMP"
    return Prepared(run, f"numba {numba.__version__}, 16 lanes, {threading}")


@functools.cache
def _kernel() -> Any:
    return compiled()


@functools.cache
def _team_of_torch() -> Callable[..., None] | None:
    """GNU OpenMP's fork of a parallel region, None where torch does not use OpenMP.

    Not numba's own threads: a second pool beside torch's would fight it for the cores,
    numba's workqueue ends the process when two threads enter it, and its OpenMP layer can be
    another runtime than torch's. The global symbol is the one that torch itself resolves
    (its libgomp, or a preloaded libiomp5), so the threads are those that just ran its
    operators, and a fork or spawn is as safe as it is for torch. The team has torch's size
    even when there are fewer tiles: libgomp ends the threads that a smaller team leaves out.
    """
    if "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return None
    try:
        fork = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError):
        return None
    fork.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    fork.restype = None
    return fork
