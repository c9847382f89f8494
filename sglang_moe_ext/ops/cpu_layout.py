"""What the CPU kernel is told, and the memory that a thread works in."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from sglang_moe_ext.ops.cpu_simd import LANES, Pointer, inline, ints

FLOAT32, BFLOAT16, FLOAT16 = range(3)


class Call(ctypes.Structure):
    """One call. Addresses and strides are in bytes; a bias that rows share has stride 0."""

    _fields_ = (
        ("next_row", ctypes.c_int64),  # threads take tiles from here
        ("rows", ctypes.c_int64),
        ("logits", ctypes.c_int64),
        ("logits_stride", ctypes.c_int64),
        ("bias", ctypes.c_int64),
        ("bias_stride", ctypes.c_int64),
        ("weights", ctypes.c_int64),
        ("ids", ctypes.c_int64),
        ("logits_dtype", ctypes.c_int64),
        ("bias_dtype", ctypes.c_int64),
        ("num_experts", ctypes.c_int64),
        ("num_expert_group", ctypes.c_int64),
        ("topk_group", ctypes.c_int64),
        ("topk", ctypes.c_int64),
        ("topk_routed", ctypes.c_int64),
        ("renormalize", ctypes.c_int64),
        ("output_scale", ctypes.c_double),
        ("shared_weight", ctypes.c_double),
    )


class Shape(NamedTuple):
    G: int  # groups
    TG: int  # groups kept
    K: int  # columns of the output
    R: int  # columns that hold routed experts
    width: int  # experts per group
    vectors: int  # per group: every group starts on a vector of its own
    slots: int  # keys per row, those of no expert included


class Scratch(NamedTuple):
    """int32 memory of one thread; where LANES comes last, a lane is a row of the tile."""

    keys: Pointer  # [LANES, slots]
    near_keys: Pointer  # [LANES, slots + LANES] keys that reach the lower bound, in id order
    near_ids: Pointer  # [LANES, slots + LANES]
    near_count: Pointer  # [LANES]
    best: Pointer  # [G, LANES] the largest key of a group, then the group's score
    second: Pointer  # [G, LANES] the second largest, then how many groups are ahead
    kept: Pointer  # [LANES, G + 1] groups kept, ascending
    tops: Pointer  # [2, LANES] maxima of the strided blocks of one row
    ids: Pointer  # [K + 1, LANES] selected and shared; the last takes what was not selected
    selected_keys: Pointer  # [K + 1, LANES]
    values: Pointer  # [K, LANES] logits of the selected, then weights
    places: Pointer  # [slots + LANES] how many near keys of one row are larger
    queue: Pointer  # [R + LANES] the next free place at or after each place


@inline
def shape_of(call: Call) -> Shape:
    G = call.num_expert_group
    width = call.num_experts // G
    vectors = (width + LANES - 1) // LANES
    slots = G * vectors * LANES
    return Shape(G, call.topk_group, call.topk, call.topk_routed, width, vectors, slots)


@inline
def lay_out(at: int, shape: Shape) -> tuple[Scratch, int]:
    """The arrays of `Scratch` from address `at` on, and the address behind them."""
    row, near = 4 * LANES, shape.slots + LANES
    keys, at = ints(at), at + row * shape.slots
    near_keys, at = ints(at), at + row * near
    near_ids, at = ints(at), at + row * near
    near_count, at = ints(at), at + row
    best, at = ints(at), at + row * shape.G
    second, at = ints(at), at + row * shape.G
    kept, at = ints(at), at + row * (shape.G + 1)
    tops, at = ints(at), at + row * 2
    ids, at = ints(at), at + row * (shape.K + 1)
    selected_keys, at = ints(at), at + row * (shape.K + 1)
    values, at = ints(at), at + row * shape.K
    places, at = ints(at), at + 4 * near
    queue, at = ints(at), at + 4 * (shape.R + LANES)
    arrays = Scratch(
        keys,
        near_keys,
        near_ids,
        near_count,
        best,
        second,
        kept,
        tops,
        ids,
        selected_keys,
        values,
        places,
        queue,
    )
    return arrays, at
