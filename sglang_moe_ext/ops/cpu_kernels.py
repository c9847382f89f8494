"""The router on a CPU, in tiles of sixteen rows.

Wide steps work on one row, lanes being experts; narrow ones (groups, weights) on the whole
tile, lanes being rows. The mathematics is that of `reference.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

from sglang_moe_ext.ops import cpu_layout, cpu_scores, cpu_select, cpu_simd
from sglang_moe_ext.ops.cpu_layout import Call, Scratch, Shape, lay_out, shape_of
from sglang_moe_ext.ops.cpu_scores import gather_logits, rank_experts, weigh
from sglang_moe_ext.ops.cpu_select import find_group_tops, find_near, keep_groups, place_selected
from sglang_moe_ext.ops.cpu_simd import (
    LANES,
    Pointer,
    advance,
    as_bits,
    f32,
    fetch_add,
    i32,
    ints,
    jit,
    store,
)

_SIGNATURE = numba.types.void(numba.types.voidptr)
_CALL = np.dtype(Call)


@jit
def route_tile(call: Call, start: int, rows: int, shape: Shape, scratch: Scratch) -> None:
    x, x_stride, x_dtype = call.logits, call.logits_stride, call.logits_dtype
    for row in range(rows):
        keys = advance(scratch.keys, row * shape.slots)
        bias = call.bias + (start + row) * call.bias_stride
        rank_experts(keys, x + (start + row) * x_stride, x_dtype, bias, call.bias_dtype, shape)
        if shape.G > 1:
            find_group_tops(keys, scratch.best, scratch.second, row, shape)
    keep_groups(scratch, shape)
    for row in range(rows):
        find_near(scratch, row, shape)
    for row in range(rows):
        place_selected(scratch, row, shape)
        gather_logits(scratch, x + (start + row) * x_stride, x_dtype, row, shape)
    weigh(scratch, x_dtype, call.renormalize, call.output_scale, shape)
    for row in range(rows):
        at = (start + row) * shape.K
        for j in range(shape.K):
            ints(call.ids)[at + j] = scratch.ids[j * LANES + row]
            ints(call.weights)[at + j] = scratch.values[j * LANES + row]


@jit
def route_tiles(address: Pointer, call: Call, shape: Shape, memory: Any) -> None:
    """Take tiles until none is left; the caller owns `memory`, so it outlives the pointers."""
    scratch, _ = lay_out((memory.ctypes.data + 63) // 64 * 64, shape)
    for j in range(shape.R, shape.K):
        store(scratch.ids, j * LANES, i32(call.num_experts + j - shape.R))
        store(scratch.values, j * LANES, as_bits(f32(call.shared_weight)))
    start = fetch_add(address, LANES)
    while start < call.rows:
        route_tile(call, start, min(LANES, call.rows - start), shape, scratch)
        start = fetch_add(address, LANES)


def compiled() -> Any:
    """The C function `route(Call *)`: any number of threads may serve one call together.

    Compiled once, then loaded from numba's cache (NUMBA_CACHE_DIR, else beside this file,
    else in the user's cache directory); compiled anew where none of them can be written.
    """
    route = _route(_digest())
    try:
        return numba.cfunc(_SIGNATURE, cache=True)(route)
    except Exception:  # no place for a cache, a full disk, or one that holds rubbish
        return numba.cfunc(_SIGNATURE)(route)


def _route(digest: int) -> Callable[[Pointer], None]:
    def route(address: Pointer) -> None:
        _ = digest
        call = numba.carray(address, 1, _CALL)[0]
        shape = shape_of(call)
        route_tiles(address, call, shape, np.empty(lay_out(64, shape)[1], np.uint8))

    return route


def _digest() -> int:
    """Of the sources: numba's cache looks at this file and the closure, not at what is called."""
    sources = (cpu_layout, cpu_scores, cpu_select, cpu_simd)
    text = b"".join(Path(str(module.__file__)).read_bytes() for module in sources)
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big")
