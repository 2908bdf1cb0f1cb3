"""Sample inputs in the forms that users have them, as one list of runs.

one array            [n, ...]: n runs of a model with one input of shape [1, ...];
                     or [n, 1, ...], the whole input n times
dict name -> array   the same for each input
sequence of runs     each an array (one input), a tuple of arrays (inputs in order) or a dict name -> array
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .errors import InputError
from .ir import Graph, TensorType

Samples = np.ndarray | Mapping[str, np.ndarray] | Iterable[Any]


def iterate(graph: Graph, data: Samples) -> list[dict[str, np.ndarray]]:
    """One dict (input name -> array of the input's exact shape and type) per run; views of the given arrays
    where possible.

    Raises InputError when there are no samples, when shapes or types do not fit (the message has the
    expected ones), or when a sample holds NaN or infinity.
    """
    if isinstance(data, Mapping):
        runs = _from_columns(graph, data)
    elif isinstance(data, np.ndarray):
        runs = _from_columns(graph, {_only_input(graph, "one array"): data})
    elif isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise InputError(f"samples are {type(data).__name__}; {_expected(graph)}")
    else:
        runs = [_from_row(graph, i, row) for i, row in enumerate(data)]
    if not runs:
        raise InputError(f"there are no samples; {_expected(graph)}")
    for i, run in enumerate(runs):
        for name, array in run.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise InputError(f"sample {i}: input {name!r} holds NaN or infinite values")
    return runs


def _expected(graph: Graph) -> str:
    inputs = ", ".join(f"{name}: {kind}" for name, kind in graph.fed)
    return f"expected an array, a dict of arrays or a sequence of runs for the inputs {inputs}"


def _only_input(graph: Graph, found: str) -> str:
    if len(graph.fed) != 1:
        raise InputError(
            f"samples are {found}, but the model has {len(graph.fed)} inputs; {_expected(graph)}"
        )
    return graph.fed[0][0]


def _check_names(graph: Graph, given: Mapping[str, Any], where: str) -> None:
    known = dict(graph.fed)
    missing, unknown = [n for n in known if n not in given], [n for n in given if n not in known]
    if missing or unknown:
        lacks = f"lacks {', '.join(missing)}" if missing else ""
        extra = f"has {', '.join(map(str, unknown))}, which the model does not take" if unknown else ""
        raise InputError(f"{where} {' and '.join(filter(None, (lacks, extra)))}; {_expected(graph)}")


def _from_columns(graph: Graph, columns: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
    """Arrays with the samples stacked along a leading axis."""
    _check_names(graph, columns, "the dict of samples")
    table = {}
    for name, kind in graph.fed:
        array = np.asarray(columns[name])
        if kind.shape[:1] == (1,) and array.shape[1:] == kind.shape[1:]:
            array = array[:, np.newaxis]
        if array.shape[1:] != kind.shape or array.ndim == 0:
            rows = f" or [n, {', '.join(map(str, kind.shape[1:]))}]" if kind.shape[:1] == (1,) else ""
            wanted = f"[n, {', '.join(map(str, kind.shape))}]{rows}"
            raise InputError(f"samples for input {name!r} have shape {list(array.shape)}, expected {wanted}")
        table[name] = array
    counts = {name: len(array) for name, array in table.items()}
    if len(set(counts.values())) > 1:
        raise InputError(
            f"inputs have different numbers of samples: {', '.join(f'{n}: {c}' for n, c in counts.items())}"
        )
    kinds = dict(graph.fed)
    return [
        {name: _cast(array[i], kinds[name], f"sample {i}: input {name!r}") for name, array in table.items()}
        for i in range(next(iter(counts.values()), 0))
    ]


def _from_row(graph: Graph, index: int, row: Any) -> dict[str, np.ndarray]:
    """One run."""
    if isinstance(row, Mapping):
        _check_names(graph, row, f"sample {index}")
        arrays = dict(row)
    elif isinstance(row, (tuple, list)):
        if len(row) != len(graph.fed):
            wanted = f"{len(graph.fed)} inputs; {_expected(graph)}"
            raise InputError(f"sample {index} has {len(row)} arrays, the model {wanted}")
        arrays = {name: array for (name, _), array in zip(graph.fed, row, strict=True)}
    else:
        arrays = {_only_input(graph, "single arrays"): row}
    return {name: _fit(arrays[name], kind, f"sample {index}: input {name!r}") for name, kind in graph.fed}


def _fit(value: Any, kind: TensorType, what: str) -> np.ndarray:
    """The array in the input's shape; the leading axis of one run may be left out."""
    array = np.asarray(value)
    if kind.shape[:1] == (1,) and array.shape == kind.shape[1:]:
        array = array[np.newaxis]
    if array.shape != kind.shape:
        raise InputError(f"{what} has shape {list(array.shape)}, expected {list(kind.shape)}")
    return _cast(array, kind, what)


def _cast(array: np.ndarray, kind: TensorType, what: str) -> np.ndarray:
    """The array in the input's type. Only changes of width pass: integers where floats belong are
    unscaled pictures.
    """
    want = np.dtype(kind.dtype)
    if array.dtype == want:
        return array
    legal = {"f": "f", "i": "iu", "u": "iu", "b": "b"}[want.kind]
    if array.dtype.kind not in legal:
        hint = ": scale and convert it as the model was trained" if want.kind == "f" else ""
        raise InputError(f"{what} is {array.dtype}, expected {kind.dtype}{hint}")
    with np.errstate(over="ignore"):  # what overflows becomes infinite, which `iterate` reports
        result = array.astype(want)
    if want.kind in "iu" and not np.array_equal(result, array):
        raise InputError(f"{what} has numbers that do not fit {kind.dtype}")
    return result
