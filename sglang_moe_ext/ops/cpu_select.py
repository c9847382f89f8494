"""From keys to the selected experts, without a branch that depends on the data.

Nothing is sorted. Sixteen or thirty-two maxima of strided blocks give a lower bound of the
last key to be selected; the few experts that reach it are moved together, and counting who
is larger gives each its place. Ties go to the lower id, in groups as in experts.
"""

from __future__ import annotations

from sglang_moe_ext.ops.cpu_layout import Scratch, Shape
from sglang_moe_ext.ops.cpu_scores import MINUS_INF, NAN, NO_EXPERT, PLUS_INF, ordered
from sglang_moe_ext.ops.cpu_simd import (
    LANES,
    Lanes,
    Pointer,
    advance,
    as_bits,
    as_float,
    bits_of,
    choose,
    count,
    exchange1,
    exchange2,
    exchange4,
    exchange8,
    first,
    i32,
    inline,
    jit,
    lane,
    larger,
    load,
    popcount,
    smaller,
    store,
    trailing_zeros,
)

_LARGEST = 2**31 - 1
# So many near experts more than needed are ties with the bound, or a rare pile-up.
_SURPLUS = 4 * LANES


@jit
def find_group_tops(keys: Pointer, best: Pointer, second: Pointer, row: int, shape: Shape) -> None:
    """The two largest keys of every group of one row, multiplicity counted."""
    for group in range(shape.G):
        start = group * shape.vectors * LANES
        high, low = load(keys, start), i32(NO_EXPERT)
        for at in range(start + LANES, start + shape.vectors * LANES, LANES):
            high, low = merge(high, low, load(keys, at), i32(NO_EXPERT))
        high, low = merge(high, low, exchange8(high), exchange8(low))
        high, low = merge(high, low, exchange4(high), exchange4(low))
        high, low = merge(high, low, exchange2(high), exchange2(low))
        high, low = merge(high, low, exchange1(high), exchange1(low))
        best[group * LANES + row] = first(high)
        second[group * LANES + row] = first(low)


@inline
def merge(high: Lanes, low: Lanes, other_high: Lanes, other_low: Lanes) -> tuple[Lanes, Lanes]:
    """The two largest of two pairs."""
    return larger(high, other_high), larger(larger(low, other_low), smaller(high, other_high))


@jit
def keep_groups(scratch: Scratch, shape: Shape) -> None:
    """The TG best groups of every row of the tile."""
    best, second, end = scratch.best, scratch.second, shape.G * LANES
    for at in range(0, end, LANES):
        top = larger(load(best, at), i32(MINUS_INF))
        score = as_float(ordered(top))
        if shape.width > 1:
            score = score + as_float(ordered(larger(load(second, at), i32(MINUS_INF))))
        # A forced expert carries its group even beside a banned one: inf - inf is NaN.
        store(best, at, choose(top < i32(PLUS_INF), ordered(as_bits(score)), top))
    for at in range(0, end, LANES):
        score, ahead = load(best, at), i32(0)
        for other in range(0, at, LANES):
            ahead = count(ahead, load(best, other) >= score)
        for other in range(at + LANES, end, LANES):
            ahead = count(ahead, load(best, other) > score)
        store(second, at, ahead)
    for row in range(LANES):
        at = row * (shape.G + 1)
        for group in range(shape.G):
            scratch.kept[at] = group
            at += second[group * LANES + row] < shape.TG


@jit
def lower_bound(keys: Pointer, kept: Pointer, tops: Pointer, shape: Shape) -> Lanes:
    """At least R keys of the row's kept groups reach this, and seldom many more."""
    if shape.R > 2 * LANES:
        return i32(NAN)
    even, odd = i32(NO_EXPERT), i32(NO_EXPERT)
    for q in range(shape.TG):
        start = kept[q] * shape.vectors * LANES
        for at in range(start, start + shape.vectors * LANES, LANES):
            even, odd = odd, larger(even, load(keys, at))
    blocks = 2 * LANES
    if 2 * shape.R <= LANES:
        even, blocks = larger(even, odd), LANES
    store(tops, 0, even)
    store(tops, LANES, odd)
    bound = i32(_LARGEST)
    for u in range(0, blocks, LANES):
        top, ahead = load(tops, u), i32(0)
        for j in range(blocks):
            ahead = count(ahead, i32(tops[j]) > top)
        bound = smaller(bound, choose(ahead < i32(shape.R), top, i32(_LARGEST)))
    bound = smaller(bound, exchange8(bound))
    bound = smaller(bound, exchange4(bound))
    bound = smaller(bound, exchange2(bound))
    bound = smaller(bound, exchange1(bound))
    return larger(bound, i32(NAN))


@jit
def find_near(scratch: Scratch, row: int, shape: Shape) -> None:
    """Move the experts of a row that reach the lower bound together."""
    keys = advance(scratch.keys, row * shape.slots)
    kept = advance(scratch.kept, row * (shape.G + 1))
    near = row * (shape.slots + LANES)
    near_keys, near_ids = advance(scratch.near_keys, near), advance(scratch.near_ids, near)
    bound, n = lower_bound(keys, kept, scratch.tops, shape), 0
    for q in range(shape.TG):
        start, expert = kept[q] * shape.vectors * LANES, kept[q] * shape.width
        for vector in range(0, shape.vectors, 4):
            reached = 0
            for v in range(min(4, shape.vectors - vector)):
                key = load(keys, start + (vector + v) * LANES)
                reached |= bits_of(key >= bound) << (v * LANES)
            # Four at a time, so that the processor can predict when to stop; what is moved
            # beyond the last is overwritten.
            found, at = popcount(reached), n
            for _ in range(0, found, 4):
                for _ in range(4):
                    offset = vector * LANES + trailing_zeros(reached)
                    reached &= reached - 1
                    near_keys[at], near_ids[at] = keys[start + offset], expert + offset
                    at += 1
            n += found
    if n > shape.R + _SURPLUS:
        n = drop_surplus_ties(near_keys, near_ids, n, first(bound), shape.R)
    store(near_keys, n, i32(NO_EXPERT))
    scratch.near_count[row] = n


@jit
def drop_surplus_ties(keys: Pointer, ids: Pointer, n: int, bound: int, R: int) -> int:
    """Keep R of the keys equal to the bound: no more can be selected."""
    left, ties = 0, 0
    for i in range(n):
        keys[left], ids[left] = keys[i], ids[i]
        ties += keys[i] == bound
        left += keys[i] > bound or ties <= R
    return left


@jit
def place_selected(scratch: Scratch, row: int, shape: Shape) -> None:
    """The R first of the row's near experts, by key descending and id ascending."""
    near, n = row * (shape.slots + LANES), scratch.near_count[row]
    near_keys, near_ids = advance(scratch.near_keys, near), advance(scratch.near_ids, near)
    for u in range(0, n, LANES):
        key, ahead = load(near_keys, u), i32(0)
        for j in range(n):
            ahead = count(ahead, i32(near_keys[j]) > key)
        store(scratch.places, u, smaller(ahead, i32(shape.R)))
    for u in range(0, shape.R + 1, LANES):
        store(scratch.queue, u, lane() + i32(u))
    for i in range(n):
        # Equal keys share a place; the later id queues behind it.
        place = scratch.queue[scratch.places[i]]
        scratch.queue[scratch.places[i]] = place + 1
        at = (place if place < shape.R else shape.K) * LANES + row
        scratch.ids[at] = near_ids[i]
        scratch.selected_keys[at] = near_keys[i]
