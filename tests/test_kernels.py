"""Compiled kernels equal the reference executor: every sample of every operator, and random convolutions, on
every instruction set that this machine runs."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from bitsmith.compiler.ir import TensorType
from bitsmith.compiler.ops import OPS, Sample
from bitsmith.compiler.reference import run_reference
from bitsmith.targets.build import build
from bitsmith.targets.selection import select
from bitsmith.targets.target import TARGETS
from kernel_cases import LAYERS, OTHERS, Q8, conv, random_conv
from kernel_cases_tensor import TENSORS
from one_graph import ManyNodes, disagreement

HERE = [name for name, target in TARGETS.items() if target.runs_here]


CASES = {
    **{f"{op.name}-{i}": (op.name, sample) for op in OPS.values() for i, sample in enumerate(op.samples)},
    **LAYERS,
    **OTHERS,
    **TENSORS,
}


def has_own_kernel(case: str, target: str) -> bool:
    many = ManyNodes()
    many.add(*CASES[case])
    graph = many.graph()
    return select(graph, graph.nodes[0], TARGETS[target].isa) is not None


PAIRS = [
    (target, case)
    for target in HERE
    for case in CASES
    # What Relax lowers is the same for every target.
    if target == HERE[0] or has_own_kernel(case, target)
]


@lru_cache
def outcomes(target: str) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Case -> (what the kernel made, what the reference made) for each output; one library for all cases of
    a target."""
    many = ManyNodes()
    names = {case: many.add(*CASES[case]) for of, case in PAIRS if of == target}
    graph = many.graph()
    want = run_reference(graph, many.feeds)
    with build(graph, TARGETS[target]) as artifact:
        got = artifact.run(**many.feeds)
        for threads in (2, 3):
            artifact.set_threads(threads)
            again = artifact.run(**many.feeds)
            for name, array in got.items():
                np.testing.assert_array_equal(again[name], array, err_msg=f"{name} with {threads} threads")
    return {case: [(got[v], want[v]) for v in many.siblings[name]] for case, name in names.items()}


@pytest.mark.parametrize(("target", "case"), PAIRS)
def test_case(target: str, case: str) -> None:
    said = [disagreement(got, want) for got, want in outcomes(target)[case]]
    assert not any(said), said


@pytest.mark.parametrize("target", HERE)
def test_random_convolutions(target: str) -> None:
    rng = np.random.default_rng(20)
    many = ManyNodes()
    cases = [random_conv(rng) for _ in range(24 if target == HERE[0] else 12)]
    names = [many.add("conv2d", case) for case in cases]
    graph = many.graph()
    want = run_reference(graph, many.feeds)
    with build(graph, TARGETS[target]) as artifact:
        got = artifact.run(**many.feeds)
    for name, case in zip(names, cases, strict=True):
        assert not disagreement(got[name], want[name]), case


def test_input_is_not_read_beyond_its_end(tmp_path: Path) -> None:
    """An odd number of channels at the end of a page, with nothing mapped behind it.

    Steps of four bytes would read on (144 bytes are a multiple of the alignment, so nothing lies between)."""
    import ctypes
    import mmap

    many = ManyNodes()
    many.add("conv2d", Sample((TensorType((1, 5, 7, 9)), TensorType((11, 9, 1, 1))), {"layout": "NHWC"}))
    many.add("add", Sample((TensorType((3, 7)), TensorType((3, 7)))))
    small = np.random.default_rng(0).integers(-60, 60, (11, 9, 1, 1)).astype(np.int8)
    many.add("conv2d", conv((1, 4, 4, 9), (11, 9, 1, 1), q=True, weights=small, y_zero=128, **Q8))
    graph = many.graph()
    want = run_reference(graph, many.feeds)
    page = mmap.PAGESIZE
    keep = []
    feeds = {}
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for name, array in many.feeds.items():
        pages = -(-array.nbytes // page) + 1
        memory = mmap.mmap(-1, pages * page)
        whole = np.frombuffer(memory, np.uint8)
        last = whole.ctypes.data + (pages - 1) * page
        assert libc.mprotect(last, page, 0) == 0
        start = (pages - 1) * page - -(-array.nbytes // 16) * 16
        place = whole[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        place[...] = array
        feeds[name] = place
        keep.append(memory)
    with build(graph, TARGETS[HERE[0]]) as artifact:
        got = artifact.run(**feeds)
    for name in graph.outputs:
        assert not disagreement(got[name], want[name]), name
    for memory, array in zip(keep, feeds.values(), strict=True):
        whole = np.frombuffer(memory, np.uint8)
        libc.mprotect(whole.ctypes.data, len(memory), mmap.PROT_READ | mmap.PROT_WRITE)
        del array, whole


def test_max_pool_of_minus_infinities() -> None:
    many = ManyNodes()
    window = {"kernel": (2, 2), "strides": (2, 2), "layout": "NHWC"}
    name = many.add("max_pool2d", Sample((TensorType((1, 4, 4, 9)),), window))
    (feed,) = many.feeds.values()
    feed[...] = -np.inf
    feed[0, 0, 0] = 1.0
    with build(many.graph(), TARGETS[HERE[0]]) as artifact:
        got = artifact.run(feed)[name]
    assert (got[0, 0, 0] == 1.0).all() and (got[0, 1] == -np.inf).all()
