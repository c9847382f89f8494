"""From logits to the keys that experts are ranked by, and to the weights of the selected.

Equal logits give equal bits wherever they stand, so ties stay ties and a row does not depend
on its place.
"""

from __future__ import annotations

import numpy as np

from sglang_moe_ext.ops.cpu_layout import BFLOAT16, FLOAT32, Scratch, Shape
from sglang_moe_ext.ops.cpu_simd import (
    LANES,
    Lanes,
    Pointer,
    as_bits,
    as_float,
    choose,
    f32,
    fma,
    i32,
    inline,
    ints,
    jit,
    lane,
    larger,
    load,
    load_some,
    shorts,
    smaller,
    store,
    unordered,
)

# Keys are int32 images of float32 in the same order; these rank below -inf.
NO_EXPERT = -(2**31)
NAN = NO_EXPERT + 1
MINUS_INF = -0x7F800001
PLUS_INF = 0x7F800000


@inline
def ordered(bits: Lanes) -> Lanes:
    """float32 bits to integers of the same order, and back."""
    return bits ^ ((bits >> i32(31)) & i32(0x7FFFFFFF))


@inline
def magnitude(x: Lanes) -> Lanes:
    return as_float(as_bits(x) & i32(0x7FFFFFFF))


@inline
def scaled_exp(a: Lanes) -> Lanes:
    """2**25 * exp(-a) for a >= 0; normal wherever exp(-a) does not round to zero.

    exp(r) on |r| <= ln(2)/2 by a minimax polynomial, relative error 4.4e-9 before rounding.
    """
    a = choose(a < f32(104.0), a, f32(104.0))
    # Adding 1.5 * 2**23 rounds to an integer and leaves it in the low bits.
    shifted = fma(a, f32(-1.4426950408889634), f32(1.5 * 2**23 + 25))
    n = shifted - f32(1.5 * 2**23 + 25)
    r = fma(n, f32(-0.693145751953125), f32(0.0) - a)
    r = fma(n, f32(-1.42860677e-06), r)
    p = fma(r, f32(0.0013814459089189768), f32(0.008368780836462975))
    p = fma(r, p, f32(0.04166839271783829))
    p = fma(r, p, f32(0.1666651964187622))
    p = fma(r, p, f32(0.4999999403953552))
    p = fma(r, p, f32(1.0))
    p = fma(r, p, f32(1.0))
    return as_float(as_bits(p) + (as_bits(shifted) << i32(23)))


@inline
def ranked_key(x: Lanes, bias: Lanes) -> Lanes:
    e = scaled_exp(magnitude(x))
    key = choose(x < f32(0.0), e, f32(2.0**25)) / (f32(2.0**25) + e) + bias
    return choose(unordered(x, key), i32(NAN), ordered(as_bits(key)))


@inline
def decode(bits: Lanes, dtype: int) -> Lanes:
    """Exact upcast of zero-extended bits to float32."""
    if dtype == FLOAT32:
        return as_float(bits)
    if dtype == BFLOAT16:
        return as_float(bits << i32(16))
    # LLVM's own conversion is a call to a missing function on a processor without F16C.
    unsigned = (bits & i32(0x7FFF)) << i32(13)
    value = as_bits(as_float(unsigned) * f32(2.0**112))
    value = choose(unsigned < i32(0x7C00 << 13), value, value | i32(0x7F800000))
    return as_float(value | ((bits & i32(0x8000)) << i32(16)))


@inline
def load_row(address: int, dtype: int, index: int) -> Lanes:
    if dtype == FLOAT32:
        return decode(load(ints(address), index), dtype)
    return decode(load(shorts(address), index), dtype)


@inline
def load_row_end(address: int, dtype: int, index: int, real: Lanes) -> Lanes:
    if dtype == FLOAT32:
        return decode(load_some(ints(address), index, real), dtype)
    return decode(load_some(shorts(address), index, real), dtype)


@jit
def rank_experts(
    keys: Pointer, x: int, x_dtype: int, bias: int, bias_dtype: int, shape: Shape
) -> None:
    """Keys of one row."""
    at = 0
    for group in range(shape.G):
        for offset in range(0, shape.width, LANES):
            i = group * shape.width + offset
            if offset + LANES <= shape.width:
                key = ranked_key(load_row(x, x_dtype, i), load_row(bias, bias_dtype, i))
            else:
                real = lane() < i32(shape.width - offset)
                logits = load_row_end(x, x_dtype, i, real)
                key = ranked_key(logits, load_row_end(bias, bias_dtype, i, real))
                key = choose(real, key, i32(NO_EXPERT))
            store(keys, at, key)
            at += LANES


@jit
def gather_logits(scratch: Scratch, x: int, x_dtype: int, row: int, shape: Shape) -> None:
    for at in range(row, shape.R * LANES, LANES):
        if x_dtype == FLOAT32:
            scratch.values[at] = ints(x)[scratch.ids[at]]
        else:
            scratch.values[at] = shorts(x)[scratch.ids[at]]


@jit
def weigh(scratch: Scratch, x_dtype: int, renormalize: int, scale: float, shape: Shape) -> None:
    """Weights of the tile's selected experts, from their logits, in place.

    Renormalised in shifted form, exp(x - c) / (1 + exp(x)) with c = min(max x, 0): the ratios
    survive where the scores underflow.
    """
    values, end = scratch.values, shape.R * LANES
    top = i32(MINUS_INF + 1)  # a finite number keeps the shift finite
    for at in range(0, end, LANES):
        x = as_bits(decode(load(values, at), x_dtype))
        # Banned and NaN experts that had to be selected weigh nothing.
        counted = load(scratch.selected_keys, at) > i32(MINUS_INF)
        x = choose(counted, x, as_bits(f32(-np.inf)))
        top = larger(top, ordered(x))
        store(values, at, x)

    shift = as_float(ordered(smaller(top, i32(0)))) if renormalize else f32(0.0)
    total = f32(0.0)
    for at in range(0, end, LANES):
        x = as_float(load(values, at))
        below = choose(x < shift, shift - x, f32(0.0))
        weight = scaled_exp(below) / (f32(2.0**25) + scaled_exp(magnitude(x)))
        total = total + weight
        store(values, at, as_bits(weight))

    factor = f32(scale)
    if renormalize:
        tiny = f32(np.finfo(np.float32).tiny)
        factor = factor / choose(total > tiny, total, tiny)
    for at in range(0, end, LANES):
        store(values, at, as_bits(as_float(load(values, at)) * factor))
