"""GridSample, RoiAlign and DeformConv: what ONNX Runtime computes, in all modes; what is refused."""

from itertools import product

import numpy as np
import pytest
import torch
from bitsmith.compiler.errors import UnsupportedError
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.pipeline import compile as compile_graph
from onnx_cases import Case, compare
from onnx_models import onnxruntime_outputs

IMAGE, VOLUME = (2, 3, 5, 6), (2, 3, 4, 5, 3)
PADDINGS = ("zeros", "border", "reflection")


def grid(mode, padding, aligned, image=IMAGE, points=(4, 7), opset=20, reach=1.6):
    shapes = {"x": image, "g": (image[0], *points, len(image) - 2)}
    attrs = {"mode": mode, "padding_mode": padding, "align_corners": aligned}
    return Case("GridSample", "x g", shapes, {}, attrs, opset, low=-reach, high=reach)


CASES = [
    *[grid(*form) for form in product(("linear", "nearest", "cubic"), PADDINGS, (0, 1))],
    *[grid(*form, opset=16) for form in product(("bilinear", "bicubic"), ("zeros", "reflection"), (0,))],
    *[grid(*form, VOLUME, (2, 3, 4)) for form in product(("linear", "nearest"), PADDINGS, (0, 1))],
    grid("linear", "reflection", 1, (1, 2, 1, 1)),
    grid("linear", "zeros", 0, (1, 1, 9, 4), (1, 1), reach=30),
    Case("GridSample", "x g", {"x": IMAGE, "g": (2, 3, 3, 2)}, opset=22),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_sampled_grid_agrees_with_onnxruntime(case):
    assert not compare(case.proto(), case.feeds()).differences


def test_torch_samples_the_same():

    class Warp(torch.nn.Module):
        def forward(self, x, theta):
            places = torch.nn.functional.affine_grid(theta, x.shape, align_corners=False)
            return torch.nn.functional.grid_sample(x, places, padding_mode="border", align_corners=False)

    rng = np.random.default_rng(1)
    x, theta = (rng.uniform(-1, 1, shape).astype(np.float32) for shape in (IMAGE, (2, 2, 3)))
    graph = load_model(Warp().eval(), inputs=(torch.from_numpy(x), torch.from_numpy(theta)))
    with compile_graph(graph) as artifact:
        (found,) = artifact.run(x, theta).values()
    np.testing.assert_allclose(found, Warp()(torch.from_numpy(x), torch.from_numpy(theta)), atol=1e-5)


BOXES = np.array(
    [[0.5, 1, 4, 4.5], [-3, -2, 9, 12], [2, 2, 2.2, 2.1], [7, 7, 20, 20], [0, 0, 5, 3]], np.float32
)


def boxes(dtype=np.int64, opset=16, **attrs):
    weights = {"b": BOXES, "i": np.array([0, 1, 1, 0, 1], dtype)}
    return Case("RoiAlign", "x b i", {"x": IMAGE}, weights, attrs, opset)


@pytest.mark.parametrize(
    "case",
    [
        boxes(output_height=2, output_width=3, sampling_ratio=2),
        boxes(output_height=2, output_width=3, sampling_ratio=1, mode="max", spatial_scale=0.5),
        boxes(sampling_ratio=3, coordinate_transformation_mode="output_half_pixel", output_width=2),
        boxes(opset=10, sampling_ratio=2, output_height=3, spatial_scale=0.7),
    ],
    ids=str,
)
def test_aligned_boxes_agree_with_onnxruntime(case):
    assert not compare(case.proto(), case.feeds()).differences


def test_boxes_may_be_computed_and_are_compiled():
    case = Case(
        "RoiAlign",
        "x b i",
        {"x": IMAGE, "b": (3, 4)},
        {"i": np.array([1, 0, 1])},
        {"sampling_ratio": 2, "output_height": 3, "output_width": 2},
    )
    feeds = {**case.feeds(), "b": BOXES[:3]}
    with compile_graph(load_model(case.proto())) as artifact:
        (found,) = artifact.run(**feeds).values()
    np.testing.assert_allclose(found, onnxruntime_outputs(case.proto(), feeds)[0], atol=1e-5)


def deformed(kernel=(3, 3), outs=(5, 6), parts=1, group=1, inputs="x w o b m", **attrs):
    shapes = {"x": (2, 4, 5, 6), "o": (2, parts * kernel[0] * kernel[1] * 2, *outs)}
    if inputs.endswith("m"):
        shapes["m"] = (2, parts * kernel[0] * kernel[1], *outs)
    weights = {"w": (6, 4 // group, *kernel), **({"b": (6,)} if " b" in inputs else {})}
    attrs = {"pads": [1, 1, 1, 1], **attrs, "offset_group": parts, "group": group}
    return Case("DeformConv", inputs, shapes, weights, attrs, 19)


@pytest.mark.parametrize(
    "case",
    [
        deformed(),
        deformed((3, 2), (3, 3), 2, 2, "x w o", strides=[2, 2], dilations=[1, 3], pads=[1, 2, 1, 1]),
        deformed((1, 1), (5, 6), 4, inputs="x w o - m", pads=[0] * 4),
    ],
    ids=str,
)
def test_a_deformed_convolution_agrees_with_onnxruntime(case):
    assert not compare(case.proto(), case.feeds(), atol=2e-5).differences


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (boxes(output_height=2), "sampling_ratio 0: how many places"),
        (boxes(sampling_ratio=2, mode="median"), "'median' is not known"),
        (grid("linear", "wrap", 0), "padding 'wrap' is not known"),
        (grid("cubic", "zeros", 0, VOLUME, (2, 2, 2)), "cubic mode on data that is not 2-D"),
    ],
    ids=str,
)
def test_forms_that_are_refused(case, message):
    with pytest.raises(UnsupportedError, match=message):
        load_model(case.proto())
