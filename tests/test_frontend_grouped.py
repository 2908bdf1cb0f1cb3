"""GroupQueryAttention, as exporters of language models write it, computes what ONNX Runtime computes."""

from typing import Any

import bitsmith
import numpy as np
import pytest
from bitsmith.compiler.errors import UnsupportedError
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.reference import run_reference
from onnx import TensorProto, helper
from onnx_models import model, node, onnxruntime_outputs

HEADS, GROUPS, SIZE = 4, 2, 16


def attention(
    batch: int = 1,
    steps: int = 5,
    past: int = 0,
    total: int = 0,
    ends: list[int] | None = None,
    *,
    packed: bool = False,
    turned: bool = False,
    positions: bool = False,
    bias: bool = False,
    sink: bool = False,
    **attrs: Any,
):
    """(model, feeds). `ends`: the last valid key of each sequence; `total`: keys that are counted."""
    rng, total = np.random.default_rng(0), total or past + steps
    wide = (HEADS + 2 * GROUPS) * SIZE if packed else HEADS * SIZE
    feeds = {"q": rng.standard_normal((batch, steps, wide))}
    if not packed:
        feeds |= {name: rng.standard_normal((batch, steps, GROUPS * SIZE)) for name in ("k", "v")}
    if past:
        feeds |= {name: rng.standard_normal((batch, GROUPS, past, SIZE)) for name in ("pk", "pv")}
    if bias:
        feeds["bias"] = rng.standard_normal((1, HEADS, steps, total))
    if sink:
        feeds["sink"] = rng.standard_normal(HEADS)
    feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
    feeds["ends"] = np.asarray(ends or [total - 1] * batch, np.int32)
    weights: dict[str, np.ndarray] = {"total": np.array(total, np.int32)}
    if turned:
        angles = rng.standard_normal((32, SIZE // 2))
        weights |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
        attrs["do_rotary"] = 1
    if positions:
        first = 3 if total == steps else past + 1
        feeds["at"] = np.tile(np.arange(steps, dtype=np.int64) + first, (batch, 1))
    wanted = ("q", "k", "v", "pk", "pv", "ends", "total", "cos", "sin", "at", "bias", "sink")
    names = " ".join(name if name in (*feeds, *weights) else "-" for name in wanted)
    made = node(
        "GroupQueryAttention",
        names,
        "y pk_y pv_y",
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=GROUPS,
        **attrs,
    )
    shapes = {name: array.shape for name, array in feeds.items()}
    proto = model([made], shapes, ("y", "pk_y", "pv_y"), weights, domains=["com.microsoft"])
    for value in proto.graph.input:
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(feeds[value.name].dtype)
    return proto, feeds


CASES: dict[str, dict[str, Any]] = {
    "a prompt": {"batch": 2},
    "packed, turned": {"packed": True, "turned": True},
    "turned in pairs": {"turned": True, "rotary_interleaved": 1},
    "positions of a prompt": {"batch": 2, "turned": True, "positions": True},
    "one token": {"steps": 1, "past": 6, "turned": True},
    "one token at a position": {"batch": 2, "steps": 1, "past": 6, "turned": True, "positions": True},
    "a chunk": {"steps": 3, "past": 6, "turned": True},
    "sequences of different lengths": {"batch": 2, "steps": 1, "past": 6, "ends": [6, 3], "turned": True},
    "a cache with room": {"steps": 1, "past": 12, "total": 7},
    "a prompt into a cache": {"past": 12, "total": 5, "turned": True},
    "a window": {"local_window_size": 3},
    "a window of a cache": {"steps": 1, "past": 7, "local_window_size": 3},
    "scores": {"softcap": 2.0, "scale": 0.3, "bias": True},
    "a smooth softmax": {"batch": 2, "smooth_softmax": 1},
    "sinks of heads": {"steps": 1, "past": 7, "sink": True, "local_window_size": 3},
    "both directions": {"steps": 1, "past": 4, "causal": 0},
    "a prompt in both directions": {"causal": 0},
}


@pytest.mark.parametrize("case", CASES)
def test_attention_in_groups_agrees_with_onnx_runtime(case):
    proto, feeds = attention(**CASES[case])
    found = run_reference(load_model(proto), feeds)
    for (name, got), want in zip(found.items(), onnxruntime_outputs(proto, feeds), strict=True):
        assert got.shape == want.shape, name
        np.testing.assert_allclose(got, want, atol=2e-6, err_msg=name)


def test_a_step_whose_mask_says_how_long_the_past_is(rng):
    """The lengths are counted from a mask, as exporters do, and the step is compiled."""
    proto, feeds = attention(steps=1, past=6, turned=True)
    counting = [
        node("ReduceSum", "mask axes", "count", keepdims=0),
        node("Sub", "count one", "last"),
        node("Cast", "last", "ends", to=TensorProto.INT32),
        node("Shape", "mask", "sizes"),
        node("Gather", "sizes one", "keys", axis=0),
        node("Cast", "keys", "total", to=TensorProto.INT32),
    ]
    graph = proto.graph
    weights = [w for w in graph.initializer if w.name != "total"]
    inputs = [v for v in graph.input if v.name != "ends"]
    inputs.append(helper.make_tensor_value_info("mask", TensorProto.INT64, [1, 7]))
    whole = model([*counting, graph.node[0]], {}, ("y", "pk_y", "pv_y"), domains=["com.microsoft"])
    whole.graph.input.extend(inputs)
    whole.graph.initializer.extend(weights)
    for name, shape in (("axes", (1,)), ("one", ())):
        whole.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, shape, [1]))
    feeds = {name: array for name, array in feeds.items() if name != "ends"}
    with bitsmith.compile(load_model(whole)) as artifact:
        for valid in (7, 4):
            feeds["mask"] = (np.arange(7) < valid).astype(np.int64)[None]
            found = artifact.run(**feeds)
            for (name, got), want in zip(found.items(), onnxruntime_outputs(whole, feeds), strict=True):
                np.testing.assert_allclose(got, want, atol=2e-6, err_msg=f"{name} of {valid}")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"sliding_window_cache": 1, "local_window_size": 3}, "sliding_window_cache=1"),
        ({"steps": 2, "past": 3, "total": 7}, "7 keys of 3 old and 2 new ones"),
    ],
)
def test_other_forms_are_refused(case, message):
    with pytest.raises(UnsupportedError, match=message):
        load_model(attention(**case)[0])
