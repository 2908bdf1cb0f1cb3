"""Convolutions whose weight is computed at run time compute what ONNX Runtime computes."""

import numpy as np
import pytest
from bitsmith.compiler.errors import UnsupportedError
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.pipeline import compile as compile_graph
from onnx_cases import Case, compare
from onnx_models import model, node, onnxruntime_outputs


def conv(x, w, bias=False, **attrs):
    shapes = {"x": x, "w": w, **({"b": w[:1]} if bias else {})}
    return Case("Conv", "x w b" if bias else "x w", shapes, {}, attrs)


CASES = [
    conv((1, 4, 6, 5), (3, 4, 3, 2)),
    conv((2, 4, 6, 5), (6, 2, 3, 3), bias=True, group=2, pads=[1, 2, 0, 1], strides=[2, 1]),
    conv((1, 6, 9, 9), (6, 1, 3, 3), group=6, strides=[2, 1], auto_pad="SAME_UPPER"),
    conv((1, 4, 9, 9), (2, 4, 3, 2), dilations=[2, 3]),
    conv((2, 4, 11), (5, 4, 3), bias=True, strides=[3], pads=[1, 0]),
]


def transposed(x, w, bias=(), **attrs):
    shapes = {"x": x, "w": w, **({"b": bias} if bias else {})}
    return Case("ConvTranspose", "x w b" if bias else "x w", shapes, {}, attrs)


CASES += [
    transposed((2, 4, 5, 6), (4, 3, 3, 2), strides=[2, 3], pads=[1, 0, 0, 1], output_padding=[1, 2]),
    transposed((1, 4, 5, 4), (4, 3, 3, 2), (6,), group=2, dilations=[2, 1], strides=[3, 1]),
    transposed((1, 4, 9), (4, 3, 4), strides=[2], auto_pad="SAME_UPPER"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_computed_weight_agrees_with_onnxruntime(case):
    assert not compare(case.proto(), case.feeds(), atol=2e-5).differences


def test_a_tracker_finds_its_template(rng):
    """Features of a template are the kernel that runs over those of an image, each channel by itself."""
    nodes = [
        node("Conv", "x f", "image"),
        node("Conv", "z f", "small"),
        node("Reshape", "image row", "image.row"),
        node("Reshape", "small kernel", "template"),
        node("Conv", "image.row template", group=8),
    ]
    weights = {
        "f": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "row": np.array([1, 8, 8, 8]),
        "kernel": np.array([8, 1, 3, 3]),
    }
    shapes = {"x": (2, 3, 10, 10), "z": (2, 3, 5, 5)}
    proto = model(nodes, shapes, weights=weights)
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    with compile_graph(load_model(proto)) as artifact:
        (found,) = artifact.run(**feeds).values()
    (want,) = onnxruntime_outputs(proto, feeds)
    np.testing.assert_allclose(found, want, atol=1e-4)


def test_a_computed_weight_in_three_dimensions_is_refused():
    with pytest.raises(UnsupportedError, match="weight must be constant"):
        load_model(conv((1, 1, 4, 4, 4), (1, 1, 2, 2, 2)).proto())
