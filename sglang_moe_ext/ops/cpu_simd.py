"""Sixteen lanes as numba types, so that a kernel says which vector instructions it wants.

LLVM's loop vectoriser gives up on the scratch memory of a router (it cannot prove that the
arrays do not overlap); explicit vectors need no proof, and every lane goes through the same
instructions whichever row it belongs to. Narrower registers: LLVM splits the vectors.

Each function below is called from compiled code with its operands, without `builder`, and
emits the LLVM instructions that its name says.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types, typing
from numba.core.typing.templates import ConcreteTemplate, infer_global
from numba.extending import lower_builtin, models, register_model

LANES = 16
Lanes: TypeAlias = Any  # a vector of one of the types below
Pointer: TypeAlias = Any
_F = TypeVar("_F", bound=Callable[..., Any])


def jit(function: _F) -> _F:
    """For compiled callers; no fast-math, since NaN and the order of operations matter."""
    return numba.njit(function)  # type: ignore[no-any-return]


def inline(function: _F) -> _F:
    return numba.njit(forceinline=True)(function)  # type: ignore[no-any-return]


class Vector(types.Type):  # type: ignore[misc]
    """`LANES` elements of one LLVM type."""

    def __init__(self, element: ir.Type) -> None:
        self.llvm = ir.VectorType(element, LANES)
        super().__init__(name=str(self.llvm))


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.llvm)


_i16, _i32, _i64, _f32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
F32, I32, MASK = Vector(_f32), Vector(_i32), Vector(ir.IntType(1))
_INTS, _SHORTS = types.CPointer(types.int32), types.CPointer(types.uint16)


def _overload(
    callee: Any, result: types.Type, operands: tuple[types.Type, ...], emit: Callable[..., Any]
) -> None:
    class _Typing(ConcreteTemplate):  # type: ignore[misc]
        key = callee
        cases = [typing.signature(result, *operands)]  # noqa: RUF012

    infer_global(callee, types.Function(_Typing))

    @lower_builtin(callee, *operands)  # type: ignore[untyped-decorator]
    def _lower(_context: Any, builder: Any, _signature: Any, args: tuple[Any, ...]) -> Any:
        return emit(builder, *args)


def _operation(
    result: types.Type, *operands: types.Type
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(emit: Callable[..., Any]) -> Callable[..., Any]:
        _overload(emit, result, operands, emit)
        return emit

    return register


def _call(builder: Any, name: str, result: ir.Type, *args: Any) -> Any:
    function_type = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args)


for _symbol, _vector, _method in (
    (operator.add, F32, ir.IRBuilder.fadd),
    (operator.sub, F32, ir.IRBuilder.fsub),
    (operator.mul, F32, ir.IRBuilder.fmul),
    (operator.truediv, F32, ir.IRBuilder.fdiv),
    (operator.add, I32, ir.IRBuilder.add),
    (operator.xor, I32, ir.IRBuilder.xor),
    (operator.or_, I32, ir.IRBuilder.or_),
    (operator.and_, I32, ir.IRBuilder.and_),
    (operator.lshift, I32, ir.IRBuilder.shl),
    (operator.rshift, I32, ir.IRBuilder.ashr),
):
    _overload(_symbol, _vector, (_vector, _vector), _method)


def _compare(method: Callable[..., Any], text: str) -> Callable[..., Any]:
    return lambda builder, a, b: method(builder, text, a, b)


for _symbol, _text in ((operator.lt, "<"), (operator.gt, ">"), (operator.ge, ">=")):
    _overload(_symbol, MASK, (F32, F32), _compare(ir.IRBuilder.fcmp_ordered, _text))
    _overload(_symbol, MASK, (I32, I32), _compare(ir.IRBuilder.icmp_signed, _text))


@_operation(MASK, F32, F32)
def unordered(builder: Any, a: Lanes, b: Lanes) -> Any:
    """Lanes where a or b is NaN."""
    return builder.fcmp_unordered("uno", a, b)


@_operation(F32, F32, F32, F32)
def fma(builder: Any, a: Lanes, b: Lanes, c: Lanes) -> Any:
    """a * b + c, fused where the processor can."""
    return _call(builder, f"llvm.fmuladd.v{LANES}f32", F32.llvm, a, b, c)


@_operation(I32, I32, I32)
def larger(builder: Any, a: Lanes, b: Lanes) -> Any:
    return _call(builder, f"llvm.smax.v{LANES}i32", I32.llvm, a, b)


@_operation(I32, I32, I32)
def smaller(builder: Any, a: Lanes, b: Lanes) -> Any:
    return _call(builder, f"llvm.smin.v{LANES}i32", I32.llvm, a, b)


@_operation(I32, I32, MASK)
def count(builder: Any, total: Lanes, mask: Lanes) -> Any:
    """total + 1 in the lanes of the mask."""
    return builder.sub(total, builder.sext(mask, I32.llvm))


@_operation(F32, MASK, F32, F32)
@_operation(I32, MASK, I32, I32)
def choose(builder: Any, mask: Lanes, a: Lanes, b: Lanes) -> Any:
    """a in the lanes of the mask, b elsewhere."""
    return builder.select(mask, a, b)


@_operation(I32, F32)
def as_bits(builder: Any, x: Lanes) -> Any:
    return builder.bitcast(x, I32.llvm)


@_operation(F32, I32)
def as_float(builder: Any, bits: Lanes) -> Any:
    return builder.bitcast(bits, F32.llvm)


def _broadcast(builder: Any, scalar: Any) -> Any:
    undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, scalar, _i32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(I32.llvm, [0] * LANES))


@_operation(F32, types.float32)
def f32(builder: Any, scalar: Any) -> Any:
    """The scalar in every lane."""
    return _broadcast(builder, scalar)


@_operation(I32, types.int32)
def i32(builder: Any, scalar: Any) -> Any:
    """The scalar in every lane."""
    return _broadcast(builder, scalar)


@_operation(I32)
def lane(builder: Any) -> Any:
    """0, 1, ... LANES - 1."""
    return ir.Constant(I32.llvm, list(range(LANES)))


@_operation(types.int32, I32)
def first(builder: Any, x: Lanes) -> Any:
    return builder.extract_element(x, _i32(0))


def _exchange(distance: int) -> Callable[..., Any]:
    @_operation(I32, I32)
    def exchange(builder: Any, x: Lanes) -> Any:
        order = [i ^ distance for i in range(LANES)]
        return builder.shuffle_vector(x, x, ir.Constant(I32.llvm, order))

    return exchange


exchange8, exchange4, exchange2, exchange1 = (_exchange(distance) for distance in (8, 4, 2, 1))


@_operation(types.int64, MASK)
def bits_of(builder: Any, mask: Lanes) -> Any:
    """Lane i as bit i."""
    return builder.zext(builder.bitcast(mask, _i16), _i64)


@_operation(types.int64, types.int64)
def popcount(builder: Any, x: Any) -> Any:
    return builder.ctpop(x)


@_operation(types.int64, types.int64)
def trailing_zeros(builder: Any, x: Any) -> Any:
    """64 for 0."""
    return builder.cttz(x, ir.Constant(ir.IntType(1), 0))


@_operation(types.int64, types.voidptr, types.int64)
def fetch_add(builder: Any, address: Any, increment: Any) -> Any:
    """Add to the 64-bit integer at the address, atomically; returns what it was."""
    counter = builder.bitcast(address, _i64.as_pointer())
    return builder.atomic_rmw("add", counter, increment, ordering="monotonic")


@_operation(_INTS, _INTS, types.int64)
def advance(builder: Any, pointer: Pointer, elements: Any) -> Any:
    return builder.gep(pointer, [elements])


@_operation(_INTS, types.int64)
def ints(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _i32.as_pointer())


@_operation(_SHORTS, types.int64)
def shorts(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _i16.as_pointer())


def _lanes_at(builder: Any, pointer: Any, index: Any, element: ir.Type) -> Any:
    where = builder.gep(pointer, [index])
    return builder.bitcast(where, ir.VectorType(element, LANES).as_pointer())


@_operation(I32, _SHORTS, types.int64)
@_operation(I32, _INTS, types.int64)
def load(builder: Any, pointer: Pointer, index: Any) -> Any:
    """pointer[index : index + LANES], zero-extended; needs no more alignment than an element."""
    element = pointer.type.pointee
    lanes = builder.load(_lanes_at(builder, pointer, index, element), align=element.width // 8)
    return builder.zext(lanes, I32.llvm)


@_operation(I32, _SHORTS, types.int64, MASK)
@_operation(I32, _INTS, types.int64, MASK)
def load_some(builder: Any, pointer: Pointer, index: Any, mask: Lanes) -> Any:
    """As `load`, but touches only the lanes of the mask; zero elsewhere."""
    element = pointer.type.pointee
    vector = ir.VectorType(element, LANES)
    where, align = _lanes_at(builder, pointer, index, element), _i32(element.width // 8)
    name = f"llvm.masked.load.v{LANES}i{element.width}.p0"
    lanes = _call(builder, name, vector, where, align, mask, ir.Constant(vector, None))
    return builder.zext(lanes, I32.llvm)


@_operation(types.none, _INTS, types.int64, I32)
def store(builder: Any, pointer: Pointer, index: Any, x: Lanes) -> Any:
    """pointer[index : index + LANES] = x, unaligned."""
    builder.store(x, _lanes_at(builder, pointer, index, _i32), align=4)
    return ir.Constant(ir.LiteralStructType([]), None)
