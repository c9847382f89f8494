# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The Triton router kernel, one source for CUDA, ROCm and XPU.

Letters as in ops/spec.py, and R rows per program. A row's experts, padded to G_PAD * EG_PAD,
are C chunks of 32 lanes of four consecutive experts, and the tile of a program is
[R, C, 32, 4]: Triton gives its axis of 32 to the lanes of a warp, and rows to different warps.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sglang_moe_ext.ops.triton_select import (
    DROPPED,
    LANES,
    NEG_INF,
    ordered_bits,
    rank_of,
    select,
    select_by_lanes,
)

_LANES = tl.constexpr(LANES)

# log2(e) in two float32 parts, negated.
_LOG2E_HI = tl.constexpr(-1.4426950216293335)
_LOG2E_LO = tl.constexpr(-1.925963033500925e-08)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _exp_of_minus(y):
    """exp(-y): the rounding of y * log2(e) is taken back to first order."""
    # exp(-88) is below the smallest normal float32, exp(88) close to the largest.
    y = tl.clamp(y, -88.0, 88.0, propagate_nan=tl.PropagateNan.ALL)
    power = y * _LOG2E_HI
    rounding = tl.fma(y, _LOG2E_LO, tl.fma(y, _LOG2E_HI, -power))
    e = tl.exp2(power)
    return tl.fma(e, rounding * _LN2, e)


@triton.jit
def _sigmoid(x, PTX: tl.constexpr):
    y = 1.0 + _exp_of_minus(x)
    if PTX:
        # Division costs six more instructions, for ranges that do not occur here.
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [y], tl.float32, is_pure=True, pack=1
        )
    return 1.0 / y


@triton.jit
def _top2(a1, a2, b1, b2):
    return tl.maximum(a1, b1), tl.maximum(tl.minimum(a1, b1), tl.maximum(a2, b2))


