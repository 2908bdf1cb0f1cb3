"""Compiled kernels equal the reference executor: every sample of every operator, and random convolutions, on
every instruction set that this machine runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bitsmith.compiler.ir import TensorType
from bitsmith.compiler.ops import OPS, Sample
from bitsmith.compiler.reference import run_reference
from bitsmith.targets.build import build
from bitsmith.targets.target import TARGETS
from one_graph import ManyNodes

HERE = [name for name, target in TARGETS.items() if target.runs_here]


def samples() -> list[tuple[str, int]]:
    return [(op.name, i) for op in OPS.values() for i in range(len(op.samples))]


def agree(got: np.ndarray, want: np.ndarray, what: str) -> None:
    """Equal types; integers exactly but for one step at rounding ties, floats to rounding error."""
    assert got.dtype == want.dtype and got.shape == want.shape, what
    difference = np.abs(got.astype(np.float64) - want.astype(np.float64))
    if got.dtype == np.float32:
        assert difference.max(initial=0) <= 5e-6 * max(1.0, np.abs(want).max(initial=0)), what
    else:
        assert difference.max(initial=0) <= 1 and (difference > 0).mean() < 0.01, (
            f"{what}: {difference.max()}"
        )


@pytest.fixture(scope="module", params=HERE)
def outcomes(request: pytest.FixtureRequest) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
    many = ManyNodes()
    names = {key: many.add(key[0], OPS[key[0]].samples[key[1]]) for key in samples()}
    graph = many.graph()
    want = run_reference(graph, many.feeds)
    with build(graph, TARGETS[request.param]) as artifact:
        got = artifact.run(**many.feeds)
        for threads in (2, 3):
            artifact.set_threads(threads)
            again = artifact.run(**many.feeds)
            for name, array in got.items():
                np.testing.assert_array_equal(again[name], array, err_msg=f"{name} with {threads} threads")
    return {key: (got[name], want[name]) for key, name in names.items()}


@pytest.mark.parametrize("key", samples(), ids=lambda key: f"{key[0]}-{key[1]}")
def test_sample(outcomes: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]], key: tuple[str, int]) -> None:
    agree(*outcomes[key], f"{key[0]} sample {key[1]}")


def random_conv(rng: np.random.Generator) -> Sample:
    """A convolution of random geometry and type; quantised ones have scales as the plan's rewriting makes."""
    groups = int(rng.choice([1, 1, 1, 2, 0]))
    c, oc = int(rng.integers(1, 40)), int(rng.integers(1, 50))
    if groups == 2:
        c, oc = 2 * c, 2 * oc
    if groups == 0:
        groups = oc = c
    kernel = int(rng.choice([1, 1, 2, 3, 5])), int(rng.choice([1, 1, 2, 3, 5]))
    if rng.random() < 0.3:
        kernel = (1, 1)
    layout = "NCHW:NHWC" if groups == 1 and c <= 4 else "NHWC"
    dilations = int(rng.integers(1, 3)), int(rng.integers(1, 3))
    size = tuple(int(rng.integers(1, 15)) + (k - 1) * d for k, d in zip(kernel, dilations, strict=True))
    n = int(rng.integers(1, 3))
    shape = (n, c, *size) if layout.startswith("NCHW") else (n, *size, c)
    quantised = bool(rng.random() < 0.5)
    attrs: dict[str, object] = {
        "strides": (int(rng.integers(1, 3)), int(rng.integers(1, 3))),
        "pads": tuple(int(p) for p in rng.integers(0, 3, 4)),
        "dilations": dilations,
        "groups": groups,
        "layout": layout,
        "act": "clip",
        "lo": 0.0,
    }
    w = TensorType((oc, c // groups, *kernel), "int8" if quantised else "float32")
    bias = TensorType((oc,), "int32" if quantised else "float32")
    scale = None
    if quantised:
        attrs |= {
            "x_zero": int(rng.integers(0, 256)),
            "y_zero": int(rng.integers(0, 100)),
            "out_dtype": "uint8",
        }
        scale = (rng.uniform(0.5, 1.5, oc) * 0.004 / np.sqrt(np.prod(w.shape[1:]))).astype(np.float32)
    return Sample((TensorType(shape, "uint8" if quantised else "float32"), w, bias, None, scale), attrs)


@pytest.mark.parametrize("target", HERE)
def test_random_convolutions(target: str) -> None:
    rng = np.random.default_rng(20)
    many = ManyNodes()
    cases = [random_conv(rng) for _ in range(40)]
    names = [many.add("conv2d", case) for case in cases]
    graph = many.graph()
    want = run_reference(graph, many.feeds)
    with build(graph, TARGETS[target]) as artifact:
        got = artifact.run(**many.feeds)
    for name, case in zip(names, cases, strict=True):
        agree(got[name], want[name], f"{target}: {case}")


def test_input_is_not_read_beyond_its_end(tmp_path: Path) -> None:
    """An odd number of channels at the end of a page, with nothing mapped behind it."""
    import ctypes
    import mmap

    many = ManyNodes()
    many.add("conv2d", Sample((TensorType((1, 5, 7, 9)), TensorType((11, 9, 1, 1))), {"layout": "NHWC"}))
    many.add("add", Sample((TensorType((3, 7)), TensorType((3, 7)))))
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
        agree(got[name], want[name], name)
    for memory, array in zip(keep, feeds.values(), strict=True):
        whole = np.frombuffer(memory, np.uint8)
        libc.mprotect(whole.ctypes.data, len(memory), mmap.PROT_READ | mmap.PROT_WRITE)
        del array, whole
