"""Resize and Upsample compute what ONNX Runtime computes, in all modes; sizes, scales, axes, policies."""

import itertools

import numpy as np
import pytest
from bitsmith.compiler.errors import UnsupportedError
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.reference import run_reference
from onnx_cases import Case, compare, ints

IMAGE = {"x": (1, 2, 6, 9)}
COORDS = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
)
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
SCALES = {"up": (1, 1, 2, 3), "down": (1, 1, 0.5, 0.7), "mixed": (1, 1, 1.4, 0.4)}


def scaled(scales, opset=19, **attrs):
    if opset == 10:
        return Case("Resize", "x s", IMAGE, {"s": np.array(scales, np.float32)}, attrs, opset)
    weights = {"s": np.array(scales, np.float32), "none": np.zeros(0, np.float32)}
    return Case("Resize", "x none s", IMAGE, weights, attrs, opset)


def sized(sizes, shapes=None, opset=19, **attrs):
    return Case("Resize", "x - - s", shapes or IMAGE, {"s": ints(*sizes)}, attrs, opset)


def mode(coords, mode, **attrs):
    return {"coordinate_transformation_mode": coords, "mode": mode, **attrs}


# tf_half_pixel_for_nn left the standard with operator set 13; rounded up it leaves the picture, and ONNX
# Runtime reads other memory.
NEAREST = [
    scaled(SCALES[k], 11 if coords.startswith("tf") else 19, **mode(coords, "nearest", nearest_mode=rounding))
    for k, coords, rounding in itertools.product(SCALES, COORDS, ROUNDINGS)
    if (coords != "align_corners" or k == "up") and not (coords.startswith("tf") and "ceil" in rounding)
]
SMOOTH = [
    scaled(SCALES[k], **mode(coords, kind))
    for k, coords, kind in itertools.product(SCALES, COORDS[:5], ("linear", "cubic"))
    if coords != "align_corners" or k == "up"
]
OTHERS = [
    *[sized((1, 2, 4, 13), **mode("align_corners", kind)) for kind in ("nearest", "linear", "cubic")],
    *[sized((1, 2, 1, 1), **mode(coords, "linear")) for coords in ("pytorch_half_pixel", "align_corners")],
    *[scaled(SCALES["down"], mode=kind, antialias=1) for kind in ("linear", "cubic")],
    *[scaled(SCALES[k], mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5) for k in SCALES],
    scaled((2, 1.5, 1, 1), mode="nearest"),
    scaled((1, 1, 1, 2), mode="linear"),
    scaled((1, 1, 1, 1), mode="linear"),
    sized((1, 2, 14), {"x": (1, 2, 7)}, mode="linear"),
    sized((1, 2, 4, 5, 6), {"x": (1, 2, 3, 5, 2)}, mode="nearest"),
    sized((1, 2, 4, 5, 6), {"x": (1, 2, 3, 5, 2)}, mode="linear"),
    sized((8, 12), axes=[1, 2], mode="nearest"),
    sized((12,), axes=[-1], mode="linear"),
    sized((3, 12), axes=[3, 2], mode="nearest"),
    *[
        sized((7, 7), axes=[2, 3], mode="linear", keep_aspect_ratio_policy=policy)
        for policy in ("not_larger", "not_smaller", "stretch")
    ],
    *[scaled(SCALES[k], 10, mode=kind) for k in SCALES for kind in ("nearest", "linear")],
    Case("Upsample", "x s", IMAGE, {"s": np.array((1, 1, 2, 3), np.float32)}, {"mode": "nearest"}, opset=9),
    Case("Upsample", "x s", IMAGE, {"s": np.array((1, 1, 2, 3), np.float32)}, {"mode": "linear"}, opset=9),
    Case("Upsample", "x", IMAGE, {}, {"mode": "nearest", "scales": [1.0, 1.0, 2.0, 2.0]}, opset=7),
]
CROPS = [
    Case(
        "Resize",
        "x r none s",
        IMAGE,
        {
            "none": np.zeros(0, np.float32),
            "s": ints(1, 2, 5, 8),
            "r": np.array([0, 0, 0.1, -0.2, 1, 1, 0.6, 1.3], np.float32),
        },
        mode("tf_crop_and_resize", kind, extrapolation_value=10.0),
        opset=11,
    )
    for kind in ("nearest", "linear", "cubic")
]


@pytest.mark.parametrize("case", [*NEAREST, *SMOOTH, *OTHERS, *CROPS], ids=str)
def test_a_resize_agrees_with_onnxruntime(case):
    assert not compare(case.proto(), case.feeds(), atol=2e-5).differences


def test_upsampling_an_image_is_one_node():
    graph = load_model(scaled(SCALES["up"], mode="nearest").proto())
    assert [n.op for n in graph.nodes] == ["resize"]


def test_channels_last_stays_channels_last():
    graph = load_model(sized((1, 4, 12, 9), mode="linear").proto())
    assert [(n.op, n.attrs["layout"]) for n in graph.nodes] == [("resize", "NHWC")]


def test_bytes_are_copied():
    proto = sized((1, 2, 3, 18), mode="nearest").proto()
    proto.graph.input[0].type.tensor_type.elem_type = 2
    proto.graph.output[0].type.tensor_type.elem_type = 2
    x = np.random.default_rng(0).integers(0, 256, IMAGE["x"]).astype(np.uint8)
    found = run_reference(load_model(proto), {"x": x})["y"]
    np.testing.assert_array_equal(found, np.repeat(x[:, :, [0, 2, 4]], 2, axis=3))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (scaled((1, 1, 0.7, 1), **mode("align_corners", "linear")), "export the model with sizes"),
        (Case("Resize", "x - s", {**IMAGE, "s": (4,)}, {}, {}, 19), "scales must be constant"),
        (scaled((1, 1, 2, 2), mode="lanczos"), "'lanczos'"),
    ],
    ids=str,
)
def test_what_cannot_be_compiled_is_refused(case, message):
    with pytest.raises(UnsupportedError, match=message):
        load_model(case.proto())
