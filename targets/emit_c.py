"""Writes a Program as `model.c`: the tables that runtime/model.h declares, and a line of C for each call."""

import re
import string
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..compiler.errors import InternalError
from .program import (
    Place,
    Program,
    Space,
    Step,
    TensorSpec,
)

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = ("bitsmith_", "bs_")
_PLAIN = frozenset(string.ascii_letters + string.digits + " _-+.,:;/()[]{}<>=!#$%&'*@^|~`")
_FRAME = "const bs_frame *f, int32_t b, int32_t e"
_INT32_MAX = 2**31 - 1


def emit_model_c(program: Program, weights_hash: int, others: Sequence[Program] = ()) -> str:
    """The source of `model.c`. `weights_hash` is `hash64` (targets/link.py) of the program's `weights.bin`.

    `others`: the same network for other shapes, on the same weights: entries 1 and on. Raises InternalError
    for a program that names a bad symbol or points outside of its buffers, and for programs that differ in
    more than shapes.
    """
    programs = (program, *others)
    arity: dict[str, int] = {}
    for each in programs:
        _check(each, arity)
        _check_alike(program, each)
    calls: dict[str, str] = {}  # the C call -> the stub that makes it
    entries = [part for i, each in enumerate(programs) for part in _entry(i, each, calls)]
    rows = [f"{{{_fields(_entry_fields(i, each))}}}" for i, each in enumerate(programs)]
    parts = [
        '/* Written by bitsmith: the steps and tensors of one model. */\n#include "model.h"\n',
        *(f"extern void {symbol}({'void *, ' * n}int32_t, int32_t);" for symbol, n in arity.items()),
        *(f"static void {stub}({_FRAME}) {{ {call} }}" for call, stub in calls.items()),
        _array("const char *const features[]", [*map(c_string, program.features), "0"]),
        *entries,
        _array("const bs_entry entries[]", rows),
        _tensors("state", program.states),
        _model(programs, weights_hash),
    ]
    return "\n".join(parts)


def c_string(text: str) -> str:
    """`text` as a C string literal: UTF-8, everything out of the ordinary as a three-digit octal escape."""
    return '"' + "".join(c if c in _PLAIN else "".join(f"\\{b:03o}" for b in c.encode()) for c in text) + '"'


def _check(program: Program, arity: dict[str, int]) -> None:
    """Adds to `arity` the number of pointer arguments of each kernel, in order of first use."""
    sizes = {
        Space.ARENA: program.arena_bytes,
        Space.WEIGHTS: program.weights_bytes,
        Space.INPUT: len(program.inputs),
        Space.OUTPUT: len(program.outputs),
        Space.STATE: program.state_bytes,
    }
    for limit in program.limits:
        if program.inputs[limit.input].dtype not in ("int32", "int64"):
            raise InternalError(f"{program.name}: {limit} of an input that is no integer")
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


def _check_alike(first: Program, other: Program) -> None:
    def said(program: Program) -> tuple[object, ...]:
        specs = [[(s.name, s.dtype) for s in each] for each in (program.inputs, program.outputs)]
        kept = program.states, program.state_bytes
        return program.name, program.weights_bytes, program.features, specs, kept

    if said(first) != said(other):
        raise InternalError(
            f"programs of one library differ in more than shapes: {said(first)}, {said(other)}"
        )


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
        case Space.STATE:
            return f"f->states + {place.offset}"


def _array(declaration: str, rows: Iterable[str]) -> str:
    return f"static {declaration} = {{{', '.join(rows) or '0'}}};"


def _entry(number: int, program: Program, calls: dict[str, str]) -> list[str]:
    """The tables of one entry; calls that are new are added to `calls`."""
    steps = []
    for step in program.steps:
        stub = calls.setdefault(_call(step), f"call{len(calls)}")
        steps.append(f"{{{c_string(step.layer)}, {c_string(step.symbol)}, {stub}, {step.tasks}}}")
    return [
        _tensors(f"input{number}_", program.inputs),
        _tensors(f"output{number}_", program.outputs),
        _array(f"const bs_step steps{number}[]", steps or ["{0}"]),
        _array(f"const bs_limit limits{number}[]", _limits(program) or ["{0}"]),
    ]


def _limits(program: Program) -> list[str]:
    rows = []
    for limit in program.limits:
        spec = program.inputs[limit.input]
        count = int(np.prod(spec.shape, dtype=np.int64))
        rows.append(f"{{{limit.input}, {np.dtype(spec.dtype).itemsize}, {count}, {limit.most}}}")
    return rows


def _entry_fields(number: int, program: Program) -> dict[str, object]:
    return {
        "inputs": f"input{number}_s",
        "outputs": f"output{number}_s",
        "steps": f"steps{number}",
        "input_count": len(program.inputs),
        "output_count": len(program.outputs),
        "step_count": len(program.steps),
        "limits": f"limits{number}",
        "limit_count": len(program.limits),
    }


def _tensors(kind: str, specs: Sequence[TensorSpec]) -> str:
    lines = [_array(f"const int64_t {kind}{i}_shape[]", map(str, spec.shape)) for i, spec in enumerate(specs)]
    rows = []
    for i, spec in enumerate(specs):
        count = int(np.prod(spec.shape, dtype=np.int64))
        size = count * np.dtype(spec.dtype).itemsize
        fields = (c_string(spec.name), c_string(spec.dtype), f"{kind}{i}_shape", len(spec.shape), size)
        rows.append(f"{{{', '.join(map(str, fields))}}}")
    return "\n".join([*lines, _array(f"const bitsmith_tensor {kind}s[]", rows or ["{0}"])])


def _model(programs: Sequence[Program], weights_hash: int) -> str:
    fields = {
        "name": c_string(programs[0].name),
        "features": "features",
        "entries": "entries",
        "entry_count": len(programs),
        "states": "states",
        "state_count": len(programs[0].states),
        "state_bytes": f"UINT64_C({programs[0].state_bytes})",
        "arena_bytes": f"UINT64_C({max(program.arena_bytes for program in programs)})",
        "weight_bytes": f"UINT64_C({programs[0].weights_bytes})",
        "weight_hash": f"UINT64_C({weights_hash})",
    }
    return f"const bs_model bs_the_model = {{{_fields(fields)}}};\n"


def _fields(fields: Mapping[str, object]) -> str:
    return ", ".join(f".{name} = {value}" for name, value in fields.items())
