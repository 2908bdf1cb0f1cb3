"""Values divided by channel before int8 linear layers: an equal float graph, and far less int8 error."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from bitsmith.compiler.analysis.smoothing import LARGEST, Smoothing, linear_inputs
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.calibrate import Ranges, calibrate, choose_ranges, observe
from bitsmith.compiler.errors import InputError
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.histogram import KEPT_BYTES, RowSample
from bitsmith.compiler.plan import Calibration, Plan, layers_of
from bitsmith.compiler.reference import run_reference
from bitsmith.compiler.text import print_graph
from bitsmith.compiler.verify import verify
from bitsmith.passes.apply_plan import apply_plan
from bitsmith.passes.dead_code import remove_dead_code
from bitsmith.passes.prepare import prepare
from bitsmith.passes.smooth import smooth
from bitsmith.search.costs import cost_table
from bitsmith.targets.build import build
from bitsmith.targets.target import resolve
from golden_passes import FOLDER, SEPARATOR, graph_from_text, random_inputs
from hypothesis import given, settings
from hypothesis import strategies as st

CASES = sorted(file.stem for file in (FOLDER / "smooth").glob("*.txt"))


def smoothed_ranges(graph, exponents=lambda channels: range(-1, channels - 1), values="v"):
    """Ranges in which every value that linear layers read and whose name begins so is divided."""
    plain = {v: (-1.28, 1.27) for v in graph.types if v not in graph.params}
    table = {
        value: Smoothing(
            tuple(n.name for n in layers), tuple(exponents(graph.type_of(value).shape[-1])), -2.0, 3.0
        )
        for value, layers in linear_inputs(graph).items()
        if value.startswith(values)
    }
    means = {n.name: (1.0,) * graph.type_of(n.inputs[0]).shape[-1] for n in layers_of(graph)}
    return Ranges(plain, means, Calibration("minmax"), 1, table)


def int8_by_name(graph):
    choices = {n.name: "int8" if n.name.startswith("int8") else "float32" for n in layers_of(graph)}
    return Plan(graph.name, choices)


def assert_same_to_the_last_bit(before, after, inputs):
    wanted, found = run_reference(before, inputs), run_reference(after, inputs)
    for value in before.outputs:
        np.testing.assert_array_equal(found[value], wanted[value])


@pytest.mark.parametrize("case", CASES)
def test_golden(case):
    file = FOLDER / "smooth" / f"{case}.txt"
    source, _, wanted = file.read_text(encoding="utf-8").partition(SEPARATOR)
    graph = graph_from_text(source)
    after, _ = smooth(graph, int8_by_name(graph), smoothed_ranges(graph))
    after = remove_dead_code(after)
    found = print_graph(verify(after, case))
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(print_graph(graph) + SEPARATOR + found, encoding="utf-8")
    else:
        assert found == wanted
    assert_same_to_the_last_bit(graph, after, random_inputs(graph))


class Blocks:
    """Random blocks on [1, 5, 8]: norms with and without weights, layers that share an input, residuals."""

    def __init__(self, seed):
        self.rng, self.b = np.random.default_rng(seed), GraphBuilder("blocks")
        self.x = self.b.input("x", (1, 5, 8))
        self.seen = [self.x]

    def pick(self, *choices):
        return choices[int(self.rng.integers(len(choices)))]

    def param(self, *shape):
        return self.b.param("p", self.rng.normal(size=shape).astype(np.float32))

    def norm(self, x):
        kind = self.pick("layer_norm", "rms_norm")
        weights = [self.param(8) for _ in range(self.pick(0, 1, 2 if kind == "layer_norm" else 1))]
        return self.b.add(kind, [x, *weights])

    def linear(self, x, outs=8):
        w = self.param(outs, self.b.types[x].shape[-1])
        bias = self.pick("", self.param(outs))
        same = [v for v in self.seen if self.b.types[v].shape[-1] == outs]
        residual = self.pick("", "", self.pick(*same)) if same else ""
        inputs = [x, w, bias, residual]
        while not inputs[-1]:
            inputs.pop()
        act = self.pick(
            {}, {}, {"act": "clip", "lo": 0.0}, {"act": "gelu"}, {"act": "leaky_relu", "alpha": 0.1}
        )
        return self.b.add("linear", inputs, **act)

    def finish(self):
        for _ in range(int(self.rng.integers(1, 4))):
            x = self.norm(self.x) if self.rng.integers(2) else self.x
            readers = [self.linear(x, self.pick(8, 12)) for _ in range(self.pick(1, 1, 3))]
            self.seen += [x] if self.rng.integers(2) else []
            self.x = self.linear(readers[0])
            self.seen += [self.x, *readers[1:]]
        outputs = dict.fromkeys([self.x, *(v for v in self.seen[1:] if self.rng.integers(4) == 0)])
        return remove_dead_code(self.b.finish(list(outputs)))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_a_divided_network_is_equal_to_the_last_bit(seed, data):
    graph = Blocks(seed).finish()
    rng = np.random.default_rng(seed)
    ranges = smoothed_ranges(graph, lambda n: rng.integers(-6, 7, n).tolist(), values="")
    choices = {n.name: data.draw(st.sampled_from(["int8", "int8", "float32"])) for n in layers_of(graph)}
    plan = Plan(graph.name, choices)
    after, changed = smooth(graph, plan, ranges)
    assert_same_to_the_last_bit(graph, after, {"x": rng.normal(size=(1, 5, 8)).astype(np.float32)})
    assert not changed.smoothing and smooth(after, plan, changed)[0] is after
    for node in layers_of(after):
        same = after.params[node.inputs[1]] is graph.params[graph.node(node.name).inputs[1]]
        assert not same if plan.choice(node.name) == "int8" else True
        changed[node.inputs[0]]  # every value that a layer reads has a range
    planned = apply_plan(graph, plan, ranges)
    assert planned.inputs == graph.inputs and planned.outputs == graph.outputs
    assert apply_plan(after, plan, changed).content_hash == planned.content_hash


def test_means_follow_what_the_layer_reads():
    graph = graph_from_text((FOLDER / "smooth" / "shared.txt").read_text().partition(SEPARATOR)[0])
    ranges = smoothed_ranges(graph)
    _, changed = smooth(graph, int8_by_name(graph), ranges)
    assert changed.means["int8.q"] == (2.0, 1.0, 0.5, 0.25)
    assert changed.means["f"] == (1.0, 1.0, 1.0, 1.0)
    assert changed["v0.smooth"] == (-2.0, 3.0) and changed["v0"] == (-1.28, 1.27)


WIDTH, ROWS = 64, 40


def planted(rng, between, outliers=3, factor=60.0):
    """A norm and two layers; a few channels of the norm, and of what the first layer makes, are far larger
    than the others.
    """
    b = GraphBuilder("planted")

    def weight(outs, ins):
        return rng.normal(size=(outs, ins)).astype(np.float32) / np.float32(ins**0.5)

    gamma = rng.uniform(0.5, 1.5, WIDTH).astype(np.float32)
    hot = rng.permutation(WIDTH)[:outliers]
    gamma[hot] *= np.float32(factor)
    beta = rng.normal(size=WIDTH).astype(np.float32)
    first, last = weight(WIDTH, WIDTH), weight(WIDTH, WIDTH)
    for w in (first, last):
        w[:, hot] /= np.float32(factor)
    # What channels `hot` of the first layer make is large as well.
    first[hot] *= np.float32(factor)
    x = b.input("x", (1, ROWS, WIDTH))
    m = b.add("layer_norm", [x, b.param("gamma", gamma), b.param("beta", beta)], output="m")
    h = b.add("linear", [m, b.param("w1", first)], name="first", output="h", **between)
    return prepare(b.finish([b.add("linear", [h, b.param("w2", last)], name="last", output="y")]))


def int8_error(graph, ranges, feeds, plan=None):
    """Squared error of the first output relative to the float graph's."""
    planned = apply_plan(graph, plan or Plan.uniform(graph, "int8"), ranges)
    noise = signal = 0.0
    for feed in feeds:
        want, found = (run_reference(g, feed)[graph.outputs[0]] for g in (graph, planned))
        noise, signal = noise + np.square(found - want).sum(), signal + np.square(want).sum()
    return float(noise / signal)


