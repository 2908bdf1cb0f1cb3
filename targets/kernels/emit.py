"""A thin layer over TVM's IR builder: kernels of plain pointers, vectors, constants, approximations.

A kernel is `void name(T0* a, T1* b, ..., int32 begin, int32 end)`. Python runs at generation time, so loops
over Python ranges unroll and Python variables name expressions: nothing of TVMScript's parser is used (and
none of its let-binding traps). Mind that expressions are trees: one used twice is emitted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as ib

from .tiling import CACHE_LINE

MAGIC = 12582912.0
"""1.5 * 2**23: adding it to a float below 2**22 leaves the integer nearest to it (ties to even) in the
low mantissa bits."""
MAGIC_BITS = 0x4B400000
NARROW = "bitsmith.bfloat16"
"""Attribute of a kernel with pointers to bfloat16, which only Relax makes: ours read it as integers."""


def vector(dtype: str, lanes: int) -> str:
    """TVM's name of a vector type."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def splat(value: float | int | Any, dtype: str, lanes: int) -> Any:
    """A constant or scalar expression in every lane."""
    scalar = tirx.const(value, dtype) if isinstance(value, int | float) else value
    return scalar if lanes == 1 else ib.broadcast(scalar, lanes)


def cast(value: Any, dtype: str, lanes: int) -> Any:
    return tirx.Cast(vector(dtype, lanes), value)


def bits(value: Any, dtype: str, lanes: int) -> Any:
    """The same bits as another type of equal width."""
    return ib.reinterpret(value, dtype=vector(dtype, lanes))


def load(buffer: Any, index: Any, lanes: int = 1) -> Any:
    return tirx.BufferLoad(buffer, [index if lanes == 1 else tirx.Ramp(index, 1, lanes)])


def fetch(buffer: Any, at: Any) -> None:
    """Brings an element's cache line nearer; one that does not exist is no harm."""
    place = tirx.call_intrin("handle", "tirx.address_of", load(buffer, at))
    read, all_levels, data = (splat(v, "int32", 1) for v in (0, 3, 1))
    name = ib.llvm_lookup_intrinsic_id("llvm.prefetch.p0")
    ib.evaluate(ib.call_llvm_intrin(name, place, read, all_levels, data, dtype="void"))


def store(buffer: Any, index: Any, value: Any, lanes: int = 1) -> None:
    ib.buffer_store(buffer, value, [index if lanes == 1 else tirx.Ramp(index, 1, lanes)])


def vmax(a: Any, b: Any) -> Any:
    """The larger; of floats `a` where it is not a number, and also where `b` is not: x86's instruction gives
    its second operand then. So clamping passes on what is not a number when the bound stands second."""
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else ib.max(*_instruction(a, b))


def vmin(a: Any, b: Any) -> Any:
    """The smaller, as vmax."""
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else ib.min(*_instruction(a, b))


def _instruction(a: Any, b: Any) -> tuple[Any, Any]:
    """Floats in the instruction's order; integers as they are, for TVM's simplifier fails on some others."""
    kind = (b if isinstance(a, int) else a).ty.dtype
    return (b, a) if "float" in str(kind) else (a, b)


def once(number: Any) -> Any:
    """A whole number, computed once. TVM would simplify the division of its expression to one by a negative
    number, which it then fails to lower."""
    if isinstance(number, int):
        return number
    place = local(1, "int64")
    store(place, 0, number)
    return load(place, 0)


def larger(a: Any, b: Any) -> Any:
    """The larger of two floats, not a number where either is not: vmax both ways round, and the bits of both,
    which are equal but for that (and for zeros' signs)."""
    return _either(vmax(a, b), vmax(b, a))


def smaller(a: Any, b: Any) -> Any:
    """The smaller, as larger."""
    return _either(vmin(a, b), vmin(b, a))


def _either(a: Any, b: Any) -> Any:
    kind = tvm.DataType(a.ty.dtype)
    whole = f"int{kind.bits}"
    both = ib.bitwise_or(bits(a, whole, kind.lanes), bits(b, whole, kind.lanes))
    return bits(both, f"float{kind.bits}", kind.lanes)