@triton.jit
def _in_kept_groups(
    choice,
    TG: tl.constexpr,
    G: tl.constexpr,
    EG: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Mask [R, C, 32, 4]: is the expert in one of the TG best groups of its row?

    choice: [R, C, 32, 4] float32, -inf where NaN or padded.
    """
    R: tl.constexpr = choice.shape[0]
    grouped = choice.reshape(R, G, EG)
    none = tl.full((R, G, EG), float("-inf"), tl.float32)
    best, second = tl.reduce((grouped, none), 2, _top2)
    score = best
    if PAIRS:
        # A forced expert (+inf) carries its group even beside banned ones: inf - inf is NaN.
        score = tl.where(best == float("inf"), best, best + second)
    g = tl.arange(0, G)
    mine, other = score[:, :, None], score[:, None, :]
    ahead = (other > mine) | ((other == mine) & (g[None, None, :] < g[None, :, None]))
    kept = tl.sum(ahead.to(tl.int32), 2) < TG
    return tl.broadcast_to(kept[:, :, None], (R, G, EG)).reshape(choice.shape)


@triton.jit(do_not_specialize=["T", "row_stride"])
def route(
    logits_ptr,  # [T, E], row stride `row_stride`
    bias_ptr,  # [E], or [T, E] if TOKEN_BIAS
    weights_ptr,  # [T, K] float32
    ids_ptr,  # [T, K] int32
    T,
    row_stride,
    ALIGNED: tl.constexpr,  # row_stride is a multiple of 4
    R: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    G: tl.constexpr,
    TG: tl.constexpr,
    G_PAD: tl.constexpr,
    EG_PAD: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    OUTPUT_SCALE: tl.constexpr,
    SHARED_WEIGHT: tl.constexpr,
    TOKEN_BIAS: tl.constexpr,
    LANE_LISTS: tl.constexpr,
    PTX: tl.constexpr,  # for NVIDIA hardware
    PDL: tl.constexpr,  # programmatic dependent launch, from compute capability 9.0 on
):
    EG: tl.constexpr = E // G
    KR: tl.constexpr = K - S
    C: tl.constexpr = G_PAD * EG_PAD // (_LANES * 4)
    # A 2-D tile has the same layout in every version: four to a lane, then lanes, then warps.
    q = tl.arange(0, C * R * _LANES)[:, None]
    n = (q // (R * _LANES) * _LANES + q % _LANES) * 4 + tl.arange(0, 4)[None, :]
    row = tl.program_id(0).to(tl.int64) * R + q // _LANES % R
    expert = n if EG == EG_PAD else n // EG_PAD * EG + n % EG_PAD
    valid = (n // EG_PAD < G) & (n % EG_PAD < EG)
    if ALIGNED:
        row_stride = row_stride // 4 * 4  # tells the compiler that whole vectors can be loaded

    if PDL:
        # The next kernel may start now; it waits, as we do, for all that came before it.
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    mask = valid if R == 1 else valid & (row < T)
    x = tl.load(logits_ptr + row * row_stride + expert, mask=mask, other=0.0).to(tl.float32)
    if TOKEN_BIAS:
        bias = tl.load(bias_ptr + row * E + expert, mask=mask, other=0.0).to(tl.float32)
    else:
        bias = tl.load(bias_ptr + expert, mask=valid, other=0.0).to(tl.float32)
    key = tl.where(valid, _sigmoid(x, PTX) + bias, float("-inf"))
    key = key.reshape(C, R, _LANES, 4).trans(1, 0, 2, 3)
    n = n.reshape(C, R, _LANES, 4).trans(1, 0, 2, 3)
    eligible = valid.reshape(C, R, _LANES, 4).trans(1, 0, 2, 3)
    choice = tl.maximum(key, tl.full(key.shape, float("-inf"), tl.float32))  # no NaN
    if G > 1:
        eligible &= _in_kept_groups(choice, TG, G_PAD, EG_PAD, EG > 1)
        choice = tl.where(eligible, choice, float("-inf"))

    if LANE_LISTS:
        ranks, picks = select_by_lanes(key, choice, eligible, n, KR)
    else:
        ranks, picks = select(tl.where(eligible, rank_of(key), DROPPED), n, KR)
    ids = picks if EG == EG_PAD else picks // EG_PAD * EG + picks % EG_PAD

    # Banned (-inf) and NaN experts that had to be selected weigh nothing.
    slot = tl.arange(0, _LANES)[None, :]
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)[:, None]  # [R, 1]
    weighs = (slot < KR) & (ranks > NEG_INF) & (row < T)
    # Loaded as one dimension: two leave the compiler a choice that mixes rows and warps.
    x_ptr = (logits_ptr + row * row_stride + ids).reshape(R * _LANES)
    x = tl.load(x_ptr, mask=weighs.reshape(R * _LANES), other=0.0).to(tl.float32)
    x = x.reshape(R, _LANES)
    if RENORMALIZE:
        # exp(-shift) cancels in the ratio and keeps it where the scores underflow.
        top = tl.max(tl.where(weighs, rank_of(x), NEG_INF), 1)
        top = ordered_bits(top).to(tl.float32, bitcast=True)
        shift = tl.minimum(top, 0.0)[:, None]  # -inf only where every score is masked below
        score = _exp_of_minus(shift - tl.minimum(x, 0.0)) / (1.0 + _exp_of_minus(tl.abs(x)))
        score = tl.where(weighs & (x > float("-inf")), score, 0.0)
        total = tl.sum(score, 1)
        weights = score / tl.where(total > 0, total, 1.0)[:, None] * OUTPUT_SCALE
    else:
        weights = tl.where(weighs, _sigmoid(x, PTX), 0.0) * OUTPUT_SCALE
    if S > 0:
        weights = tl.where(slot < KR, weights, SHARED_WEIGHT)
        ids = tl.where(slot < KR, ids, E + slot - KR)
    written = (slot < K) & (row < T)
    tl.store(weights_ptr + row * K + slot, weights, mask=written)
    tl.store(ids_ptr + row * K + slot, ids, mask=written)