def without(ranges):
    return Ranges(ranges.values, ranges.means, ranges.calibration, ranges.samples)


@pytest.mark.parametrize("method", ["mse", "minmax", "percentile"])
@pytest.mark.parametrize("between", [{"act": "clip", "lo": 0.0}, {"act": "gelu"}], ids=["relu", "gelu"])
def test_outlier_channels_cost_little(rng, between, method):
    graph = planted(rng, between)
    feeds = [{"x": rng.normal(size=(1, ROWS, WIDTH)).astype(np.float32)} for _ in range(24)]
    ranges = calibrate(graph, feeds[:16], method=method)
    assert set(ranges.smoothing) == {"m", "h"}
    before, after = (int8_error(graph, r, feeds[16:]) for r in (without(ranges), ranges))
    assert after < before / 20
    assert after < 1e-3
    planned = apply_plan(graph, Plan.uniform(graph, "int8"), ranges)
    kinds = [node.op for node in planned.nodes]
    # The norm and a layer with relu take the division in; behind gelu it needs a node.
    inside = ["layer_norm", "quantize", "linear", "linear"]
    assert kinds == (inside if between["act"] == "clip" else [*inside[:3], "mul", "quantize", "linear"])


def test_channels_of_one_size_are_left_alone(rng):
    graph = planted(rng, {"act": "clip", "lo": 0.0}, outliers=0)
    feeds = [{"x": rng.normal(size=(1, ROWS, WIDTH)).astype(np.float32)} for _ in range(16)]
    ranges = calibrate(graph, feeds)
    exponents = [e for s in ranges.smoothing.values() for e in s.exponents]
    assert all(abs(e) <= 1 for e in exponents)
    held_out = [{"x": rng.normal(size=(1, ROWS, WIDTH)).astype(np.float32)} for _ in range(8)]
    assert int8_error(graph, ranges, held_out) < 1.1 * int8_error(graph, without(ranges), held_out)


