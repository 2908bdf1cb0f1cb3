"""The Plan: what each layer of a network becomes. JSON, versioned, meant to be read and edited by hand.

    {
      "version": 1,
      "graph": "efficientnet_lite0",
      "calibration": {"method": "mse", "percentile": 99.99},
      "layers": {
        "_conv_stem": {"weights": "float32", "activations": "float32"},
        "_conv_head": {"weights": "int8", "activations": "uint8"}
      }
    }

A layer that the plan does not list stays float32. A graph and a plan (and the calibration data) decide
every byte of the result.

{"weights": "bfloat16", "activations": "bfloat16"} stores weights as bfloat16 and rounds to it what they are
multiplied with; sums and results are float32.

Version 2 is written where a layer is bfloat16, or its weights become codes (compiler/formats), by the
format's name:

        "model.layers.0.mlp.up_proj": {"weights": "bitmod4:128", "activations": "int8:group"}

Such a choice is "bitmod4:128" in short; "bitmod4:128@float32" and "bitmod4:128@int8:token" have other
activations than int8 with a scale for each group of a token. Tables that rows are gathered from may be named
too.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .errors import FormatError, PlanError
from .files import write_whole
from .formats import Format, format_of
from .ir import Graph, Node

VERSION, CODED_VERSION = 1, 2
LAYER_OPS = ("conv2d", "linear", "coded_linear")
"""Operators that carry weights: those whose OpDef says `layer=True` (a test compares)."""
FREE_OPS = ("conv2d", "linear")
"""Those of them whose weights are numbers: a plan decides what becomes of them."""

FORMATS: Mapping[str, Mapping[str, str]] = {
    "float32": {"weights": "float32", "activations": "float32"},
    "bfloat16": {"weights": "bfloat16", "activations": "bfloat16"},
    "int8": {"weights": "int8", "activations": "uint8"},
}
"""What a layer can become, by the name of the choice; beside these, every weight format."""
CODED_ACTIVATIONS = ("int8:group", "int8:token", "float32")
"""What a layer whose weights are codes reads; the first needs no mention in a choice. int8 with one scale for
a whole token loses what its largest channels drown: four blocks of SmolLM2-135M in bitmod3:64 are 0.107 nats
from float with float32 activations, 0.114 with a scale for each group, 0.151 with one for each token.
"""

TABLE_INT8, LARGE_TABLE, LONG_ROW = "int8:channel", 2**16, 64
"""What tables of so many numbers, in rows of so many, become where every layer is int8: elsewhere the scales
would weigh more than they save."""

METHODS = ("minmax", "percentile", "mse")
"""Ways to choose the range of a value from what calibration saw of it."""


@dataclass(frozen=True)
class Calibration:
    """How ranges are chosen. `percentile` (50 to 100) only matters to the method of that name."""

    method: str = "mse"
    percentile: float = 99.99

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise PlanError(f"calibration method {self.method!r} is not one of {', '.join(METHODS)}")
        number = isinstance(self.percentile, (int, float)) and not isinstance(self.percentile, bool)
        if not number or not 50 < self.percentile <= 100:
            raise PlanError(f"calibration percentile {self.percentile!r} must be above 50 and at most 100")


@dataclass(frozen=True)
class Plan:
    """A choice per layer name. `uniform`, `load` or `from_json` make one, `with_choice` changes it."""

    graph: str
    layers: Mapping[str, str]
    calibration: Calibration = field(default_factory=Calibration)

    def __post_init__(self) -> None:
        layers = {layer: _checked_choice(layer, choice) for layer, choice in self.layers.items()}
        object.__setattr__(self, "layers", MappingProxyType(layers))

    def __hash__(self) -> int:
        return hash(self.to_text())

    @staticmethod
    def uniform(graph: Graph, choice: str, calibration: Calibration | None = None) -> Plan:
        """The plan that makes every layer of the graph `choice`: "int8", "float32", "bfloat16" or a weight
        format. The last two are for tables too; a weight format not for convolutions, bfloat16 not for
        depthwise ones: these stay float32. Layers whose model came with int8 weights are "int8" in every
        plan; large tables are then rows of int8, each with a scale.
        """
        choice = _checked_choice("every layer", choice)
        free = {node.name: node for node in free_layers_of(graph)}
        layers = {node.name: choice if node.name in free else "int8" for node in layers_of(graph)}
        if coded_choice(choice) or choice == "bfloat16":
            unfit = (node for node in free.values() if not fits(graph, node, choice))
            layers |= {node.name: "float32" for node in unfit}
            layers |= {node.name: choice for node in tables_of(graph)}
        elif choice == "int8":
            layers |= {node.name: TABLE_INT8 for node in large_tables_of(graph)}
        return Plan(graph.name, layers, calibration or Calibration())

    def choice(self, layer: str) -> str:
        """ "int8", "float32", "bfloat16" or a weight format; layers not listed are "float32"."""
        return self.layers.get(layer, "float32")

    @property
    def coded(self) -> Mapping[str, tuple[Format, str]]:
        """Layers (and tables) whose weights become codes: their format, and what they read."""
        found = {layer: coded_choice(choice) for layer, choice in self.layers.items()}
        return {layer: pair for layer, pair in found.items() if pair}

    def with_choice(self, layer: str, choice: str) -> Plan:
        """The same plan with another choice for one layer. Raises PlanError for an unknown choice."""
        return replace(self, layers={**self.layers, layer: choice})

    def validate(self, graph: Graph) -> Plan:
        """The plan itself. Raises PlanError, with the closest names, if the graph lacks a layer it names, and
        for a choice that a layer cannot have."""
        names = [node.name for node in (*layers_of(graph), *tables_of(graph))]
        unknown = [layer for layer in self.layers if layer not in set(names)]
        if unknown:
            listed = "; ".join(_suggest(layer, names) for layer in unknown[:10])
            more = "; ..." if len(unknown) > 10 else ""
            raise PlanError(
                f"the plan for {self.graph!r} names {len(unknown)} layer(s) that graph {graph.name!r} does "
                f"not have: {listed}{more}. `bitsmith inspect` lists the layers"
            )
        for node in (*layers_of(graph), *tables_of(graph)):
            choice = self.choice(node.name)
            if not fits(graph, node, choice):
                raise PlanError(f"{node.name!r} cannot become {choice!r}: {_UNFIT[_kind(graph, node)]}")
        return self

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION if set(self.layers.values()) <= {"float32", "int8"} else CODED_VERSION,
            "graph": self.graph,
            "calibration": {"method": self.calibration.method, "percentile": self.calibration.percentile},
            "layers": {layer: formats_of(choice) for layer, choice in self.layers.items()},
        }

    def to_text(self) -> str:
        """The JSON text: one line per layer, layers in their order. Equal plans give equal text."""
        data = self.to_json()
        lines = [
            f"    {json.dumps(layer)}: {json.dumps(value)}" for layer, value in data.pop("layers").items()
        ]
        head = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in data.items()]
        body = ['  "layers": {', ",\n".join(lines), "  }"] if lines else ['  "layers": {}']
        return "\n".join(["{", *head, *body, "}", ""])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file, whole or not at all. Raises OutputError."""
        write_whole(path, self.to_text(), "the plan")

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Read a plan's file. Raises PlanError when it is missing, no JSON, or not a plan."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"cannot read plan {path}: {getattr(error, 'strerror', None) or error}") from None
        try:
            return Plan.from_text(text)
        except PlanError as error:
            raise PlanError(f"plan {path}: {error}") from None

    @staticmethod
    def from_text(text: str) -> Plan:
        """Parse JSON text. Raises PlanError with the line of a syntax error."""
        try:
            data = json.loads(text, object_pairs_hook=_no_repeats)
        except json.JSONDecodeError as error:
            raise PlanError(f"not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
        except RecursionError:
            raise PlanError("not a plan: nested too deeply") from None
        return Plan.from_json(data)

    @staticmethod
    def from_json(data: Any) -> Plan:
        """The plan that `to_json` wrote. Raises PlanError, also for unknown fields: typing mistakes show."""
        fields = _object(data, "the plan", {"version", "graph", "layers"}, {"calibration"})
        version = fields["version"]
        if type(version) is not int or version not in (VERSION, CODED_VERSION):
            raise PlanError(
                f"version is {version!r}; this bitsmith reads versions {VERSION} and {CODED_VERSION}"
            )
        if not isinstance(fields["graph"], str):
            raise PlanError(f"graph is {fields['graph']!r}, must be a name")
        if not isinstance(fields["layers"], dict):
            raise PlanError(f"layers is {fields['layers']!r}, must be an object: layer name -> formats")
        layers = {layer: _choice_of(layer, formats) for layer, formats in fields["layers"].items()}
        options = _object(fields.get("calibration", {}), "calibration", set(), {"method", "percentile"})
        return Plan(fields["graph"], layers, Calibration(**options))


def layers_of(graph: Graph) -> tuple[Node, ...]:
    """The convolutions and linears whose weights are parameters."""
    return tuple(node for node in graph.nodes if node.op in LAYER_OPS and node.inputs[1] in graph.params)


def free_layers_of(graph: Graph) -> tuple[Node, ...]:
    """The layers that a plan decides about: those whose weights are neither int8 nor codes already."""
    free = (node for node in layers_of(graph) if node.op in FREE_OPS)
    return tuple(node for node in free if graph.type_of(node.inputs[1]).dtype != "int8")


def tables_of(graph: Graph) -> tuple[Node, ...]:
    """The nodes that gather rows of a float32 parameter [n, k] (embeddings): a plan may make it codes."""
    found = []
    for node in graph.nodes:
        if node.op == "gather" and node.inputs[0] in graph.params and node.attrs["axis"] == 0:
            kind = graph.type_of(node.inputs[0])
            found += [node] if kind.dtype == "float32" and len(kind.shape) == 2 and kind.size else []
    return tuple(found)


def large_tables_of(graph: Graph) -> tuple[Node, ...]:
    """Those of them that are rows of int8 where every layer is int8."""
    kinds = ((node, graph.type_of(node.inputs[0])) for node in tables_of(graph))
    return tuple(node for node, kind in kinds if kind.size >= LARGE_TABLE and kind.shape[1] >= LONG_ROW)


_UNFIT = {
    "depthwise": "it is a depthwise convolution, whose weights are few: choose float32 or int8",
    "conv2d": "it is a convolution; weight formats are for linear layers and tables: choose float32, "
    "bfloat16 or int8",
    "gather": "it is a table that rows are gathered from: choose float32, bfloat16 or a weight format, such "
    "as int8:channel",
}
"""Why a node of that kind cannot have some choice, and what it can have."""


def _kind(graph: Graph, node: Node) -> str:
    """Its operator, or "depthwise": a convolution each of whose channels reads one channel of several."""
    groups = node.attrs.get("groups", 1)
    alone = node.op == "conv2d" and groups != 1 and graph.type_of(node.inputs[1]).shape[1] == 1
    return "depthwise" if alone else node.op


def fits(graph: Graph, node: Node, choice: str) -> bool:
    """Whether a layer or a table can have that choice."""
    kind = _kind(graph, node)
    if choice == "bfloat16":
        return kind != "depthwise"
    if choice == "int8":
        return kind != "gather"
    return choice == "float32" or kind not in ("conv2d", "depthwise")


@cache
def coded_choice(choice: str) -> tuple[Format, str] | None:
    """Weight format and activations of a choice; None for the choices in FORMATS. Raises FormatError."""
    if choice in FORMATS:
        return None
    weights, _, activations = choice.partition("@")
    activations = activations or CODED_ACTIVATIONS[0]
    if activations not in CODED_ACTIVATIONS:
        raise FormatError(f"activations {activations!r} are not one of {', '.join(CODED_ACTIVATIONS)}")
    return format_of(weights), activations


def formats_of(choice: str) -> dict[str, str]:
    """What a plan's file says for a choice."""
    found = coded_choice(choice)
    if found is None:
        return dict(FORMATS[choice])
    return {"weights": str(found[0]), "activations": found[1]}


def _choice_of(layer: str, formats: Any) -> str:
    wanted = _object(formats, f"layer {layer!r}", {"weights", "activations"}, set())
    for choice, known in FORMATS.items():
        if wanted == known:
            return choice
    texts = all(isinstance(text, str) for text in wanted.values())
    if texts and wanted["activations"] in CODED_ACTIVATIONS:
        try:
            return _short(format_of(wanted["weights"]), wanted["activations"])
        except FormatError as error:
            raise PlanError(f"layer {layer!r}: {error}") from None
    legal = " or ".join(json.dumps(known) for known in FORMATS.values())
    raise PlanError(
        f"layer {layer!r} asks for {json.dumps(wanted)}; it can have {legal}, or a weight format with "
        f"activations {', '.join(CODED_ACTIVATIONS)}"
    )


def _short(format: Format, activations: str) -> str:
    usual = activations == CODED_ACTIVATIONS[0]
    return str(format) if usual else f"{format}@{activations}"


def _checked_choice(layer: str, choice: str) -> str:
    """The choice, a weight format's name written in full. Raises PlanError."""
    try:
        found = coded_choice(choice)
    except FormatError as error:
        raise PlanError(
            f"layer {layer!r} cannot become {choice!r}; choose {', '.join(FORMATS)} or a weight format: "
            f"{error}"
        ) from None
    return choice if found is None else _short(*found)


def _object(data: Any, what: str, required: set[str], optional: set[str]) -> dict[str, Any]:
    """`data` as a dict with exactly these keys, or PlanError."""
    if not isinstance(data, dict):
        raise PlanError(f"{what} is {type(data).__name__}, must be an object")
    missing = sorted(required - set(data))
    if missing:
        raise PlanError(f"{what} lacks {', '.join(missing)}")
    legal = sorted(required | optional)
    unknown = [key for key in data if key not in legal]
    if unknown:
        raise PlanError(f"{what} has unknown fields: {'; '.join(_suggest(key, legal) for key in unknown)}")
    return data


def _no_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        names = [key for key, _ in pairs]
        raise PlanError(f"{next(key for key in names if names.count(key) > 1)!r} is given twice")
    return data


def _suggest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f"{name!r} (did you mean {', '.join(close)}?)" if close else repr(name)
