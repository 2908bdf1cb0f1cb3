"""Lowering: values where they belong whatever shares their memory, refusals at once, the same bytes again."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.errors import ArtifactError, OutputError, UnsupportedError
from bitsmith.compiler.ir import DTYPES, Graph
from bitsmith.compiler.ops import OPS
from bitsmith.compiler.reference import run_reference
from bitsmith.targets import build as build_module
from bitsmith.targets import objects
from bitsmith.targets.build import build, write
from bitsmith.targets.lower import lower
from bitsmith.targets.program import Space
from bitsmith.targets.target import resolve
from one_graph import disagreement, random_array

HOST = resolve("host")


def chain_of_reshapes(b: GraphBuilder) -> list[str]:
    y = b.add("tanh", [b.input("x", (2, 3, 4))])
    for shape in ((6, 4), (24,), (4, 6)):
        y = b.add("reshape", [y], shape=shape)
    return [b.add("hard_swish", [y])]


def reshaped_input(b: GraphBuilder) -> list[str]:
    y = b.add("reshape", [b.input("x", (2, 6))], shape=(3, 4))
    return [b.add("tanh", [y]), y]


def reshape_to_an_output(b: GraphBuilder) -> list[str]:
    return [b.add("reshape", [b.add("tanh", [b.input("x", (2, 6))])], shape=(12,))]


def value_and_its_reshapes(b: GraphBuilder) -> list[str]:
    y = b.add("tanh", [b.input("x", (2, 6))])
    first, second = (b.add("reshape", [y], shape=shape) for shape in ((12,), (3, 4)))
    return [second, y, first, b.add("hard_swish", [first]), b.add("sigmoid", [y]), b.add("silu", [second])]


def reshape_of_an_output(b: GraphBuilder) -> list[str]:
    y = b.add("tanh", [b.input("x", (2, 6))])
    z = b.add("reshape", [y], shape=(3, 4))
    return [y, b.add("hard_swish", [z]), z]


def input_is_an_output(b: GraphBuilder) -> list[str]:
    x = b.input("x", (2, 6))
    return [x, b.add("tanh", [x])]


def parameter_is_an_output(b: GraphBuilder) -> list[str]:
    w = b.param("w", np.arange(12, dtype=np.float32).reshape(3, 4))
    flat = b.add("reshape", [w], shape=(12,))
    return [w, b.add("mul", [b.input("x", (3, 4)), w]), flat]


def output_twice(b: GraphBuilder) -> list[str]:
    y = b.add("tanh", [b.input("x", (2, 6))])
    return [y, b.add("sigmoid", [y]), y]


def copies_of_every_type(b: GraphBuilder) -> list[str]:
    made = []
    for i, dtype in enumerate(dtype for dtype in DTYPES if dtype != "float32"):
        x = b.input(f"x{i}", (3, 5), dtype)
        made += [x, b.add("reshape", [x], shape=(5, 3))]
    return made


def residual_read_late(b: GraphBuilder) -> list[str]:
    def layer(x: str, residual: str = "") -> str:
        w = b.param("w", np.eye(8, dtype=np.float32)[::-1] * (1 + np.float32(len(b.nodes))))
        return b.add("linear", [x, w, "", residual], act="clip", lo=-3.0, hi=3.0)

    first = layer(b.input("x", (5, 8)))
    x = first
    for _ in range(4):
        x = layer(x)
    return [layer(x, first), layer(first, first)]


def nothing_to_compute(b: GraphBuilder) -> list[str]:
    x = b.input("x", (3, 4))
    empty = b.add("slice", [x], starts=(1, 0), stops=(1, 4), steps=(1, 1))
    none = b.input("none", (0, 4))
    return [b.add("tanh", [empty]), b.add("tanh", [x]), b.add("reshape", [none], shape=(2, 0)), none]


def int8_results_are_outputs(b: GraphBuilder) -> list[str]:
    """What int8 layers read must not be the caller's memory: they read beyond its end."""
    rng = np.random.default_rng(0)
    scale = np.full(9, 0.002, np.float32)

    def layer(x: str, **attrs: object) -> str:
        w = b.param("w", rng.integers(-60, 60, (9, 9), np.int8))
        return b.add("linear", [x, w, "", "", b.param("s", scale)], y_zero=100, out_dtype="uint8", **attrs)

    x = b.input("x", (16, 9), "uint8")
    y = layer(b.add("reshape", [x], shape=(4, 4, 9)), x_zero=3)
    z = layer(y, x_zero=100)
    return [y, x, z, b.add("reshape", [y], shape=(144,)), layer(z)]


NETWORKS: tuple[Callable[[GraphBuilder], list[str]], ...] = (
    chain_of_reshapes,
    reshaped_input,
    reshape_to_an_output,
    value_and_its_reshapes,
    reshape_of_an_output,
    input_is_an_output,
    parameter_is_an_output,
    output_twice,
    copies_of_every_type,
    residual_read_late,
    nothing_to_compute,
    int8_results_are_outputs,
)


def made(network: Callable[[GraphBuilder], list[str]]) -> Graph:
    b = GraphBuilder(network.__name__)
    return b.finish(network(b))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda f: f.__name__)