def test_few_rows_say_nothing_of_channels(rng):
    graph = planted(rng, {"act": "gelu"})
    ranges = calibrate(graph, rng.normal(size=(6, 1, ROWS, WIDTH)).astype(np.float32))
    assert not ranges.smoothing


def test_one_layer_of_a_group_and_what_an_artifact_keeps(rng):
    graph = planted(rng, {"act": "gelu"})
    feeds = [{"x": rng.normal(size=(1, ROWS, WIDTH)).astype(np.float32)} for _ in range(12)]
    ranges = calibrate(graph, feeds)
    plan = Plan.uniform(graph, "float32").with_choice("last", "int8")
    assert set(ranges.for_plan(plan).smoothing) == {"h"}
    wanted = apply_plan(graph, plan, ranges).content_hash
    assert apply_plan(graph, plan, ranges.for_plan(plan)).content_hash == wanted
    restored = Ranges.from_json(json.loads(ranges.to_text()))
    assert restored == ranges and apply_plan(graph, plan, restored).content_hash == wanted


def test_calibration_is_deterministic(rng):
    graph = planted(rng, {"act": "gelu"})
    data = rng.normal(size=(9, 1, ROWS, WIDTH)).astype(np.float32)
    assert choose_ranges(observe(graph, data)) == choose_ranges(observe(graph, data))


