"""States in the graph, and the operators of a cache, against torch's own attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.errors import InternalError
from bitsmith.compiler.ir import Graph, TensorType
from bitsmith.compiler.ops import OPS
from bitsmith.compiler.reference import run_reference
from bitsmith.compiler.text import parse_graph, print_graph
from bitsmith.compiler.verify import verify
from bitsmith.passes.prepare import prepare


def counting() -> Graph:
    """y = x + what was left by the run before; -x is kept for the next."""
    b = GraphBuilder("counting")
    x, before = b.input("x", (3,)), b.input("before", (3,))
    b.keep(before, b.add("neg", [x], output="after"))
    return b.finish([b.add("add", [x, before], output="y")])


def test_states_are_inputs_and_outputs_of_their_own() -> None:
    graph = counting()
    assert graph.states == (("before", "after"),) and graph.outputs == ("y", "after")
    assert graph.fed == (("x", TensorType((3,))),) and graph.returned == ("y",)


def test_a_state_that_is_not_given_is_zeros() -> None:
    graph, x = counting(), np.array([1, -2, 3], np.float32)
    first = run_reference(graph, {"x": x})
    np.testing.assert_array_equal(first["y"], x)
    second = run_reference(graph, {"x": x, "before": first["after"]})
    np.testing.assert_array_equal(second["y"], [0, 0, 0])


def test_states_are_printed_and_parsed_and_hashed() -> None:
    graph = counting()
    text = print_graph(graph)
    assert "  state before -> after\n" in text
    again = parse_graph(text)
    assert again.states == graph.states and again.content_hash == graph.content_hash
    assert replace(graph, states=()).content_hash != graph.content_hash
    assert parse_graph(print_graph(replace(graph, name="state"))).name == "state"


def test_passes_keep_states() -> None:
    graph = prepare(counting())
    assert graph.states == (("before", "after"),)


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ((("x", "nothing"),), "not a graph input and a graph output"),
        ((("nothing", "y"),), "not a graph input and a graph output"),
        ((("x", "wide"),), r"state 'x' is float32\[3\]"),
        ((("x", "y"), ("x", "after")), "share"),
        ((("x", "y"), ("before", "y")), "share"),
    ],
)
def test_states_that_cannot_be_are_refused(states: tuple[tuple[str, str], ...], message: str) -> None:
    b = GraphBuilder("bad")
    x, before = b.input("x", (3,)), b.input("before", (3,))
    b.add("neg", [before], output="after")
    b.add("reshape", [x], output="wide", shape=(1, 3))
    graph = b.finish([b.add("add", [x, before], output="y"), "after", "wide"])
    with pytest.raises(InternalError, match=message):
        verify(replace(graph, states=states))


def run(op: str, *arrays: np.ndarray | None, **attrs: Any) -> Any:
    tensors = [None if a is None else torch.from_numpy(a) for a in arrays]
    kinds = [None if a is None else TensorType(a.shape, a.dtype.name) for a in arrays]
    full = OPS[op].complete(attrs)
    OPS[op].infer_types(kinds, full)
    return OPS[op].reference(tensors, full)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("position", "tokens", "window"), [(0, 7, 0), (12, 1, 0), (5, 4, 0), (9, 6, 4)])
def test_cached_attention_is_torch_s_attention(position: int, tokens: int, window: int) -> None:
    """Grouped heads, causal from a position on; rows behind the last token do not count."""
    q, k, v = normal(tokens, 6, 16), normal(2, 20, 16), normal(2, 20, 8)
    end = position + tokens
    k[:, end:], v[:, end:] = np.nan, np.nan
    made = run("cached_attention", q, k, v, np.array([position]), scale=0.3, window=window)
    i, j = np.arange(position, end)[:, None], np.arange(end)
    seen = (j <= i) & (j > i - window) if window else j <= i
    wanted = torch.nn.functional.scaled_dot_product_attention(
        torch.from_numpy(q).transpose(0, 1), torch.from_numpy(k[:, :end]), torch.from_numpy(v[:, :end]),
        attn_mask=torch.from_numpy(seen), scale=0.3, enable_gqa=True,
    )  # fmt: skip
    torch.testing.assert_close(made, wanted.transpose(0, 1).reshape(tokens, -1), rtol=1e-5, atol=1e-5)


def test_the_soft_cap_bounds_scores() -> None:
    """With values that name their row, the output is the shares themselves."""
    q, k, v = 10 * normal(1, 1, 4), normal(1, 3, 4), np.eye(3, dtype=np.float32)[None]
    shares = run("cached_attention", q, k, v, np.array([2]), soft_cap=1.5).numpy()[0]
    scores = 1.5 * np.tanh(k[0] @ q[0, 0] / 1.5)
    np.testing.assert_allclose(shares, np.exp(scores) / np.exp(scores).sum(), rtol=1e-5)


def test_a_cache_keeps_what_is_written_and_nothing_else_changes() -> None:
    cache, new = normal(2, 8, 4).astype(np.float16), normal(3, 2, 4)
    made = run("cache_write", cache, new, np.array([4])).numpy()
    np.testing.assert_array_equal(made[:, 4:7], new.transpose(1, 0, 2).astype(np.float16))
    np.testing.assert_array_equal(np.delete(made, slice(4, 7), 1), np.delete(cache, slice(4, 7), 1))


def test_an_int8_cache_is_within_half_a_step() -> None:
    new = normal(3, 2, 16)
    new[1, 1] = 0
    codes, scale = run(
        "cache_write", np.zeros((2, 8, 16), np.int8), new, np.array([2]), np.zeros((2, 8), np.float32)
    )
    rows = (codes.numpy() * scale.numpy()[..., None])[:, 2:5].transpose(1, 0, 2)
    most = np.abs(new).max(-1, keepdims=True)
    assert (np.abs(rows - new) <= most / 254 * 1.0001).all() and not codes[:, 5:].any()
    assert (np.abs(codes.numpy()[:, 2:5]).max(-1) == np.where(most[..., 0].T > 0, 127, 0)).all()


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_turns_pairs_as_complex_numbers(interleaved: bool) -> None:
    x, angles = normal(3, 2, 10), np.outer(np.arange(9), [1.0, 0.3, 0.05, 0.01])
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    made = run("rope", x, cos, sin, np.array([4]), interleaved=interleaved).numpy()
    first = x[..., 0:8:2] if interleaved else x[..., :4]
    second = x[..., 1:8:2] if interleaved else x[..., 4:8]
    turned = (first + 1j * second) * np.exp(1j * angles[4:7, None])
    np.testing.assert_allclose(made[..., 0:8:2] if interleaved else made[..., :4], turned.real, atol=1e-5)
    np.testing.assert_allclose(made[..., 1:8:2] if interleaved else made[..., 4:8], turned.imag, atol=1e-5)
    np.testing.assert_array_equal(made[..., 8:], x[..., 8:])


@pytest.mark.parametrize(
    ("op", "arrays", "attrs", "message"),
    [
        ("cache_write", (normal(2, 8, 4), normal(9, 2, 4), np.array([0])), {}, "room"),
        ("cache_write", (normal(2, 8, 4), normal(1, 2, 5), np.array([0])), {}, "must be float32"),
        ("cache_write", (normal(2, 8, 4), normal(1, 2, 4), np.array([0, 1])), {}, "position"),
        ("cache_write", (np.zeros((2, 8, 4), np.int8), normal(1, 2, 4), np.array([0])), {}, "scale"),
        ("cache_write", (normal(2, 8, 4).astype(np.float64), normal(1, 2, 4), np.array([0])), {}, "float16"),
        ("cached_attention", (normal(1, 3, 4), *(normal(2, 8, 4),) * 2, np.array([0])), {}, "multiple"),
        (
            "cached_attention",
            (normal(1, 2, 4), *(normal(2, 8, 4),) * 2, np.array([0])),
            {"window": -1},
            "win",
        ),
        ("rope", (normal(1, 3, 4), normal(8, 3), normal(8, 3), np.array([0])), {}, "turns more"),
    ],
)
def test_what_does_not_fit_is_refused(op: str, arrays: Any, attrs: Any, message: str) -> None:
    with pytest.raises(InternalError, match=message):
        run(op, *arrays, **attrs)
