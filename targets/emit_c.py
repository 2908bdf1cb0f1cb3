"""Writes a Program as `model.c`: the tables that runtime/model.h declares, and a line of C for each call."""

import re
import string
from collections.abc import Iterable, Sequence

import numpy as np

from ..compiler.errors import InternalError
from .program import Place, Program, Space, Step, TensorSpec

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = ("bitsmith_", "bs_")
_PLAIN = frozenset(string.ascii_letters + string.digits + " _-+.,:;/()[]{}<>=!#$%&'*@^|~`")
_FRAME = "const bs_frame *f, int32_t b, int32_t e"
_INT32_MAX = 2**31 - 1


def emit_model_c(program: Program, weights_hash: int) -> str:
    """The source of `model.c`. `weights_hash` is `hash64` (targets/link.py) of the program's `weights.bin`.

    Raises InternalError for a program that names a bad symbol or points outside of its buffers.
    """
    arity = _check(program)
    calls: dict[str, str] = {}  # the C call -> the stub that makes it
    steps = []
    for step in program.steps:
        stub = calls.setdefault(_call(step), f"call{len(calls)}")
        steps.append(f"{{{c_string(step.layer)}, {c_string(step.symbol)}, {stub}, {step.tasks}}}")
    parts = [
        '/* Written by bitsmith: the steps and tensors of one model. */\n#include "model.h"\n',
        *(f"extern void {symbol}({'void *, ' * n}int32_t, int32_t);" for symbol, n in arity.items()),
        *(f"static void {stub}({_FRAME}) {{ {call} }}" for call, stub in calls.items()),
        _array("const char *const features[]", [*map(c_string, program.features), "0"]),
        _tensors("input", program.inputs),
        _tensors("output", program.outputs),
        _array("const bs_step steps[]", steps or ["{0}"]),
        _model(program, weights_hash),
    ]
    return "\n".join(parts)


def c_string(text: str) -> str:
    """`text` as a C string literal: UTF-8, everything out of the ordinary as a three-digit octal escape."""
    return '"' + "".join(c if c in _PLAIN else "".join(f"\\{b:03o}" for b in c.encode()) for c in text) + '"'


def _check(program: Program) -> dict[str, int]:
    """Number of pointer arguments of each kernel, in order of first use."""
    sizes = {
        Space.ARENA: program.arena_bytes,
        Space.WEIGHTS: program.weights_bytes,
        Space.INPUT: len(program.inputs),
        Space.OUTPUT: len(program.outputs),
    }
    arity: dict[str, int] = {}
    for step in program.steps:
        where = f"step {step.symbol!r} of layer {step.layer!r}"
        if not _IDENTIFIER.fullmatch(step.symbol) or step.symbol.startswith(_RESERVED):
            raise InternalError(f"{where}: not a name for a kernel")
        if not 1 <= step.tasks <= _INT32_MAX:
            raise InternalError(f"{where}: {step.tasks} tasks, must be 1 to 2^31 - 1")
        count = len(step.places)
        if arity.setdefault(step.symbol, count) != count:
            raise InternalError(f"{where}: {count} buffers, but {arity[step.symbol]} in an earlier step")
        for place in step.places:
            if not 0 <= place.offset < sizes[place.space]:
                raise InternalError(f"{where}: {place} lies outside of {sizes[place.space]}")
    return arity


def _call(step: Step) -> str:
    return f"{step.symbol}({''.join(_pointer(p) + ', ' for p in step.places)}b, e);"


def _pointer(place: Place) -> str:
    match place.space:
        case Space.ARENA:
            return f"f->arena + {place.offset}"
        case Space.WEIGHTS:
            return f"f->weights + {place.offset}"
        case Space.INPUT:
            return f"(void *)f->inputs[{place.offset}]"
        case Space.OUTPUT:
            return f"f->outputs[{place.offset}]"


def _array(declaration: str, rows: Iterable[str]) -> str:
    return f"static {declaration} = {{{', '.join(rows) or '0'}}};"


def _tensors(kind: str, specs: Sequence[TensorSpec]) -> str:
    lines = [_array(f"const int64_t {kind}{i}_shape[]", map(str, spec.shape)) for i, spec in enumerate(specs)]
    rows = []
    for i, spec in enumerate(specs):
        count = int(np.prod(spec.shape, dtype=np.int64))
        size = count * np.dtype(spec.dtype).itemsize
        fields = (c_string(spec.name), c_string(spec.dtype), f"{kind}{i}_shape", len(spec.shape), size)
        rows.append(f"{{{', '.join(map(str, fields))}}}")
    return "\n".join([*lines, _array(f"const bitsmith_tensor {kind}s[]", rows or ["{0}"])])


def _model(program: Program, weights_hash: int) -> str:
    fields = {
        "name": c_string(program.name),
        "features": "features",
        "inputs": "inputs",
        "outputs": "outputs",
        "steps": "steps",
        "input_count": len(program.inputs),
        "output_count": len(program.outputs),
        "step_count": len(program.steps),
        "arena_bytes": f"UINT64_C({program.arena_bytes})",
        "weight_bytes": f"UINT64_C({program.weights_bytes})",
        "weight_hash": f"UINT64_C({weights_hash})",
    }
    return "const bs_model bs_the_model = {" + ", ".join(f".{k} = {v}" for k, v in fields.items()) + "};\n"
