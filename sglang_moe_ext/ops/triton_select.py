# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: the best keys of every row, in order, with their places.

Keys become 32-bit integers of the same order, so that a maximum is one integer reduction (one
instruction of a warp where the hardware has it). Tiles are [R, C, 32, 4], as in
ops/triton_kernels.py, results [R, 32], a slot for each winner. KR counts the winners.
"""

from __future__ import annotations

import triton
import triton.language as tl

LANES = 32
_LANES = tl.constexpr(LANES)

# Ranks of int32 keys. Bits of no ordinary float lie below that of -inf.
NEG_INF = tl.constexpr(-2139095041)
_NAN = tl.constexpr(-(2**31) + 1)
DROPPED = tl.constexpr(-(2**31))
_MAX_INT = tl.constexpr(0x7FFFFFFF)


@triton.jit
def ordered_bits(bits):
    """Bits of float32 as int32 of the same order, and back."""
    return bits ^ ((bits >> 31) & _MAX_INT)


@triton.jit
def rank_of(key):
    """float32 as int32 of the same order, NaN below -inf."""
    return tl.where(key == key, ordered_bits(key.to(tl.int32, bitcast=True)), _NAN)


@triton.jit
def _merge4(a1, a2, a3, a4, b1, b2, b3, b4):
    """The four largest, in order, of two ordered quadruples; multiplicity counts."""
    m1, m2, m3, m4 = tl.maximum(a1, b4), tl.maximum(a2, b3), tl.maximum(a3, b2), tl.maximum(a4, b1)
    n1, n3 = tl.maximum(m1, m3), tl.minimum(m1, m3)
    n2, n4 = tl.maximum(m2, m4), tl.minimum(m2, m4)
    return tl.maximum(n1, n2), tl.minimum(n1, n2), tl.maximum(n3, n4), tl.minimum(n3, n4)


@triton.jit
def _four_best(tile):
    """[R, C, 32, 4] -> four of [R, 32], the best of every lane in order."""
    R: tl.constexpr = tile.shape[0]
    C: tl.constexpr = tile.shape[1]
    even, odd = tl.split(tile.reshape(R, C, _LANES, 2, 2))
    a, b = tl.split(tl.maximum(even, odd))
    c, d = tl.split(tl.minimum(even, odd))
    second, third = tl.minimum(a, b), tl.maximum(c, d)
    ordered = (
        tl.maximum(a, b),
        tl.maximum(second, third),
        tl.minimum(second, third),
        tl.minimum(c, d),
    )
    return tl.reduce(ordered, 1, _merge4)


@triton.jit
def _row_max(tile):
    """[R, C, 32, 4] int32 -> [R]."""
    return tl.max(tl.max(tl.max(tile, 3), 1), 1)


@triton.jit
def _row_min(tile):
    return tl.min(tl.min(tl.min(tile, 3), 1), 1)


@triton.jit
def _row_sum(tile):
    return tl.sum(tl.sum(tl.sum(tile, 3), 1), 1)


@triton.jit
def _of_row(x):
    """[R] against tiles."""
    return x[:, None, None, None]


@triton.jit
def select(rank, n, KR: tl.constexpr):
    """Ranks and padded ids [R, 32] of the KR winners, in order; the lower id first on ties."""
    R: tl.constexpr = rank.shape[0]
    slot = tl.arange(0, _LANES)[None, :]
    ranks = tl.full((R, _LANES), DROPPED, tl.int32)
    picks = tl.zeros((R, _LANES), tl.int32)
    for k in range(KR):
        best = _row_max(rank)
        pick = _row_min(tl.where(rank == _of_row(best), n, _MAX_INT))
        rank = tl.where(n == _of_row(pick), DROPPED, rank)
        ranks = tl.where(slot == k, best[:, None], ranks)
        picks = tl.where(slot == k, pick[:, None], picks)
    return ranks, picks


@triton.jit
def _insert(ranks, picks, rank, pick, wanted):
    """Put one more winner of every row that wants one into its slot; the rest moves right."""
    slot = tl.broadcast_to(tl.arange(0, _LANES)[None, :], ranks.shape)
    rank, pick = rank[:, None], pick[:, None]
    place = tl.sum(((ranks > rank) | ((ranks == rank) & (picks < pick))).to(tl.int32), 1)
    place = tl.where(wanted, place, _LANES)[:, None]
    left = tl.maximum(slot - 1, 0)
    moved_ranks = tl.where(slot == place, rank, tl.gather(ranks, left, 1))
    moved_picks = tl.where(slot == place, pick, tl.gather(picks, left, 1))
    return tl.where(slot < place, ranks, moved_ranks), tl.where(slot < place, picks, moved_picks)


@triton.jit
def _complete(ranks, picks, rank, n, last, exhausted, KR: tl.constexpr):
    """Insert the winners that lanes with more than four of them still hold; are those all?

    ranks, picks: [R, 32], the first KR winners as far as known. last: [R, 32], the fourth best
    rank of every lane; exhausted: have all four won?
    """
    slot = tl.arange(0, _LANES)[None, :]
    cut = tl.min(tl.where(slot < KR, ranks, _MAX_INT), 1)
    reached = _row_sum((rank >= _of_row(cut)).to(tl.int32))
    found = tl.full(reached.shape, KR, tl.int32)
    held = exhausted[:, None, :, None] & (rank < last[:, None, :, None])
    rest = tl.where(held, rank, DROPPED)
    best = _row_max(rest)
    while tl.max((best >= cut).to(tl.int32), 0) > 0:
        pick = _row_min(tl.where(rest == _of_row(best), n, _MAX_INT))
        ranks, picks = _insert(ranks, picks, best, pick, best >= cut)
        found += (best >= cut).to(tl.int32)
        rest = tl.where(n == _of_row(pick), DROPPED, rest)
        best = _row_max(rest)
    return ranks, picks, (found == reached) & (cut > NEG_INF)


@triton.jit
def select_by_lanes(key, choice, eligible, n, KR: tl.constexpr):
    """Ranks and padded ids [R, 32] of the KR winners, from the four best keys of every lane.

    key, choice: [R, C, 32, 4] float32, where choice is -inf for NaN and whatever is not
    eligible to be chosen.
    """
    R: tl.constexpr = choice.shape[0]
    C: tl.constexpr = choice.shape[1]
    slot = tl.broadcast_to(tl.arange(0, _LANES)[None, :], (R, _LANES))
    a, b, c, d = _four_best(choice)
    first = ordered_bits(a.to(tl.int32, bitcast=True))
    second = ordered_bits(b.to(tl.int32, bitcast=True))
    third = ordered_bits(c.to(tl.int32, bitcast=True))
    last = ordered_bits(d.to(tl.int32, bitcast=True))
    fourth = last
    ranks = tl.full((R, _LANES), NEG_INF, tl.int32)
    owners = tl.zeros((R, _LANES), tl.int32)
    best = tl.full((R, 1), NEG_INF, tl.int32)
    for k in tl.static_range(KR):
        best = tl.max(first, 1)[:, None]
        won = first == best
        owner = tl.min(tl.where(won, slot, _LANES), 1)[:, None]
        ranks = tl.where(slot == k, best, ranks)
        owners = tl.where(slot == k, owner, owners)
        first = tl.where(won, second, first)
        second = tl.where(won, third, second)
        third = tl.where(won, fourth, third)
        fourth = tl.where(won, NEG_INF, fourth)

    # Each winner's slot fetches its owner's keys to see which of them won.
    keys = ordered_bits(ranks).to(tl.float32, bitcast=True)
    held = tl.gather(choice, tl.broadcast_to(owners[:, None, :, None], choice.shape), 2)
    at = tl.arange(0, C)[None, :, None, None] * (_LANES * 4) + tl.arange(0, 4)[None, None, None, :]
    at = tl.max(tl.max(tl.where(held == keys[:, None, :, None], at, 0), 3), 1)
    picks = owners * 4 + at

    # In doubt: more keys reach the last winner's than there are winners (a lane holds more than
    # four, or lanes tie), or two winners are equal, so that the search above found one of them.
    cut = ordered_bits(best).to(tl.float32, bitcast=True)
    reached = tl.sum(tl.sum((choice >= cut[:, :, None, None]).to(tl.int32), 3), 1)
    equal = (slot > 0) & (slot < KR) & (ranks == tl.gather(ranks, tl.maximum(slot - 1, 0), 1))
    doubt = tl.sum(reached + equal.to(tl.int32), 1) != KR
    if tl.max(doubt.to(tl.int32), 0) != 0:
        rank = tl.where(eligible, rank_of(key), DROPPED)
        ranks, picks, complete = _complete(ranks, picks, rank, n, last, first == NEG_INF, KR)
        complete &= tl.max(equal.to(tl.int32), 1) == 0
        if tl.min(complete.to(tl.int32), 0) == 0:
            ranks, picks = select(rank, n, KR)
    return ranks, picks