WRAPPED = {
    "llvm.x86.avx512bf16.dpbf16ps.512": """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define internal <16 x float> @dpbf16ps(<16 x float> %acc, <16 x i32> %a, <16 x i32> %b) alwaysinline {
  %x = bitcast <16 x i32> %a to <32 x bfloat>
  %y = bitcast <16 x i32> %b to <32 x bfloat>
  %sum = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(
    <16 x float> %acc, <32 x bfloat> %x, <32 x bfloat> %y)
  ret <16 x float> %sum
}
""",
}
"""Intrinsics on types that TVM does not hand to LLVM, by what it can call instead."""


def intrinsic(name: str, dtype: str, *args: Any) -> Any:
    """A pure LLVM intrinsic."""
    if name in WRAPPED:
        return tirx.call_extern(dtype, name.split(".")[-2], *args)
    return ib.call_llvm_pure_intrin(ib.llvm_lookup_intrinsic_id(name), *args, dtype=dtype)


def kept(value: Any, lanes: int) -> Any:
    """An int32 vector, computed as written: LLVM would otherwise regroup long integer sums into trees that
    need more registers than there are. (Its fence is for floats; it costs no instruction.)"""
    kind = vector("float32", lanes)
    return bits(intrinsic("llvm.arithmetic.fence", kind, bits(value, "float32", lanes)), "int32", lanes)


def shuffle(value: Any, lanes: tuple[int, ...]) -> Any:
    """The chosen lanes of a vector, in that order."""
    return tirx.Shuffle([value], [tirx.const(i, "int32") for i in lanes])


