"""Named dimensions of an ONNX model's inputs: what is open, what a name stands for, how to ask for the rest.

A name is closed by its own size (`seq` = 128), or by the whole shape of an input that has it. Exporters also
write sums such as `past + seq`: one is closed when all names in it are.
"""

from __future__ import annotations

import ast
import operator
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...errors import InputError, ModelError

_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
USUAL_BATCH, USUAL_LENGTH, USUAL_SIDE = 1, 128, 224


def dimension_names(values: Sequence[Any]) -> list[str]:
    """The names that the inputs' dimensions have, sums included, sorted."""
    return sorted(
        {dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim if dim.dim_param}
    )


def named_sizes(
    values: Sequence[Any], named: Mapping[str, int], whole: Mapping[str, Sequence[int]]
) -> dict[str, int]:
    """Dimension name -> size, from the sizes given for names and the whole shapes given for inputs.

    Two inputs whose whole shapes give one name different sizes close nothing: files do misname dimensions.
    Raises InputError when a size and a whole shape differ.
    """
    seen: dict[str, set[int]] = {}
    for value in values:
        shape = whole.get(value.name, ())
        for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=False):
            if named.get(dim.dim_param, size) != size:
                raise InputError(
                    f"dimension {dim.dim_param!r} is {named[dim.dim_param]}, but the shape {tuple(shape)} of "
                    f"input {value.name!r} has {size} there: give one of the two"
                )
            if dim.dim_param:
                seen.setdefault(dim.dim_param, set()).add(size)
    return {**{name: min(found) for name, found in seen.items() if len(found) == 1}, **named}


def size_of(name: str, sizes: Mapping[str, int]) -> int | None:
    """The size of a dimension, which may be a sum of names; None when it is open."""
    if name in sizes:
        return sizes[name]
    parsed = _parsed(name)
    return None if parsed is None else _computed(parsed, sizes)


def _parsed(name: str) -> ast.expr | None:
    """`name` as arithmetic; None for a plain name."""
    try:
        body = ast.parse(name.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return body if isinstance(body, ast.BinOp) else None


def _computed(term: ast.expr, sizes: Mapping[str, int]) -> int | None:
    if isinstance(term, ast.Constant):
        return term.value if type(term.value) is int else None
    if isinstance(term, ast.Name):
        return sizes.get(term.id)
    if not isinstance(term, ast.BinOp) or type(term.op) not in _ARITHMETIC:
        return None
    left, right = _computed(term.left, sizes), _computed(term.right, sizes)
    if left is None or right is None or (isinstance(term.op, ast.FloorDiv) and not right):
        return None
    return _ARITHMETIC[type(term.op)](left, right)


def refuse_open(values: Sequence[Any], label: str) -> None:
    """Raise InputError when a dimension is open: all that are, and options to paste that close them."""
    plain = {name for name in dimension_names(values) if _parsed(name) is None}
    lines: list[str] = []
    wanted: dict[str, str] = {}  # name -> sizes with x between, in the order of the inputs
    for value in values:
        if not value.type.tensor_type.HasField("shape"):
            lines.append(f"  {value.name}: no shape at all")
            wanted[value.name] = f"{USUAL_BATCH}x3x{USUAL_SIDE}x{USUAL_SIDE}"
            continue
        dims = list(value.type.tensor_type.shape.dim)
        _refuse_empty(value.name, dims, label)
        if all(map(_closed, dims)):
            continue
        shown = [str(dim.dim_value) if _closed(dim) else dim.dim_param or "?" for dim in dims]
        lines.append(f"  {value.name}: [{', '.join(shown)}]")
        wanted.update(_wanted(value.name, dims, plain))
    if lines:
        raise InputError(_open_message(label, lines, wanted))


def _closed(dim: Any) -> bool:
    return bool(dim.HasField("dim_value") and dim.dim_value != -1)


def _refuse_empty(name: str, dims: Sequence[Any], label: str) -> None:
    for i, dim in enumerate(dims):
        if _closed(dim) and dim.dim_value <= 0:
            raise ModelError(f"{label}: input {name!r} has an empty dimension {i}: it holds no data")


def _wanted(name: str, dims: Sequence[Any], plain: set[str]) -> dict[str, str]:
    """Sizes to suggest: of the open names of an input, or of the whole of one with a nameless dimension."""
    usual = [str(dim.dim_value if _closed(dim) else _usual(i, len(dims))) for i, dim in enumerate(dims)]
    if not all(dim.dim_param for dim in dims if not _closed(dim)):
        return {name: "x".join(usual) if len(usual) > 1 else f"{usual[0]}x"}
    found = {dim.dim_param: size for dim, size in zip(dims, usual, strict=True) if not _closed(dim)}
    return {key: size for key, size in found.items() if not _names_in(key) or not _names_in(key) <= plain}


def _names_in(name: str) -> set[str]:
    """The names that a sum consists of; none for a plain name."""
    parsed = _parsed(name)
    return {term.id for term in ast.walk(parsed) if isinstance(term, ast.Name)} if parsed else set()


def _usual(axis: int, rank: int) -> int:
    if axis == 0:
        return USUAL_BATCH
    return USUAL_SIDE if rank == 4 and axis > 1 else USUAL_LENGTH


def _open_message(label: str, lines: Sequence[str], wanted: Mapping[str, str]) -> str:
    options = " ".join(f"--shape {shlex.quote(f'{name}={sizes}')}" for name, sizes in wanted.items())
    call = ", ".join(f"{name!r}: {_literal(sizes)}" for name, sizes in wanted.items())
    return "\n".join(
        [
            f"{label}: input dimensions are open, and bitsmith compiles for fixed shapes:",
            *lines,
            f"Open are: {', '.join(wanted)}",
            f"Give their sizes, for example {options}",
            f"or in Python shapes={{{call}}}.",
        ]
    )


def _literal(sizes: str) -> str:
    return f"({sizes.replace('x', ', ').strip()})" if "x" in sizes else sizes
