"""What lies within another value is neither copied nor overwritten: against the reference executor."""

from __future__ import annotations

import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.ir import Graph
from bitsmith.compiler.reference import run_reference
from bitsmith.targets.build import build
from bitsmith.targets.kernels.move import MoveSpec
from bitsmith.targets.lower import lower
from bitsmith.targets.target import resolve
from bitsmith.targets.views import View, Views, one_piece
from hypothesis import given
from hypothesis import strategies as st

HOST = resolve("host")


def relu(b: GraphBuilder, value: str) -> str:
    return b.add("clip", [value], lo=0.0)


def cut(b: GraphBuilder, value: str, starts: tuple[int, ...], stops: tuple[int, ...], step: int = 1) -> str:
    return b.add("slice", [value], starts=starts, stops=stops, steps=(step,) * len(starts))


def parts_of_one() -> Graph:
    """Both kernels write into the concat, which is read whole, in part, and by its parts."""
    b = GraphBuilder("parts")
    x, y = b.input("x", (1, 3, 8)), b.input("y", (1, 5, 8))
    p, q = relu(b, x), relu(b, y)
    joined = b.add("concat", [p, q], axis=1)
    middle = cut(b, joined, (0, 2, 0), (1, 6, 8))
    return b.finish([relu(b, joined), b.add("add", [p, p]), relu(b, middle)])


def of_a_shape() -> Graph:
    """A part whose kernel wrote it in another shape, beside a parameter and an input, which are copied."""
    b = GraphBuilder("shapes")
    x = b.input("x", (3, 8))
    p = b.add("reshape", [relu(b, x)], shape=(1, 24))
    table = b.param("t", np.arange(7, dtype=np.float32)[None])
    given_ = b.add("reshape", [x], shape=(1, 24))
    return b.finish([relu(b, b.add("concat", [table, p, given_, p], axis=1))])


def within_within() -> Graph:
    """A concat of a concat and of a slice of a slice."""
    b = GraphBuilder("nested")
    x = b.input("x", (4, 6))
    p = relu(b, x)
    inner = b.add("concat", [p, b.add("add", [p, x])], axis=0)
    rows = cut(b, cut(b, inner, (1, 0), (7, 6)), (2, 0), (5, 6))
    outer = b.add("concat", [inner, b.add("add", [rows, rows])], axis=0)
    return b.finish([relu(b, outer), b.add("mul", [rows, rows])])


def bound() -> Graph:
    """Outputs, and what is in several pieces: all copied."""
    b = GraphBuilder("bound")
    x = b.input("x", (4, 6))
    p = relu(b, x)
    q = b.add("add", [p, p])
    joined = b.add("concat", [p, q], axis=0)
    columns = b.add("concat", [p, q], axis=1)
    first = cut(b, p, (0, 0), (2, 6))
    every = cut(b, q, (0, 0), (4, 6), step=2)
    return b.finish(
        [joined, relu(b, columns), first, q, relu(b, every), b.add("reshape", [first], shape=(12,))]
    )


def rolled() -> Graph:
    """Slices of what lies with the caller are written where the concat lies, not read where they are."""
    b = GraphBuilder("rolled")
    x = b.input("x", (4, 6))
    p = relu(b, x)
    first = b.add("concat", [cut(b, p, (3, 0), (4, 6)), cut(b, p, (0, 0), (3, 6))], axis=0)
    flat = b.add("reshape", [cut(b, x, (1, 0), (3, 6))], shape=(12,))
    second = b.add("concat", [flat, b.add("reshape", [cut(b, x, (0, 0), (1, 6))], shape=(6,))], axis=0)
    return b.finish([p, relu(b, first), relu(b, second)])


def moved(graph: Graph) -> list[int]:
    """Values that each remaining kernel that only moves them writes."""
    specs = (lower(graph, HOST).kernels).values()
    return sorted(sum(block.size for block in s.blocks) for s in specs if isinstance(s, MoveSpec))


CASES = {
    "parts of one": (parts_of_one, []),
    "of a shape": (of_a_shape, [7 + 24 + 24]),
    "within within": (within_within, []),
    "bound": (bound, [6, 12, 48, 48]),
    "rolled": (rolled, [6, 6, 12, 18]),
}


@pytest.mark.parametrize("name", CASES)
def test_only_what_must_be_is_moved(name: str, rng: np.random.Generator) -> None:
    make, copied = CASES[name]
    graph = make()
    assert moved(graph) == copied
    feeds = {v: rng.standard_normal(kind.shape).astype(kind.dtype) for v, kind in graph.fed}
    want = run_reference(graph, feeds)
    with build(graph, HOST) as artifact:
        got = artifact.run(**feeds)
    for value in graph.outputs:
        np.testing.assert_array_equal(got[value], want[value], err_msg=value)


def test_a_view_counts_bytes_from_its_whole() -> None:
    graph = within_within()
    views = Views(graph)
    outer = next(node.output for node in reversed(graph.nodes) if node.op == "concat")
    slices = [node.output for node in graph.nodes if node.op == "slice"]
    assert [views.of(value) for value in slices] == [View(outer, 4 * 6), View(outer, 4 * 6 * 3)]


@given(st.data())
def test_one_piece_is_what_numpy_calls_contiguous(data: st.DataObject) -> None:
    whole = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    part = tuple(data.draw(st.integers(1, size)) for size in whole)
    block = np.zeros(whole, np.int8)[tuple(slice(size) for size in part)]
    assert one_piece(part, whole) == block.flags.c_contiguous