def interleave(a: Any, b: Any, lanes: int) -> Any:
    """a0 b0 a1 b1 ... of two vectors."""
    order = [tirx.const(i // 2 + i % 2 * lanes, "int32") for i in range(2 * lanes)]
    return tirx.Shuffle([a, b], order)


def unpack(a: Any, b: Any, lanes: int, width: int, high: bool) -> Any:
    """a0 b0 a1 b1 ... of the lower or higher half of every `width` lanes: x86's unpack when these are 128
    bits."""
    half = width // 2
    first = [start + high * half for start in range(0, lanes, width)]
    order = [at + i + side * lanes for at in first for i in range(half) for side in (0, 1)]
    return tirx.Shuffle([a, b], [tirx.const(i, "int32") for i in order])


def gather_lanes(vectors: Sequence[Any], lanes: tuple[int, ...]) -> Any:
    """The chosen lanes of several vectors in a row, in that order."""
    return tirx.Shuffle(list(vectors), [tirx.const(i, "int32") for i in lanes])


def local(size: int, dtype: str) -> Any:
    """Memory on the stack; the annotation keeps TVM from asking a runtime for it. LLVM turns small
    constant-indexed ones into registers."""
    return ib.alloc_buffer((size,), dtype, scope="global", annotations={"disable_lower_builtin": True})


def aligned(size: int, dtype: str) -> tuple[Any, Any]:
    """Stack memory and the index in it where a cache line begins; `size` elements from there on. TVM aligns
    to 16 bytes only, and half of the 32-byte accesses that are off by 16 touch two lines."""
    item = tvm.DataType(dtype).bits // 8
    buffer = local(size + CACHE_LINE // item, dtype)
    first = tirx.call_intrin("handle", "tirx.address_of", load(buffer, 0))
    ahead = tirx.const(0, "int64") - ib.reinterpret(first, dtype="int64")
    return buffer, ib.bitwise_and(ahead, tirx.const(CACHE_LINE - 1, "int64")) // item


def rolled(count: Any, begin: Any) -> Any:
    """`count` for a loop that LLVM must not unroll: of this sum it knows no bound. `begin`: a kernel's first
    task, which is never negative."""
    return count + vmax(0 - begin, 0)


@contextmanager
def when(condition: Any) -> Iterator[None]:
    """A branch; a Python bool is decided at generation time by the caller."""
    with ib.If(condition), ib.Then():
        yield


def spread(a: Any, lanes: int) -> Any:
    """a0 0 a1 0 ... of a uint8 vector."""
    return bits(cast(a, "uint16", lanes), "uint8", 2 * lanes)


def choose(condition: Any, then: int, otherwise: int, dtype: str) -> Any:
    """A scalar without a branch."""
    return tirx.Select(condition, tirx.const(then, dtype), tirx.const(otherwise, dtype))


def branch(condition: Any, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
    with ib.If(condition):
        with ib.Then():
            then()
        with ib.Else():
            otherwise()


def loop(begin: Any, end: Any) -> Any:
    """A loop over 64-bit integers: `with loop(0, n) as i`."""
    return ib.serial(*(tirx.const(b, "int64") if isinstance(b, int) else b for b in (begin, end)))


def over(begin: Any, end: Any, body: Callable[[Any], None]) -> None:
    """A loop, or straight code when it runs once."""
    if isinstance(begin, int) and isinstance(end, int) and end - begin <= 1:
        if end > begin:
            body(begin)
        return
    with loop(begin, end) as index:
        body(index)


def kernel(
    name: str,
    params: Sequence[tuple[str, str]],
    body: Callable[..., None],
    *,
    returns: bool = False,
    wrapped: str = "",
) -> Any:
    """A PrimFunc. `params` are (name, element type) of the pointers; `body(*buffers, begin, end)` emits
    the code.

    Buffers are flat; their declared size does not matter because nothing checks it. `returns`: code that
    asks for workspace
    memory must be able to return an error code; the caller ignores it (runtime/workspace.c never fails).
    `wrapped`: the one of WRAPPED that the code uses.
    """
    with IRBuilder() as builder:
        with ib.prim_func(is_private=False, s_tir=True):
            ib.func_name(name)
            narrow = any(dtype == "bfloat16" for _, dtype in params)
            ib.func_attr({"global_symbol": name, "tirx.noalias": True, NARROW: narrow})
            if returns:
                ib.func_ret(tvm.ir.PrimType("int32"))
            handles = [(ib.arg(n, ib.handle(t)), t) for n, t in params]
            bounds = ib.arg("begin", ib.int32()), ib.arg("end", ib.int32())
            # 64-bit indices: with 32 bits LLVM must sign-extend every address that it cannot prove not
            # to wrap.
            begin, end = (tirx.Cast("int64", b) for b in bounds)
            buffers = [ib.decl_buffer((1 << 30,), t, data=h) for h, t in handles]
            with ib.attr(0, "pragma_import_llvm", WRAPPED[wrapped]) if wrapped else nullcontext():
                body(*buffers, begin, end)
            if returns:
                ib.add_to_parent(tirx.Return(tirx.const(0, "int32")))
    return builder.get()


def exp(x: Any, lanes: int) -> Any:
    """e**x, relative error below 1e-7 for |x| <= 87 (argument clamped there). Cephes' expf polynomial."""
    f = "float32"
    x = vmin(vmax(x, splat(-87.0, f, lanes)), splat(88.0, f, lanes))
    shifted = x * splat(1.4426950408889634, f, lanes) + splat(MAGIC, f, lanes)
    exponent = bits(shifted, "int32", lanes) - splat(MAGIC_BITS, "int32", lanes)
    # Not `shifted - MAGIC`: TVM's simplifier would cancel it.
    n = cast(exponent, f, lanes)
    r = x - n * splat(0.693359375, f, lanes)
    r = r - n * splat(-2.12194440e-4, f, lanes)
    p = splat(1.9875691500e-4, f, lanes)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + splat(c, f, lanes)
    p = p * r * r + r + splat(1.0, f, lanes)
    # A shift, not a product: the simplifier would multiply it out and leave int32.
    return p * bits(ib.shift_left(exponent + splat(127, "int32", lanes), splat(23, "int32", lanes)), f, lanes)


def shuffle_two(a: Any, b: Any, lanes: tuple[int, ...]) -> Any:
    """The chosen lanes of two vectors, those of the second numbered on from the first's."""
    return tirx.Shuffle([a, b], [tirx.const(i, "int32") for i in lanes])


def select(condition: Any, then: Any, otherwise: Any) -> Any:
    """Lane by lane, without a branch."""
    return tirx.Select(condition, then, otherwise)