def test_values_are_where_they_belong(network: Callable[[GraphBuilder], list[str]]) -> None:
    graph = made(network)
    rng = np.random.default_rng(1)
    with build(graph, HOST) as artifact:
        for _ in range(2):  # nothing of the first run is in the second
            feeds = {name: random_array(kind, rng) for name, kind in graph.inputs}
            want, got = run_reference(graph, feeds), artifact.run(**feeds)
            assert list(dict.fromkeys(graph.outputs)) == list(got)
            for name, array in got.items():
                assert not disagreement(array, want[name]), name


def steps(network: Callable[[GraphBuilder], list[str]]) -> list[str]:
    return [step.symbol.split("_")[0] for step in lower(made(network), HOST).program.steps]


def test_reshapes_cost_nothing() -> None:
    assert steps(chain_of_reshapes) == ["pointwise", "pointwise"]
    assert steps(reshape_to_an_output) == ["pointwise"]


def test_copies_are_made_only_where_a_value_has_two_places() -> None:
    assert steps(reshaped_input).count("copy") == 1
    assert steps(value_and_its_reshapes).count("copy") == 2
    assert steps(output_twice).count("copy") == 1
    assert steps(input_is_an_output).count("copy") == 1


def test_what_int8_layers_read_lies_in_the_arena() -> None:
    program = lower(made(int8_results_are_outputs), HOST).program
    layers = [step for step in program.steps if step.symbol.startswith("gemm")]
    assert len(layers) == 3 and {step.places[0].space for step in layers} == {Space.ARENA}


def test_steps_carry_the_names_of_layers() -> None:
    graph = made(value_and_its_reshapes)
    assert {s.layer for s in lower(graph, HOST).program.steps} <= {node.name for node in graph.nodes}


def test_all_that_is_unsupported_is_named_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for op in ("sin", "log"):
        monkeypatch.setitem(OPS, op, replace(OPS[op], relax=None))
    monkeypatch.setattr(objects, "compile_here", lambda *a: pytest.fail("compiled before all was checked"))
    b = GraphBuilder("unsupported")
    x = b.input("x", (3, 1, 41))
    none = b.input("none", (3, 0))
    y = b.add("log", [b.add("sin", [b.add("tanh", [x])], name="first")], name="second")
    z = b.add("reduce_sum", [b.add("matmul", [none, b.input("rows", (0, 2))], name="third")], axes=(0, 1))
    with pytest.raises(UnsupportedError) as caught:
        build(b.finish([y, z]), HOST, cache=tmp_path)
    message = str(caught.value)
    assert message.startswith("3 of 5 layers")
    for part in (
        "first: no kernel computes sin(float32[3, 1, 41])",
        "second: ",
        "third: matmul reads an empty",
    ):
        assert part in message
    assert HOST.name in message and not list(tmp_path.iterdir())


def small_network() -> Graph:
    """A kernel of each kind, a residual, a reshape; layers in float32 and int8."""
    rng = np.random.default_rng(3)
    b = GraphBuilder("small")
    x = b.input("x", (1, 6, 6, 8))
    w = b.param("w", rng.standard_normal((8, 8, 3, 3)).astype(np.float32))
    y = b.add("conv2d", [x, w, "", x], name="conv", layout="NHWC", pads=(1, 1, 1, 1))
    q = b.add("quantize", [y], y_scale=0.25, y_zero=128)
    w8 = b.param("w8", rng.integers(-127, 128, (8, 1, 3, 3), np.int8))
    s = b.param("s", np.full(8, 1e-3, np.float32))
    z = b.add("conv2d", [q, w8, "", "", s], name="depthwise", layout="NHWC", groups=8, x_zero=128)
    m = b.add("max_pool2d", [z], layout="NHWC", kernel=(2, 2))
    return b.finish([b.add("softmax", [b.add("reshape", [m], shape=(1, 72))], axis=1)])


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    """From two empty caches, so everything is compiled twice."""
    places = [
        write(small_network(), HOST, tmp_path / name, plan={"version": 1}, cache=tmp_path / f"{name}.cache")
        for name in "ab"
    ]
    for file in ("model.so", "weights.bin", "bitsmith.h"):
        first, second = ((place / file).read_bytes() for place in places)
        assert first == second and first, file
    manifests = [json.loads((place / "manifest.json").read_text()) for place in places]
    for manifest in manifests:
        assert manifest.pop("created")
    assert manifests[0] == manifests[1]


def test_nothing_stays_behind_when_the_result_does_not_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(place: Path, temporary: bool) -> None:
        raise ArtifactError(str(place))

    monkeypatch.setattr(build_module, "open", refuse)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ArtifactError) as caught:
        build(made(reshape_to_an_output), HOST)
    place = Path(str(caught.value))
    assert tmp_path in place.parents and not place.exists()
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".so", ".bin", ".o")]


def test_an_output_that_cannot_be_written_leaves_the_place_alone(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(OutputError, match="taken"):
        build(made(reshape_to_an_output), HOST, taken)
    assert taken.read_text() == "mine" and [p.name for p in tmp_path.iterdir()] == ["taken"]
