"""ONNX's own backend tests of single operators, compiled for this machine and run.

Each test is a model of one operator (or of an operator's definition by others), with inputs and outputs.
Inputs whose values decide shapes (the target of a Reshape) are compiled in, as `constants=`: a test that
needs this is marked.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import bitsmith
import numpy as np
from bitsmith.compiler.errors import BitsmithError, InputError, ModelError, UnsupportedError
from bitsmith.compiler.ir import Graph

Feed = Mapping[str, np.ndarray]
Execute = Callable[[Graph, Sequence[Feed]], list[Feed]]
"""A graph and the inputs of several runs -> the outputs of each, by name and in order."""
PLAIN_TYPES = frozenset(
    "FLOAT DOUBLE FLOAT16 BFLOAT16 BOOL INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64".split()
)
"""Element types of the tests that count; the others are text, 8-bit floats and integers below 8 bits."""


ROUNDED_BY_ONNX = {"test_dft_inverse": 1e-6, "test_dft_inverse_opset19": 1e-6}
"""Absolute tolerance of tests whose wanted outputs are further from the truth (an exact zero) than ONNX's
tolerance of 1e-7: they hold the rounding errors of a Fourier transform in float32."""


@dataclass(frozen=True)
class Outcome:
    """What became of one test.

    operator   what it tests, with its domain if that is not ONNX's own
    counts     static shapes, and tensors of PLAIN_TYPES only
    status     passed, unsupported (refused with a message before compilation), wrong (another result), error
    reason     of anything but passed, one line
    constants  inputs that were compiled in
    """

    name: str
    operator: str
    counts: bool
    status: str
    reason: str = ""
    constants: tuple[str, ...] = ()


@cache
def cases() -> dict[str, Any]:
    """onnx's test cases by name; making them takes about ten seconds."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return {case.name: case for case in load_model_tests(kind="node")}


def run_all(pattern: str = "", execute: Execute | None = None) -> Iterator[Outcome]:
    """The tests whose name contains a match of the regular expression, in order of name."""
    for name, case in sorted(cases().items()):
        if re.search(pattern, name):
            yield run_case(case, execute or run_compiled)


def run_compiled(graph: Graph, feeds: Sequence[Feed]) -> list[Feed]:
    """Outputs for each feed, by the graph compiled for this machine."""
    with bitsmith.compile(graph) as artifact:
        return [artifact.run(**feed) for feed in feeds]


def run_reference_executor(graph: Graph, feeds: Sequence[Feed]) -> list[Feed]:
    """The same by the reference executor: in a tenth of the time, to look for gaps in the importer."""
    from bitsmith.compiler.reference import run_reference

    return [run_reference(graph, feed) for feed in feeds]


def run_case(case: Any, execute: Execute = run_compiled) -> Outcome:
    """Load, compile, run, compare. An unexpected exception is an outcome too: the others shall still run."""
    about = (case.name, operator_of(case), counts(case.model))
    try:
        status, reason, constants = _attempt(case, execute)
    except BitsmithError as error:
        status, reason, constants = "error", f"{type(error).__name__}: {error}", ()
    except Exception as error:  # noqa: BLE001 - it is what the test is about
        status, reason, constants = "error", f"unexpected {type(error).__name__}: {error}", ()
    return Outcome(*about, status, _one_line(reason), constants)


def operator_of(case: Any) -> str:
    """The operator under test. A test of a definition (..._expanded) belongs to the one it defines."""
    base = cases().get(re.sub(r"_expanded.*", "", case.name), case)
    node = base.model.graph.node[-1]
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else str(node.op_type)


def counts(model: Any) -> bool:
    from onnx import TensorProto

    for value in (*model.graph.input, *model.graph.output):
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
            return False
        if TensorProto.DataType.Name(tensor.elem_type) not in PLAIN_TYPES:
            return False
        if not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            return False
    return True


def _attempt(case: Any, execute: Execute) -> tuple[str, str, tuple[str, ...]]:
    feeds = _feeds(case)
    constants: dict[str, np.ndarray] = {}
    if feeds is None:
        return "unsupported", "a test on sequences, optional or missing values", ()
    try:
        graph, constants = _load(case.model, feeds)
    except UnsupportedError as error:
        return "unsupported", _reasons(str(error)), ()
    except (ModelError, InputError) as error:
        return "unsupported", str(error).split(": ", 1)[-1], ()
    named = [_named(case.model, inputs) for inputs, _ in case.data_sets]
    made = execute(graph, [{name: given[name] for name, _ in graph.inputs} for given in named])
    for outputs, (_, wanted) in zip(made, case.data_sets, strict=True):
        each = [part for w in wanted for part in (w if isinstance(w, list) else [w])]  # of sequences
        difference = _difference(list(outputs.values()), [_array(w) for w in each], case)
        if difference:
            return "wrong", difference, tuple(constants)
    return "passed", "", tuple(constants)


def _load(model: Any, feeds: dict[str, np.ndarray]) -> tuple[Any, dict[str, np.ndarray]]:
    """The graph; inputs that the importer wants to know are compiled in."""
    constants: dict[str, np.ndarray] = {}
    while True:
        try:
            shaped = {name: array for name, array in feeds.items() if name not in constants}
            return bitsmith.load(model, inputs=shaped, constants=constants), constants
        except UnsupportedError as error:
            more = {name: feeds[name] for name in error.inputs if name in feeds and name not in constants}
            if not more:
                raise
            constants |= more


def _array(value: Any) -> Any:
    import onnx

    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _named(model: Any, values: Sequence[Any]) -> dict[str, Any]:
    """Inputs by name. As in onnx's own runner, they are the graph's inputs from the first on."""
    return {info.name: _array(value) for info, value in zip(model.graph.input, values, strict=False)}


def _feeds(case: Any) -> dict[str, np.ndarray] | None:
    """The first data set; None when it holds anything but arrays."""
    feeds = _named(case.model, case.data_sets[0][0])
    return feeds if all(isinstance(array, np.ndarray | np.generic) for array in feeds.values()) else None


def _difference(made: Sequence[np.ndarray], wanted: Sequence[np.ndarray], case: Any) -> str:
    """What differs, "" if nothing: shapes, element types and values by onnx's own tolerances."""
    from onnx.backend.test.runner import Runner

    try:
        atol = ROUNDED_BY_ONNX.get(case.name, case.atol)
        Runner.assert_similar_outputs(wanted, made, rtol=case.rtol, atol=atol)
    except AssertionError as error:
        return str(error)
    return ""


def _reasons(message: str) -> str:
    """The listed reasons of an UnsupportedError, without the names of nodes."""
    lines = [line.strip() for line in message.splitlines()[1:] if line.startswith("  ")]
    short = [re.sub(r" \(nodes: .*\)$", "", line) for line in lines]
    return "; ".join(short) if short else message.split(": ", 1)[-1]


def _one_line(text: str) -> str:
    return " ".join(text.split())[:400]