@pytest.mark.parametrize(
    "broken",
    [
        {"m": {"layers": ["first"], "exponents": [1], "low": 1.0, "high": 0.0}},
        {"m": {"layers": ["first"], "exponents": [LARGEST + 1], "low": 0.0, "high": 1.0}},
        {"m": {"layers": ["first"], "exponents": ["a"], "low": 0.0, "high": 1.0}},
        {"m": {"layers": ["first"], "exponents": [1], "low": 0.0, "high": 1.0, "kept": [1]}},
        {"m": {"exponents": [1]}},
        {"m": 3},
        [],
    ],
)
def test_broken_smoothings_are_refused(broken):
    fine = {"values": {"m": [0.0, 1.0]}, "means": {}, "method": "mse", "percentile": 99.99, "samples": 3}
    assert Ranges.from_json(fine).smoothing == {}
    with pytest.raises(InputError, match="no calibration ranges"):
        Ranges.from_json({**fine, "smoothing": broken})


def test_ranges_of_another_graph_are_refused(rng):
    graph = planted(rng, {"act": "gelu"})
    short = Smoothing(("first",), (1, 2), -1.0, 1.0)
    ranges = Ranges({"x": (0, 1), "m": (0, 1), "h": (0, 1)}, {}, Calibration(), 1, {"m": short})
    with pytest.raises(InputError, match="'m'"):
        smooth(graph, Plan.uniform(graph, "int8"), ranges)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(runs=st.integers(1, 400), rows=st.integers(1, 60), channels=st.sampled_from([1, 7, 4000]))
def test_rows_are_bounded_and_extremes_exact(runs, rows, channels):
    rng = np.random.default_rng(runs)
    sample, low, high = RowSample(channels, runs), np.inf, -np.inf
    block = rng.normal(size=(1, rows, channels)).astype(np.float32)
    for i in range(runs):
        array = block * np.float32(1 + i % 7)
        sample.add(array)
        low, high = np.minimum(low, array.min((0, 1))), np.maximum(high, array.max((0, 1)))
    np.testing.assert_array_equal(sample.lows, low)
    np.testing.assert_array_equal(sample.highs, high)
    assert 0 < len(sample.rows) <= sample.count == runs * rows
    assert sample.rows.nbytes <= KEPT_BYTES + 4 * channels


class Encoder(torch.nn.Module):
    """A ViT (pre-norm) or BERT (post-norm) encoder block; its norms have a few large channels."""

    def __init__(self, pre_norm, width=32, heads=4):
        super().__init__()
        self.pre_norm, self.heads = pre_norm, heads
        self.q, self.k, self.v, self.out = (torch.nn.Linear(width, width) for _ in range(4))
        self.up, self.down = torch.nn.Linear(width, 2 * width), torch.nn.Linear(2 * width, width)
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(3))
        with torch.no_grad():
            for norm in self.norms:
                norm.weight[:2] = 40.0
            for layer in (self.q, self.k, self.v, self.up):
                layer.weight[:, :2] /= 40.0

    def attend(self, x):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))

    def mix(self, x):
        return self.down(torch.nn.functional.gelu(self.up(x)))

    def forward(self, x):
        if self.pre_norm:
            x = x + self.attend(self.norms[0](x))
            return x + self.mix(self.norms[1](x))
        x = self.norms[0](x)
        x = self.norms[1](x + self.attend(x))
        return self.norms[2](x + self.mix(x))


@pytest.mark.parametrize("pre_norm", [True, False], ids=["vit", "bert"])
def test_encoder_blocks_from_torch(rng, pre_norm):
    torch.manual_seed(0)
    module = Encoder(pre_norm).eval()
    feeds = [rng.normal(size=(1, 20, 32)).astype(np.float32) for _ in range(32)]
    graph = prepare(load_model(module, inputs=(torch.from_numpy(feeds[0]),)))
    name = graph.inputs[0][0]
    inputs = [{name: feed} for feed in feeds]
    ranges = calibrate(graph, inputs[:24])
    plan = Plan.uniform(graph, "int8")
    smoothed, _ = smooth(graph, plan, ranges)
    assert_same_to_the_last_bit(graph, smoothed, inputs[24])
    # Residuals read what norms make in BERT: the layers' copies are divided by nodes of their own.
    assert [node.op for node in smoothed.nodes].count("mul") == (0 if pre_norm else 2)
    before, after = (int8_error(graph, r, inputs[24:]) for r in (without(ranges), ranges))
    assert after < before / 4
    with torch.no_grad():
        wanted = module(torch.from_numpy(feeds[25])).numpy().ravel()
    found = run_reference(apply_plan(graph, plan, ranges), inputs[25])[graph.outputs[0]].ravel()
    assert wanted @ found / np.linalg.norm(wanted) / np.linalg.norm(found) > 0.999


