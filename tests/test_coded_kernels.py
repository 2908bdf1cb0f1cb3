"""Kernels on coded weights equal the reference executor, exactly where sums are integers."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.formats import Coded, decode, encode, format_of
from bitsmith.compiler.ir import Graph, TensorType
from bitsmith.compiler.ops import Sample
from bitsmith.compiler.ops.coded import coded_operands, sample_weight
from bitsmith.compiler.reference import run_reference
from bitsmith.targets.build import build
from bitsmith.targets.kernels.coded.pack import largest_level, packing_of
from bitsmith.targets.kernels.coded.product import CodedSpec
from bitsmith.targets.lower import lower
from bitsmith.targets.target import TARGETS
from one_graph import ManyNodes, disagreement

HERE = [name for name, target in TARGETS.items() if target.runs_here]
CONTRACT = ("int4", "int3a", "int8", "bitmod4", "bitmod3", "nf4", "shiftadd3", "bcq4")
VECTOR = [
    ("int2:32", "int8"),
    ("int3:128", "int8"),
    ("int5:64", "int8"),
    ("int6:32", "int8"),
    ("int7:64", "int8"),
    ("int8:channel", "int8:group"),
    ("int4a:32", "int8"),
    ("int7a:64", "int8"),
    ("nf4:64", "int8"),
    ("fp4:32", "int8:group"),
    ("bitmod4:24", "int8"),  # a group that is no whole number of atoms
    ("bitmod3:192", "int8"),  # a group of more than one section, and a part of one
    ("shiftadd2:32", "int8"),
    ("bcq3:64", "int8"),
    ("bcq4:128", "float32"),
    ("int3a:128", "float32"),
]
PANEL = [
    ("int2:64", "int8"),
    ("int3:32", "int8"),
    ("int5:128", "int8:group"),
    ("int8:128", "int8"),
    ("int4a:128", "int8"),
    ("int7a:32", "int8"),
    ("nf4:48", "int8"),
    ("bitmod3:64", "int8"),
    ("shiftadd4:128", "int8"),
    ("bcq2:32", "float32"),
    ("int6:channel", "float32"),
]
GATHER = [
    "int3:32",
    "int5:64",
    "int8:channel",
    "nf4:48",
    "bitmod4:128",
    "bcq3:32",
    "shiftadd4:64",
    "int3a:192",
]
FEW = ("int3:128", "nf4:64", "int7a:64", "bcq3:64", "int4a:128", "int8:128", "bcq2:32", "bitmod4:128")
"""Of the formats, on targets that are not the best that runs here."""


def linear_sample(rows: int, n: int, k: int, format: str, activations: str) -> Sample:
    operands = (TensorType((rows, k)), *coded_operands(sample_weight(n, k, format)))
    return Sample(operands, {"format": format, "k": k, "activations": activations})


def gather_sample(format: str) -> Sample:
    operands = (TensorType((5,), "int64"), *coded_operands(sample_weight(21, 200, format)))
    return Sample(operands, {"format": format, "k": 200})


CASES = {
    **{f"vector {f} {a}": ("coded_linear", (1, 20, 200, f, a)) for f, a in VECTOR},
    **{f"panel {f} {a}": ("coded_linear", (7, 20, 200, f, a)) for f, a in PANEL},
    **{f"gather {f}": ("coded_gather", (f,)) for f in GATHER},
}
PAIRS = [
    (target, case)
    for target in HERE
    for case, (_, arguments) in CASES.items()
    if target == HERE[0] or set(arguments) & set(FEW)
]


@lru_cache
def outcomes(target: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    many = ManyNodes()
    makers = {"coded_linear": linear_sample, "coded_gather": gather_sample}
    names = {}
    for of, case in PAIRS:
        if of == target:
            op, arguments = CASES[case]
            names[case] = many.add(op, makers[op](*arguments))
    graph = many.graph()
    want = run_reference(graph, many.feeds)
    with build(graph, TARGETS[target]) as artifact:
        got = artifact.run(**many.feeds)
        artifact.set_threads(2)
        again = artifact.run(**many.feeds)
    assert all(np.array_equal(got[v], again[v]) for v in got), "threads change results"
    return {case: (got[v], want[v]) for case, v in names.items()}


@pytest.mark.parametrize(("target", "case"), PAIRS)
def test_case(target: str, case: str) -> None:
    got, want = outcomes(target)[case]
    assert not disagreement(got, want), case
    assert np.abs(want).max() > 0.01


def powers_of_two(coded: Coded) -> Coded:
    """The weight with scales that are powers of two: sums of integers times them are exact in float32."""
    arrays = {name: array.copy() for name, array in coded.arrays.items()}
    steps = np.arange(arrays["scale"].size).reshape(arrays["scale"].shape) % 3
    arrays["scale"] = (
        (2.0**-steps).astype(np.float16) if "row_scale" not in arrays else (1 << steps).astype(np.uint8)
    )
    if "row_scale" in arrays:
        arrays["row_scale"] = np.full(len(steps), 0.25, np.float32)
    return Coded(coded.format, coded.shape, arrays)


def graph_of(layers: list[tuple[Coded, int, str]]) -> Graph:
    b = GraphBuilder("exact")
    made = []
    for i, (coded, rows, activations) in enumerate(layers):
        x = b.input(f"x{i}", (rows, coded.shape[1]))
        operands = ["" if a is None else b.param(f"p{i}.{j}", a) for j, a in enumerate(coded_operands(coded))]
        attrs = {"format": str(coded.format), "k": coded.shape[1], "activations": activations}
        made.append(b.add("coded_linear", [x, *operands], **attrs))
    return b.finish(made)


def test_integer_sums_are_exact() -> None:
    """Largest activations and levels of one sign: what 16 bits hold is used to the last."""
    formats = [
        "int4:128",
        "bitmod4:128",
        "bitmod3:128",
        "nf4:64",
        "int8:128",
        "int7:128",
        "int4a:64",
        "int7a:64",
    ]
    rng = np.random.default_rng(0)
    layers, feeds = [], {}
    for format in formats:
        for rows in (1, 3):
            weight = np.sign(rng.standard_normal((16, 256))) * rng.uniform(0.9, 1.0, (16, 256))
            weight[:4] = 1.0
            weight[4:8] = -1.0
            coded = powers_of_two(encode(weight.astype(np.float32), format_of(format)))
            x = rng.integers(-127, 128, (rows, 256)).astype(np.float32)
            x[0] = 127.0
            x[-1, ::2] *= -1
            x[:, 0] = 127.0  # so that the scale of a token is 1
            feeds[f"x{len(layers)}"] = x
            layers.append((coded, rows, "int8"))
    want = [
        feeds[f"x{i}"].astype(np.float64) @ decode(c).astype(np.float64).T
        for i, (c, _, _) in enumerate(layers)
    ]
    graph = graph_of(layers)
    for target in HERE:
        with build(graph, TARGETS[target]) as artifact:
            got = artifact.run(**feeds)
        for i, value in enumerate(graph.outputs):
            np.testing.assert_array_equal(got[value], want[i], err_msg=f"{target} {layers[i][0].format}")


def test_zeros_and_tiny_numbers_give_zeros() -> None:
    coded = sample_weight(16, 64, "bitmod4:32")
    graph = graph_of([(coded, 3, "int8"), (coded, 1, "int8:group")])
    x = np.zeros((3, 64), np.float32)
    x[1, 5] = 1e-42
    x[2, 7] = 1.0
    feeds = {"x0": x, "x1": x[2:]}
    want = run_reference(graph, feeds)
    with build(graph, TARGETS[HERE[0]]) as artifact:
        got = artifact.run(**feeds)
    assert not got[graph.outputs[0]][:2].any() and got[graph.outputs[0]][2].any()
    for value in graph.outputs:
        assert not disagreement(got[value], want[value])


@pytest.mark.parametrize("name", CONTRACT)
@pytest.mark.parametrize("group", ["32", "64", "128", "channel"])
@pytest.mark.parametrize("shape", [(576, 1536), (192, 576)])
def test_packing_takes_no_more_than_the_format(name: str, group: str, shape: tuple[int, int]) -> None:
    coded = sample_weight(*shape, f"{name}:{group}")
    largest = largest_level(coded.arrays["alpha"]) if "alpha" in coded.arrays else 0
    for target in TARGETS.values():
        lowered = lower(graph_of([(coded, 1, "int8")]), target)
        packing = packing_of(coded.format, *shape, target.isa.lanes, largest)
        assert packing.blocks * packing.block_bytes <= coded.arrays["codes"].nbytes
        arrays = len(coded.arrays)
        assert lowered.program.weights_bytes <= coded.nbytes + arrays * 64 + 16  # each starts a cache line


def test_products_of_one_value_quantise_it_once() -> None:
    b = GraphBuilder("qkv")
    x = b.input("x", (4, 64))
    for name in "qkv":
        coded = sample_weight(16, 64, "int4:32")
        operands = ["" if a is None else b.param(name, a) for a in coded_operands(coded)]
        b.add("coded_linear", [x, *operands], name=name, format="int4:32", k=64, activations="int8")
    graph = b.finish([node.output for node in b.nodes])
    kinds = [step.symbol.split("_")[0] for step in lower(graph, TARGETS[HERE[0]]).program.steps]
    assert kinds == ["codedinput", "coded", "coded", "coded"]
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)}
    want = run_reference(graph, feeds)
    with build(graph, TARGETS[HERE[0]]) as artifact:
        got = artifact.run(**feeds)
    assert not any(disagreement(got[v], want[v]) for v in graph.outputs)


def coded_rate(format: str) -> str:
    """What bounds 6 tokens times such a weight with AVX2."""
    steps = lower(
        graph_of([(sample_weight(64, 256, format), 6, "int8")]), TARGETS["x86-64-avx2"]
    ).program.steps
    (work,) = (step.work for step in steps if step.symbol.startswith("coded_"))
    assert work is not None
    return work.rate


def test_work_is_counted_from_packed_codes() -> None:
    coded = sample_weight(64, 256, "int4:32")
    graph = graph_of([(coded, 1, "int8"), (coded, 6, "int8")])
    steps = lower(graph, TARGETS["x86-64-avx512-vnni"]).program.steps
    works = [step.work for step in steps if step.symbol.startswith("coded_")]
    assert [work.operations for work in works if work] == [2 * 64 * 256, 6 * 2 * 64 * 256]
    assert [work.weight_bytes for work in works if work] == [coded.nbytes] * 2
    assert {work.rate for work in works if work} == {"vnni512"}
    assert works[1] and works[1].write_bytes == 6 * 64 * 4
    rates = {f: coded_rate(f) for f in ("int4:32", "int7:32", "int8:32")}
    assert rates == {"int4:32": "pairs256", "int7:32": "ubs256", "int8:32": ""}
    gather = ManyNodes()
    gather.add("coded_gather", gather_sample("int8:channel"))  # 5 rows of 21, which are packed as 24 or 32
    (step,) = lower(gather.graph(), TARGETS["x86-64-avx2"]).program.steps
    assert step.work and step.work.operations == 0
    assert 5 * 200 <= step.work.weight_bytes <= 5 * 208 * 24 / 21 + 5 * 4


def test_tied_weights_lie_once(tmp_path: Path) -> None:
    b = GraphBuilder("tied")
    coded = sample_weight(48, 64, "bitmod4:64")
    operands = ["" if a is None else b.param("w", a) for a in coded_operands(coded)]
    attrs = {"format": "bitmod4:64", "k": 64}
    h = b.add("coded_gather", [b.input("tokens", (2,), "int64"), *operands], **attrs)
    graph = b.finish([b.add("coded_linear", [h, *operands], **attrs, activations="int8")])
    lowered = lower(graph, TARGETS[HERE[0]])
    assert lowered.program.weights_bytes <= coded.nbytes + 4 * 64
    assert any(isinstance(spec, CodedSpec) for spec in lowered.kernels.values())
    with build(graph, TARGETS[HERE[0]]) as artifact:
        (got,) = artifact.run(tokens=np.array([3, -1])).values()
    (want,) = run_reference(graph, {"tokens": np.array([3, -1])}).values()
    assert not disagreement(got, want)
