"""ConvTranspose becomes a convolution and depth_to_space: the numbers of ONNX Runtime, no wasted products."""

import numpy as np
import pytest
from bitsmith.compiler.analysis.cost import graph_costs
from bitsmith.compiler.errors import UnsupportedError
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.plan import layers_of
from bitsmith.compiler.reference import run_reference
from bitsmith.passes.prepare import prepare
from onnx_cases import Case, compare
from onnx_models import model, node, onnxruntime_outputs

IMAGE = {"x": (2, 4, 5, 6)}
VOLUME = {"x": (2, 4, 3, 2, 3)}


def transposed(kernel, strides=(1, 1), pads=(0, 0, 0, 0), shapes=None, groups=1, out=6, bias=True, **attrs):
    weights = {"w": ((shapes or IMAGE)["x"][1], out // groups, *kernel), **({"b": (out,)} if bias else {})}
    attrs = {"strides": strides, "pads": pads, "group": groups, **attrs}
    if "auto_pad" in attrs:
        del attrs["pads"]
    return Case("ConvTranspose", "x w b" if bias else "x w", shapes or IMAGE, weights, attrs, opset=11)


CASES = [
    transposed((2, 2), (2, 2)),
    transposed((3, 3)),
    transposed((3, 3), pads=(1, 1, 1, 1), bias=False),
    transposed((3, 3), pads=(2, 0, 1, 2)),
    transposed((3, 3), (2, 2), (1, 1, 1, 1), output_padding=[1, 1]),
    transposed((4, 4), (2, 2), (1, 1, 1, 1)),
    transposed((5, 3), (2, 3), (2, 0, 1, 2)),
    transposed((1, 1), (2, 2)),
    transposed((2, 3), (3, 4), output_padding=[2, 1]),
    transposed((4, 4), (2, 2), (3, 3, 3, 3)),
    transposed((3, 3), dilations=[2, 2], pads=(1, 1, 1, 1)),
    transposed((3, 2), (2, 2), dilations=[2, 3]),
    transposed((3, 3), (3, 2), dilations=[3, 1], pads=(2, 1, 0, 0)),
    transposed((4, 4), (2, 2), (1, 1, 1, 1), groups=2),
    transposed((4, 4), (2, 2), (1, 1, 1, 1), groups=4, out=4),
    transposed((3, 3), groups=2, out=8),
    transposed((3, 3), (2, 2), auto_pad="SAME_UPPER"),
    transposed((3, 3), (2, 2), auto_pad="SAME_LOWER"),
    transposed((3, 3), (2, 2), auto_pad="VALID"),
    transposed((3, 3), (3, 2), output_shape=[10, 8]),
    transposed((5,), (2,), (1, 2), shapes={"x": (2, 4, 9)}, output_padding=[1]),
    transposed((16,), (8,), (4, 4), shapes={"x": (1, 4, 7)}),
    transposed((2, 2, 2), (2, 2, 2), (0,) * 6, shapes=VOLUME, bias=False),
    transposed((3, 4, 3), (2, 1, 3), (1, 0, 2, 0, 1, 1), shapes=VOLUME, groups=2, output_padding=[1, 0, 1]),
    transposed((2, 1, 1), (3, 1, 2), (0,) * 6, shapes=VOLUME, dilations=[2, 1, 1]),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_transposed_convolution_agrees_with_onnxruntime(case):
    assert not compare(case.proto(), case.feeds(), atol=2e-5).differences


def macs(case):
    graph = load_model(case.proto())
    return sum(cost.macs for cost in graph_costs(graph).values())


def test_where_the_stride_divides_the_kernel_no_product_is_wasted():
    """Every element of x meets every tap once; windows at the border read zeros."""
    assert macs(transposed((2, 2), (2, 2), shapes={"x": (1, 4, 50, 50)})) == 50 * 50 * 4 * 6 * 4
    least = 50 * 50 * 4 * 6 * 16
    assert (
        least <= macs(transposed((4, 4), (2, 2), (1, 1, 1, 1), shapes={"x": (1, 4, 50, 50)})) < least * 1.05
    )


def test_it_is_one_layer_under_its_name_and_takes_the_batch_norm_and_activation_behind_it(rng):
    nodes = [
        node("ConvTranspose", "x w b", "c", name="up", strides=[2, 2]),
        node("BatchNormalization", "c g s m v", "n"),
        node("Relu", "n"),
    ]
    draw = {name: rng.random(6).astype(np.float32) + 0.5 for name in "bgsmv"}
    weights = {"w": rng.standard_normal((4, 6, 2, 2)).astype(np.float32), **draw}
    proto = model(nodes, IMAGE, weights=weights)
    graph = prepare(load_model(proto))
    assert [layer.name for layer in layers_of(graph)] == ["up"]
    assert [n.op for n in graph.nodes if n.op not in ("transpose", "reshape")] == ["conv2d", "depth_to_space"]
    assert graph.node("up").attrs["act"] == "clip"
    x = rng.standard_normal(IMAGE["x"]).astype(np.float32)
    (want,) = onnxruntime_outputs(proto, {"x": x})
    np.testing.assert_allclose(run_reference(graph, {"x": x})["y"], want, atol=1e-4)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (transposed((3, 3), pads=(4, 4, 4, 4)), "leave nothing"),
        (transposed((1,) * 4, (1,) * 4, (0,) * 8, shapes={"x": (1, 4, 2, 2, 2, 2)}), "4-D data"),
        (Case("ConvTranspose", "x w", {"x": (1, 2, 3, 3, 3), "w": (2, 2, 2, 2, 2)}), "must be constant"),
    ],
    ids=str,
)
def test_what_cannot_be_compiled_is_refused(case, message):
    with pytest.raises(UnsupportedError, match=message):
        load_model(case.proto())


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_sub_pixel_upsampling_is_a_convolution_and_depth_to_space(rng, mode):
    """What PixelShuffle is exported as; the order of channels goes into the weights."""
    nodes = [
        node("Conv", "x w b", "c", name="up", pads=[1, 1, 1, 1]),
        node("DepthToSpace", "c", "d", blocksize=2, mode=mode),
        node("Relu", "d"),
    ]
    weights = {"w": rng.standard_normal((12, 4, 3, 3)).astype(np.float32), "b": rng.random(12, np.float32)}
    proto = model(nodes, IMAGE, weights=weights, opset=13)
    graph = prepare(load_model(proto))
    assert [n.op for n in graph.nodes if n.op not in ("transpose", "reshape")] == ["conv2d", "depth_to_space"]
    x = rng.standard_normal(IMAGE["x"]).astype(np.float32)
    (want,) = onnxruntime_outputs(proto, {"x": x})
    np.testing.assert_allclose(run_reference(graph, {"x": x})["y"], want, atol=1e-4)
