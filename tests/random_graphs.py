"""Random networks, composed from steps that hypothesis draws and can shrink."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.ir import Graph
from hypothesis import strategies as st


class Composer:
    """A graph being built: `x` is the current value, `seen` are the earlier ones, images [1, c, h, w] all."""

    def __init__(self, channels: int, size: int) -> None:
        self.b = GraphBuilder("random")
        self.x = self.b.input("x", (1, channels, size, size))
        self.seen = [self.x]
        self.rng = np.random.default_rng(0)

    def reseed(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def shape(self, value: str = "") -> tuple[int, ...]:
        return self.b.types[value or self.x].shape

    def param(self, *shape: int, low: float = -1.0, high: float = 1.0) -> str:
        return self.b.param("p", self.rng.uniform(low, high, shape).astype(np.float32))

    def add(self, op: str, inputs: Sequence[str] | None = None, **attrs: object) -> None:
        self.x = self.b.add(op, [self.x] if inputs is None else inputs, **attrs)
        self.seen.append(self.x)

    def pick(self, *choices):
        return choices[int(self.rng.integers(len(choices)))]

    def earlier(self, fits: Callable[[tuple[int, ...]], bool]) -> str:
        """An earlier value whose shape fits, or the current one."""
        return self.pick(*([v for v in self.seen if fits(self.shape(v))] or [self.x]))


def conv(c: Composer) -> None:
    _, cin, h, w = c.shape()
    kernel = c.pick(1, 3) if min(h, w) >= 3 else 1
    depthwise = bool(c.rng.integers(2)) and cin > 1
    cout = cin if depthwise or c.rng.integers(2) else c.pick(3, 4, 6)
    weight = c.param(cout, 1 if depthwise else cin, kernel, kernel)
    fan = (1 if depthwise else cin) * kernel**2
    c.b.params[weight] *= np.float32((3 / fan) ** 0.5)
    bias = [c.param(cout)] if c.rng.integers(2) else []
    pads = (kernel // 2,) * 4
    c.add(
        "conv2d",
        [c.x, weight, *bias],
        pads=pads,
        groups=cin if depthwise else 1,
        strides=c.pick((1, 1), (2, 2)),
    )


def batch_norm(c: Composer) -> None:
    n = c.shape()[1]
    stats = [c.param(n), c.param(n), c.param(n), c.param(n, low=0.5, high=2.0)]
    c.add("batch_norm", [c.x, *stats])


def activation(c: Composer) -> None:
    c.add(c.pick("hard_swish", "silu", "tanh", "leaky_relu", "sigmoid"))


def relu(c: Composer) -> None:
    c.add("clip", lo=c.pick(0.0, -0.5), hi=c.pick(float("inf"), 6.0, 1.0))


def gate(c: Composer) -> None:
    x = c.x
    c.add(c.pick("sigmoid", "hard_sigmoid"))
    c.add("mul", c.pick([x, c.x], [c.x, x]))


def residual(c: Composer) -> None:
    other = c.earlier(lambda shape: shape == c.shape())
    c.add("add", c.pick([c.x, other], [other, c.x]))


def arithmetic(c: Composer) -> None:
    n, (_, _, h, w) = c.shape()[1], c.shape()
    constant = c.param(*c.pick((n, 1, 1), (1, n, 1, 1), (), (1,), (h, w), (w,)), low=0.5, high=1.5)
    op = c.pick("add", "mul", "sub", "div", "maximum", "minimum")
    c.add(op, [c.x, constant] if op in ("sub", "div") else c.pick([c.x, constant], [constant, c.x]))


def pad(c: Composer) -> None:
    if max(c.shape()) > 12:
        return
    spatial = tuple(int(n) for n in c.rng.integers(0, 2, 4))
    c.add("pad", before=(0, 0, *spatial[:2]), after=(0, 0, *spatial[2:]), value=c.pick(0.0, 0.0, 0.5))


def pool(c: Composer) -> None:
    if min(c.shape()[2:]) < 2:
        return
    pads, strides = c.pick((0, 0, 0, 0), (1, 1, 1, 1), (0, 0, 1, 1)), c.pick((1, 1), (2, 2))
    if c.rng.integers(2):
        c.add("max_pool2d", kernel=(2, 2), strides=strides, pads=pads)
    else:
        c.add("avg_pool2d", kernel=(2, 2), strides=strides, pads=pads, count_pad=bool(c.rng.integers(2)))


def concat(c: Composer) -> None:
    if c.shape()[1] <= 8:
        other = c.earlier(lambda shape: (shape[0], *shape[2:]) == (c.shape()[0], *c.shape()[2:]))
        c.add("concat", [c.x, other], axis=1)


def squeeze_excite(c: Composer) -> None:
    x, n = c.x, c.shape()[1]
    c.add("reduce_mean", axes=(2, 3))
    c.add("conv2d", [c.x, c.param(n, n, 1, 1), c.param(n)])
    c.add("hard_sigmoid")
    c.add("mul", [x, c.x])


def channels_last(c: Composer) -> None:
    """What a model of another framework looks like: a product over the last axis between two transposes."""
    n = c.shape()[1]
    c.add("transpose", perm=(0, 2, 3, 1))
    c.seen.pop()
    c.add("matmul", [c.x, c.param(n, n)])
    c.seen.pop()
    c.add("transpose", perm=(0, 3, 1, 2))


def cut(c: Composer) -> None:
    _, n, h, w = c.shape()
    if min(h, w) > 2:
        c.add("slice", starts=(0, 0, 1, 0), stops=(1, n, h, w), steps=(1, 1, 1, c.pick(1, 2)))


def softmax(c: Composer) -> None:
    c.add("softmax", axis=c.pick(1, 2, 3))


def bottleneck(c: Composer) -> None:
    """Two convolutions and what came in, in any of the ways that models end such a block."""
    x, n = c.x, c.shape()[1]
    for kernel in (1, c.pick(1, 3)):
        weight = c.param(n, n, kernel, kernel)
        c.b.params[weight] *= np.float32((3 / (n * kernel**2)) ** 0.5)
        c.add("conv2d", [c.x, weight], pads=(kernel // 2,) * 4)
        if kernel == 1 or c.rng.integers(4) == 0:
            relu(c)
    c.add("add", c.pick([c.x, x], [x, c.x]))
    if c.rng.integers(2):
        relu(c)


FLOAT_STEPS = (conv, bottleneck, batch_norm, activation, relu, gate, residual, arithmetic, pad, pool, concat)
FLOAT_STEPS += (squeeze_excite, channels_last, cut, softmax)
PLAIN_STEPS = (conv, conv, bottleneck, bottleneck, relu, residual, pool, concat, squeeze_excite, pad)
"""Steps through which rounding errors do not grow."""


def head(c: Composer) -> None:
    """Mean, flatten, linear: to an output of 5 numbers."""
    n = c.shape()[1]
    c.x = c.b.add("reduce_mean", [c.x], axes=(2, 3))
    c.x = c.b.add("reshape", [c.x], shape=(1, n))
    c.x = c.b.add("linear", [c.x, c.param(5, n), c.param(5)])


def compose(
    steps: Sequence[tuple[Callable[[Composer], None], int]], extra_output: int, with_head: bool
) -> Graph:
    c = Composer(3, 7)
    for step, seed in steps:
        c.reseed(seed)
        step(c)
    other = c.seen[extra_output % len(c.seen)]
    if with_head or c.x == "x":
        head(c)
    return c.b.finish(list(dict.fromkeys([c.x, *([other] if other != "x" else [])])))


def graphs(steps: Sequence[Callable[[Composer], None]], most: int = 9) -> st.SearchStrategy[Graph]:
    drawn = st.lists(st.tuples(st.sampled_from(steps), st.integers(0, 99)), min_size=1, max_size=most)
    return st.builds(compose, drawn, st.integers(0, 20), st.booleans())
