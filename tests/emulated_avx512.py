"""AVX-512's instructions in plain arithmetic of the same meaning, which LLVM writes in AVX2.

The meaning is taken from Intel's manual. With it kernels of 16 lanes and 32 registers run on a machine that
need not have AVX-512: the fixture `emulated` (conftest.py) puts it in the place of `emit.intrinsic`.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tvm
from bitsmith.targets.isa import ISAS, Isa
from bitsmith.targets.kernels import emit
from bitsmith.targets.target import TARGETS, Target

needs_avx2 = pytest.mark.skipif(
    not TARGETS["x86-64-avx2"].runs_here,
    reason="this machine lacks AVX2, for which the emulation is compiled",
)


def piece(words: Any, index: int, width: int, signed: bool) -> Any:
    """Bits [index * width, (index + 1) * width) of each of 16 double words, as int32."""
    left, right = (emit.splat(n, "int32", 16) for n in (32 - (index + 1) * width, 32 - width))
    top = emit.ib.shift_left(emit.bits(words, "int32", 16), left)
    if signed:
        return emit.ib.shift_right(top, right)
    return emit.cast(
        emit.ib.shift_right(emit.bits(top, "uint32", 16), emit.cast(right, "uint32", 16)), "int32", 16
    )


def vpdpbusd(acc: Any, a: Any, b: Any) -> Any:
    for i in range(4):
        acc = acc + piece(a, i, 8, signed=False) * piece(b, i, 8, signed=True)
    return acc


def vpmaddwd(a: Any, b: Any) -> Any:
    low, high = (piece(a, i, 16, signed=True) * piece(b, i, 16, signed=True) for i in range(2))
    return low + high


def vpmaddubsw(a: Any, b: Any) -> Any:
    """Saturates, as the instruction does: a kernel that lets it is wrong."""
    products = [piece(a, i, 8, signed=False) * piece(b, i, 8, signed=True) for i in range(4)]
    least, most = (emit.splat(bound, "int32", 16) for bound in (-(2**15), 2**15 - 1))
    low, high = (emit.vmin(emit.vmax(products[i] + products[i + 1], least), most) for i in (0, 2))
    half, mask = emit.splat(16, "int32", 16), emit.splat(2**16 - 1, "int32", 16)
    both = emit.ib.bitwise_or(emit.ib.shift_left(high, half), emit.ib.bitwise_and(low, mask))
    return emit.bits(both, "int16", 32)


def vdpbf16ps(acc: Any, a: Any, b: Any) -> Any:
    """The upper pair first; subnormal numbers, which it takes for zero, do not come up here."""
    for i in (1, 0):
        x, y = (
            emit.ib.shift_left(piece(v, i, 16, signed=False), emit.splat(16, "int32", 16)) for v in (a, b)
        )
        acc = acc + emit.bits(x, "float32", 16) * emit.bits(y, "float32", 16)
    return acc


def cvtps2dq(f: Any, kept: Any, mask: Any, rounding: Any) -> Any:
    """All lanes, rounded as the processor is set (4)."""
    assert (mask.value, rounding.value) == (-1, 4)
    return emit.cast(emit.intrinsic("llvm.nearbyint", "float32x16", f), "int32", 16)


def narrowed(a: Any, b: Any, to: str, least: int, most: int) -> Any:
    """Two vectors as one of half as wide elements, saturated, 128 bits of either in turn."""
    lanes = 512 // tvm.DataType(to).bits // 2
    kind, width = {"int16": ("int32", 4), "int8": ("int16", 8)}[to]
    low, high = (emit.splat(bound, kind, lanes) for bound in (least, most))
    halves = [emit.cast(emit.vmin(emit.vmax(v, low), high), to, lanes) for v in (a, b)]
    return emit.gather_lanes(
        halves,
        tuple(side * lanes + part * width + i for part in range(4) for side in (0, 1) for i in range(width)),
    )


def vpshufb(table: Any, codes: Any) -> Any:
    """Bytes of each 128 bits of the table; only indices below 16 occur."""
    lanes = [emit.local(64, "uint8") for _ in range(3)]
    for buffer, value in zip(lanes, (table, codes), strict=False):
        emit.store(buffer, 0, value, 64)
    with emit.loop(0, 64) as i:
        index = emit.cast(emit.load(lanes[1], i), "int64", 1)
        emit.store(lanes[2], i, emit.load(lanes[0], index + i // 16 * 16))
    return emit.load(lanes[2], 0, 64)


EMULATED: dict[str, Callable[..., Any]] = {
    "llvm.x86.avx512.mask.cvtps2dq.512": cvtps2dq,
    "llvm.x86.avx512.packssdw.512": lambda a, b: narrowed(a, b, "int16", -(2**15), 2**15 - 1),
    "llvm.x86.avx512.packuswb.512": lambda a, b: narrowed(a, b, "int8", 0, 255),
    "llvm.x86.avx512.vpdpbusd.512": vpdpbusd,
    "llvm.x86.avx512bf16.dpbf16ps.512": vdpbf16ps,
    "llvm.x86.avx512.pmaddw.d.512": vpmaddwd,
    "llvm.x86.avx512.pmaddubs.w.512": vpmaddubsw,
    "llvm.x86.avx512.pshuf.b.512": vpshufb,
}


def wide(dot: str, pair_dot: str = "") -> Target:
    """16 lanes and 32 registers, in AVX2's instructions."""
    isa = Isa(
        f"wide-{dot}", ISAS["avx2"].triple, "haswell", ISAS["avx2"].features, 16, 32, dot, pair_dot, (16, 32),
        "bf16dot",
    )  # fmt: skip
    return Target(isa.name, isa, "AVX-512's kernels, emulated")


def emulate(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """AVX-512's instructions are written out from here on; gives the names of those that were asked for."""
    asked: set[str] = set()
    real = emit.intrinsic

    def intrinsic(name: str, dtype: str, *args: Any) -> Any:
        if not name.startswith("llvm.x86.avx512"):
            return real(name, dtype, *args)
        asked.add(name)
        return EMULATED[name](*args)

    monkeypatch.setattr(emit, "intrinsic", intrinsic)
    return asked


def mnemonics(path: Path) -> list[tuple[str, str]]:
    """(instruction, operands) of an object."""
    command = ["objdump", "-d", "--no-show-raw-insn", str(path)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    return re.findall(r"^\s+[0-9a-f]+:\s+(\w+)\s*(.*)$", listed.stdout, re.MULTILINE)
