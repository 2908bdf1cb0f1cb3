"""Layers with weights in bfloat16: kernels equal torch on the edges of the format, on every instruction set
that this machine runs (tests/test_avx512.py has the one with products of such pairs)."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.errors import InternalError
from bitsmith.compiler.ir import Graph, Node, TensorType
from bitsmith.compiler.ops import Sample
from bitsmith.compiler.reference import run_reference
from bitsmith.compiler.verify import verify
from bitsmith.targets.build import build
from bitsmith.targets.lower import lower
from bitsmith.targets.target import TARGETS
from kernel_cases import LAYERS, has_bfloat16, in_bfloat16, random_conv
from one_graph import ManyNodes, disagreement

HERE = [name for name, target in TARGETS.items() if target.runs_here]
SPECIAL = np.array(
    [
        0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF,  # one, ties to either side, nearly ties
        0x00000000, 0x80000000, 0x00000001, 0x007FFFFF, 0x00008000, 0x00018000,  # zeros, subnormal numbers
        0x7F7FFFFF, 0xFF7FFFFF, 0x7F7F7FFF, 0x7F800000, 0xFF800000,  # the largest, infinities
        0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000, 0xFFBFFFFF,  # not-a-numbers
    ],
    np.uint32,
).view(np.float32)  # fmt: skip


def linear(weights: np.ndarray, rows: int) -> Graph:
    b = GraphBuilder("layer")
    return b.finish([b.add("linear", [b.input("x", (rows, weights.shape[1])), b.param("w", weights)])])


@pytest.mark.parametrize("target", HERE)
@pytest.mark.parametrize("width", [1, 700], ids=["short sums", "long sums"])
def test_activations_are_rounded_as_torch_does(target: str, width: int) -> None:
    """Each number alone in its row, times one: what comes out is what was rounded."""
    x = np.zeros((len(SPECIAL), width), np.float32)
    x[:, width // 2] = SPECIAL
    with build(linear(np.ones((3, width), ml_dtypes.bfloat16), len(SPECIAL)), TARGETS[target]) as artifact:
        (got,) = artifact.run(x=x).values()
    want = torch.from_numpy(SPECIAL).bfloat16().float().numpy()
    for column in got.T:
        np.testing.assert_array_equal(column, want)


@pytest.mark.parametrize("target", HERE)
def test_random_layers_equal_the_reference(target: str) -> None:
    rng = np.random.default_rng(23)
    cases = [("conv2d", in_bfloat16(random_conv(rng))) for _ in range(40)]
    cases += [(op, in_bfloat16(sample)) for op, sample in LAYERS.values()]
    cases += [("linear", linear_sample(m, k, n)) for m, k, n in ((1, 1031, 70), (2, 768, 33), (13, 1537, 19))]
    chosen = [case for case in cases if has_bfloat16(case)]
    many = ManyNodes()
    names = [many.add(*case) for case in chosen]
    graph = many.graph()
    want = run_reference(graph, many.feeds)
    with build(graph, TARGETS[target]) as artifact:
        got = artifact.run(**many.feeds)
    assert len(chosen) > 20
    for name, case in zip(names, chosen, strict=True):
        assert not disagreement(got[name], want[name]), case


def linear_sample(m: int, k: int, n: int) -> Sample:
    return Sample((TensorType((m, k)), TensorType((n, k), "bfloat16"), TensorType((n,))))


@pytest.mark.parametrize("target", HERE)
def test_a_pair_that_reaches_beyond_a_window_reads_nothing_there(target: str) -> None:
    """Odd channels: the number that would complete the last pair of a pixel is the next pixel's infinity."""
    b = GraphBuilder("conv")
    w = np.ones((8, 5, 1, 1), ml_dtypes.bfloat16)
    y = b.add("conv2d", [b.input("x", (1, 3, 7, 5)), b.param("w", w)], layout="NHWC", strides=(1, 2))
    x = np.ones((1, 3, 7, 5), np.float32)
    x[:, :, 1::2] = np.inf
    with build(b.finish([y]), TARGETS[target]) as artifact:
        (got,) = artifact.run(x=x).values()
    np.testing.assert_array_equal(got, np.full((1, 3, 4, 8), 5.0, np.float32))


@pytest.mark.parametrize("shape", [(64, 40), (64, 1000)], ids=["short sums", "long sums"])
def test_weights_take_half_the_bytes(shape: tuple[int, int]) -> None:
    wide, narrow = (
        sum(data.size for _, data in lower(linear(np.ones(shape, t), 4), TARGETS["x86-64-avx2"]).packed())
        for t in (np.float32, ml_dtypes.bfloat16)
    )
    assert narrow == shape[0] * shape[1] * 2 and wide == 2 * narrow


def test_no_value_is_bfloat16_but_parameters() -> None:
    kind = TensorType((2, 3), "bfloat16")
    node = Node("copy", "reshape", ("x",), ("y",), (TensorType((6,), "bfloat16"),), {"shape": (6,)})
    with pytest.raises(InternalError, match="only parameters"):
        verify(Graph("g", (("x", kind),), ("y",), (node,), {}))