MASSIVE = (5, 17)


def massive_graph(rng):
    """Two layers that read one value; one adds a residual."""
    b = GraphBuilder("massive")
    x, r = b.input("x", (1, ROWS, WIDTH)), b.input("r", (1, ROWS, WIDTH))
    w = [rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 8 for _ in range(2)]
    y = b.add("linear", [x, b.param("w", w[0])], name="plain")
    z = b.add("linear", [x, b.param("w", w[1]), b.param("b", w[0][0]), r], name="added", act="clip", lo=0.0)
    return prepare(b.finish([y, z]))


def massive_feed(rng):
    """Two channels are a thousand times larger, at one position."""
    feed = {name: rng.normal(size=(1, ROWS, WIDTH)).astype(np.float32) for name in ("x", "r")}
    feed["x"][:, 0, MASSIVE] *= 1000
    return feed


def in_eight_bits(x, smoothing, weight):
    """float64 x @ weight.T, of which the kept channels are exact."""
    kept, factors = list(smoothing.kept), smoothing.factors.astype(np.float64)
    low, high = min(smoothing.low, 0.0), max(smoothing.high, 0.0)
    step = (high - low) / 255
    zero = np.rint(-low / step)
    stored = (np.clip(np.rint(x / factors / step) + zero, 0, 255) - zero) * step
    rest = weight * factors
    rest[:, kept] = 0
    scale = np.abs(rest).max(1, keepdims=True) / 127
    return stored @ (np.rint(rest / scale) * scale).T + x[..., kept] @ weight[:, kept].T


def test_massive_channels_stay_float(rng):
    graph = massive_graph(rng)
    feeds = [massive_feed(rng) for _ in range(16)]
    ranges = replace(calibrate(graph, feeds[:12]), means={})
    smoothing = ranges.smoothing["x"]
    assert smoothing.kept == MASSIVE and Ranges.from_json(json.loads(ranges.to_text())) == ranges
    divided = replace(ranges, smoothing={"x": replace(smoothing, kept=())})
    before, after = (int8_error(graph, r, feeds[12:]) for r in (divided, ranges))
    assert after < 1e-6 and after < before / 1000
    planned = apply_plan(graph, Plan.uniform(graph, "int8"), ranges)
    with build(planned, resolve("host")) as artifact:
        for feed in feeds[12:]:
            found = artifact.run(**feed)
            x, r = (feed[name].astype(np.float64) for name in ("x", "r"))
            w = {
                name: graph.params[graph.node(name).inputs[1]].astype(np.float64)
                for name in ("plain", "added")
            }
            bias = graph.params[graph.node("added").inputs[2]]
            wanted = [
                in_eight_bits(x, smoothing, w["plain"]),
                np.maximum(in_eight_bits(x, smoothing, w["added"]) + bias + r, 0),
            ]
            for value, want in zip(graph.outputs, wanted, strict=True):
                np.testing.assert_allclose(found[value], want, rtol=0, atol=2e-6 * np.abs(want).max())


def test_what_prepares_an_int8_layers_input_counts_for_it(rng):
    graph = massive_graph(rng)
    ranges = calibrate(graph, [massive_feed(rng) for _ in range(12)])

    def measure(int8):
        plan = Plan(graph.name, dict.fromkeys(int8, "int8"))
        planned = apply_plan(graph, plan, ranges)
        return planned, {node.name: 1.0 for node in planned.nodes}

    table = cost_table(graph, measure)
    # Its own kernel, the product with the kept channels, and half of gathering them.
    assert table.float_us == {"plain": 1.0, "added": 1.0} and table.int8_us == {"plain": 2.5, "added": 2.5}
