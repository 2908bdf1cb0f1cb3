"""Coding a network layer by layer: against computing all of it at once, killed runs, bounded memory."""

import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.errors import InputError
from bitsmith.compiler.formats import decode, encode, format_of
from bitsmith.compiler.formats.compensate import Compensation, Compensator, compensate, output_error
from bitsmith.compiler.reference import run_reference
from bitsmith.passes.divide import scale_inputs
from bitsmith.passes.encode_layers import encode_layers
from bitsmith.passes.kept_codes import factors_of
from bitsmith.passes.layer_coder import EncodeOptions, LayerCoder
from bitsmith.passes.layer_inputs import LOUDEST, LayerInputs, quietened
from bitsmith.passes.live_values import LiveValues, needed_nodes

WORDS, WIDTH, INNER, TOKENS = 40, 32, 48, 24
LAYERS = ("q", "k", "o", "up", "down")


def network(tied=True, seed=0):
    """An embedding, two layers that read one norm, a product, a feed-forward part, and a head."""
    rng = np.random.default_rng(seed)
    b = GraphBuilder("net")

    def weight(name, *shape):
        return b.param(name, (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32))

    def gamma(name):
        return b.param(name, np.exp(rng.standard_normal(WIDTH)).astype(np.float32))

    table = weight("table", WORDS, WIDTH)
    x = b.add("gather", [table, b.input("tokens", (TOKENS,), "int64")], name="embed", axis=0)
    n = b.add("rms_norm", [x, gamma("gamma1")], name="norm1")
    q, k = (b.add("linear", [n, weight(f"w{layer}", WIDTH, WIDTH)], name=layer) for layer in ("q", "k"))
    x = b.add("linear", [b.add("mul", [q, k], name="product"), weight("wo", WIDTH, WIDTH), "", x], name="o")
    n = b.add("rms_norm", [x, gamma("gamma2")], name="norm2")
    up = b.add("silu", [b.add("linear", [n, weight("wup", INNER, WIDTH)], name="up")], name="act")
    x = b.add("add", [x, b.add("linear", [up, weight("wdown", WIDTH, INNER)], name="down")], name="sum")
    head = table if tied else weight("whead", WORDS, WIDTH)
    return b.finish([b.add("linear", [x, head], name="head")])


def texts(count=12, seed=1):
    rng = np.random.default_rng(seed)
    return [{"tokens": rng.integers(0, WORDS, TOKENS)} for _ in range(count)]


def formats(text="int3:16", layers=LAYERS):
    return {layer: format_of(text) for layer in layers}


def matrix(graph, layer):
    return graph.node(layer).inputs[0 if layer == "embed" else 1]


def coded_graph(graph, codes):
    """The graph with the weights that the codes hold, and divided inputs."""
    inputs = {layer: graph.node(layer).inputs[0] for layer in codes}
    scaled = scale_inputs(graph, factors_of(codes, inputs))
    params = dict(scaled.params)
    params |= {matrix(scaled, layer): decode(each.coded) for layer, each in codes.items()}
    return scaled.with_nodes(scaled.nodes, params=params)


def departure(graph, other, samples):
    total = 0.0
    for sample in samples:
        (wanted,), (found,) = (run_reference(g, sample).values() for g in (graph, other))
        total += float(np.square(wanted - found).sum() / np.square(wanted).sum())
    return total / len(samples)


def see_inputs(graph, samples, value):
    rows = []
    for sample in samples:
        run_reference(graph, sample, lambda name, array: rows.append(array) if name == value else None)
    return np.concatenate(rows).astype(np.float64)


def same(a, b):
    return list(a) == list(b) and all(
        a[layer].coded.arrays.keys() == b[layer].coded.arrays.keys()
        and all(np.array_equal(x, b[layer].coded.arrays[n]) for n, x in a[layer].coded.arrays.items())
        and np.array_equal(a[layer].factors, b[layer].factors)
        for layer in a
    )


def test_each_layer_is_compensated_for_what_the_coded_layers_before_give_and_cost():
    """One layer after the other, each with the inputs that the reference executor computes: half of what
    regression on them says of the float network's outputs is aimed at.
    """
    graph, samples = network(), texts()
    codes = dict(encode_layers(graph, formats(), samples))
    assert tuple(codes) == LAYERS
    before = graph
    for layer in LAYERS:
        x = see_inputs(before, samples, graph.node(layer).inputs[0])
        hessian, damping = x.T @ x, max(0.01, 0.7 * x.shape[1] / len(x))
        lacking = see_inputs(graph, samples, graph.node(layer).inputs[0]) - x
        damped = hessian + damping * np.diagonal(hessian).mean() * np.eye(len(hessian))
        weight = graph.params[matrix(graph, layer)]
        aim = weight + 0.5 * np.linalg.solve(damped, x.T @ lacking @ weight.T).T.astype(np.float32)
        expected = compensate(aim, hessian, format_of("int3:16"), Compensation(damping))
        found, best = (output_error(aim, decode(c), hessian).sum() for c in (codes[layer].coded, expected))
        assert found == pytest.approx(best, rel=0.02)
        found = output_error(weight, decode(codes[layer].coded), hessian).sum()
        whole = output_error(weight, 0 * weight, hessian).sum()
        assert codes[layer].error == pytest.approx(found / whole, rel=0.01)
        before = coded_graph(graph, {name: codes[name] for name in LAYERS[: LAYERS.index(layer) + 1]})


@pytest.mark.parametrize("text", ["int3:16", "bitmod3:16", "nf4:32", "shiftadd3:16", "int4a:16:two-level"])
def test_compensated_networks_depart_less_than_rounded_ones(text):
    graph, samples = network(), texts(24)
    error = {}
    for method in ("round", "search", "compensate"):
        codes = dict(encode_layers(graph, formats(text), samples, EncodeOptions(method)))
        error[method] = departure(graph, coded_graph(graph, codes), texts(8, seed=5))
    assert error["compensate"] < 0.8 * min(error["round"], error["search"])


@pytest.mark.parametrize("rows, damping", [(100, 0.7 * INNER / 100), (100_000, 0.01)])
def test_few_samples_raise_the_damping(rows, damping):
    graph = network()
    x = np.random.default_rng(0).standard_normal((100, INNER)) * np.linspace(2, 0.2, INNER)
    coder = LayerCoder(graph, formats("int3:16"), EncodeOptions())
    made = coder.code([graph.node("down")], LayerInputs(x.T @ x, np.abs(x).mean(0), rows))
    expected = compensate(graph.params["wdown"], x.T @ x, format_of("int3:16"), Compensation(damping))
    assert np.array_equal(decode(made["down"].coded), decode(expected))


def test_methods_without_samples():
    graph = network()
    for method, best in (("round", None), ("search", np.ones(WIDTH))):
        codes = dict(encode_layers(graph, formats(layers=("q",)), None, EncodeOptions(method)))
        expected = encode(graph.params["wq"], format_of("int3:16"), best)
        assert np.array_equal(codes["q"].coded.arrays["codes"], expected.arrays["codes"])
        lacking = np.square(decode(expected) - graph.params["wq"]).sum()
        assert codes["q"].error == pytest.approx(lacking / np.square(graph.params["wq"]).sum(), rel=1e-5)
    (hqq,) = dict(encode_layers(graph, formats(layers=("q",)), None, EncodeOptions("hqq"))).values()
    power = [np.abs(decode(c) - graph.params["wq"]).astype(np.float64) ** 0.7 for c in (hqq.coded, expected)]
    assert power[0].sum() < power[1].sum()


def test_a_shared_table_has_one_set_of_codes(tmp_path):
    graph, shared = network(tied=True), formats(layers=("embed", "head", "q"))
    for _ in ("coded", "read from the folder"):
        codes = dict(encode_layers(graph, shared, texts(4), folder=tmp_path))
        assert list(codes) == ["embed", "q", "head"]
        assert codes["embed"].coded is codes["head"].coded
    loose = dict(encode_layers(network(tied=False), formats(layers=("embed", "head")), texts(4)))
    assert loose["head"].coded is not loose["embed"].coded


def test_a_head_is_compensated_when_its_table_is_coded_for_it_alone():
    graph, samples = network(tied=False), texts()
    codes = dict(encode_layers(graph, formats(layers=("head",)), samples))
    x = see_inputs(graph, samples, graph.node("head").inputs[0])
    rounded = encode(graph.params["whead"], format_of("int3:16"))
    weight = graph.params["whead"]
    found, before = (output_error(weight, decode(c), x.T @ x).sum() for c in (codes["head"].coded, rounded))
    assert found < 0.8 * before


@pytest.mark.parametrize("method", ["compensate", "search"])
def test_a_shared_table_is_coded_for_what_its_head_reads_in_float(method):
    graph, samples = network(tied=True), texts()
    options = EncodeOptions(method, scale_inputs=method == "compensate")
    codes = dict(encode_layers(graph, formats(layers=("embed", "head", "q")), samples, options))
    x = np.concatenate(
        [
            quietened(rows)
            for rows in np.split(see_inputs(graph, samples, graph.node("head").inputs[0]), len(samples))
        ]
    )
    hessian, weight = x.T @ x, graph.params["table"]
    errors = [
        output_error(weight, decode(each), hessian).sum()
        for each in (codes["head"].coded, encode(weight, format_of("int3:16"), np.ones(WIDTH)))
    ]
    assert codes["embed"].factors is None and codes["head"].coded is codes["embed"].coded
    assert errors[0] < (0.8 if method == "compensate" else 1.0) * errors[1]
    assert codes["head"].error == pytest.approx(
        errors[0] / output_error(weight, np.zeros_like(weight), hessian).sum(), rel=1e-3
    )


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    graph, samples = network(), texts()
    whole = dict(encode_layers(graph, formats(), samples))
    run = encode_layers(graph, formats(), samples, folder=tmp_path / "run")
    first = [next(run) for _ in range(3)]
    run.close()
    coded = []
    count = Compensator.code
    monkeypatch.setattr(
        Compensator, "code", lambda self, *given, **more: coded.append(1) or count(self, *given, **more)
    )
    again = dict(encode_layers(graph, formats(), samples, folder=tmp_path / "run"))
    assert same(again, whole) and [name for name, _ in first] == list(LAYERS[:3])
    assert len(coded) == 2
    assert same(dict(encode_layers(graph, formats(), samples, folder=tmp_path / "run")), whole)
    assert len(coded) == 2


def test_a_finished_run_computes_nothing(tmp_path, monkeypatch):
    graph, samples = network(), texts(3)
    whole = dict(encode_layers(graph, formats(), samples, folder=tmp_path))
    monkeypatch.setattr(LiveValues, "step", lambda *_: pytest.fail("a node was computed"))
    assert same(dict(encode_layers(graph, formats(), samples, folder=tmp_path)), whole)


def test_a_folder_of_another_run_is_refused(tmp_path):
    graph, samples = network(), texts(3)
    dict(encode_layers(graph, formats(), samples, folder=tmp_path))
    for other in (
        (graph, formats("int4:16"), samples, EncodeOptions()),
        (graph, formats(), texts(3, seed=9), EncodeOptions()),
        (graph, formats(), samples, EncodeOptions("search")),
        (network(seed=3), formats(), samples, EncodeOptions()),
    ):
        with pytest.raises(InputError, match="another model, other formats"):
            next(encode_layers(*other, folder=tmp_path))
    (tmp_path / "000.npz").write_bytes(b"PK\x03\x04 not whole")
    with pytest.raises(InputError, match=r"000.npz is damaged .* remove it"):
        next(encode_layers(graph, formats(), samples, folder=tmp_path))
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match="run.json cannot be read"):
        next(encode_layers(graph, formats(), samples, folder=tmp_path))


def test_values_on_disk_give_the_same_codes():
    graph, samples = network(), texts()
    whole = dict(encode_layers(graph, formats(), samples))
    assert same(dict(encode_layers(graph, formats(), samples, EncodeOptions(memory=0))), whole)


def test_what_is_held_in_memory_stays_within_the_limit():
    graph, samples = network(), texts(6)
    nodes, limit = needed_nodes(graph, {"down"}), 7 * 4 * TOKENS * WIDTH
    most = on_disk = 0
    with LiveValues(graph, samples, nodes, {"down"}, memory=limit) as values:
        for node in nodes:
            values.step(node, {})
            held = [array for array in values._held.values() if isinstance(array, np.ndarray)]
            most = max(most, sum(array.nbytes for array in held))
            on_disk = max(on_disk, len(values._held) - len(held))
        for run, sample in enumerate(samples):
            assert np.array_equal(values.get(run, "down"), see_inputs(graph, [sample], "down"))
    assert 0.8 * limit < most <= limit and on_disk >= 6


def test_values_are_dropped_after_their_last_reader():
    graph, samples = network(), texts(3)
    nodes = needed_nodes(graph, {"act"})
    assert [node.name for node in nodes][-1] == "act" and "down" not in {node.name for node in nodes}
    with LiveValues(graph, samples, nodes, {"act"}, memory=0) as values:
        for node in nodes:
            values.step(node, {})
        held = {value for _, value in values._held}
        assert held == {"act"}
        assert np.allclose(values.get(2, "act"), see_inputs(graph, samples[2:], "act"))
        values.release("act")
        assert not values._held


def test_progress_counts_layers():
    seen = []
    samples = texts(3)
    list(encode_layers(network(), formats(), samples, progress=lambda *each: seen.append(each)))
    assert seen == [(i + 1, 5, layer) for i, layer in enumerate(LAYERS)]


def test_one_loud_row_does_not_outweigh_all_others():
    x = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    assert np.array_equal(quietened(x), x)
    x[7] *= 1000
    sizes, before = np.linalg.norm(quietened(x), axis=1), np.linalg.norm(x, axis=1)
    assert sizes[7] == pytest.approx(LOUDEST * np.median(before)) and np.allclose(
        np.delete(sizes - before, 7), 0
    )
    direction = quietened(x)[7] / x[7]
    assert np.allclose(direction, direction[0])
    x[:40] = 0
    assert np.array_equal(quietened(x), x)


@pytest.fixture
def loud():
    """A network of which few channels of what q and k read are large."""
    graph = network()
    gamma = np.full(WIDTH, 0.2, np.float32)
    gamma[[3, 9, 20]] = 12.0
    return graph.with_nodes(graph.nodes, params={**graph.params, "gamma1": gamma, "gamma2": gamma})


@pytest.mark.parametrize("method", ["round", "search", "compensate"])
def test_scaled_inputs_help_where_few_channels_are_large(loud, method):
    samples = texts(24)
    errors = []
    for scale in (False, True):
        options = EncodeOptions(method, scale_inputs=scale)
        codes = dict(encode_layers(loud, formats("int3:32"), samples, options))
        errors.append(codes["q"].error + codes["k"].error + codes["up"].error)
        assert (codes["q"].factors is None) != (scale and method == "round") or method != "round"
        assert codes["o"].factors is None and codes["down"].factors is None
        if codes["q"].factors is not None:
            assert np.array_equal(codes["q"].factors, codes["k"].factors)
    assert errors[1] <= errors[0]
    if method == "round":
        assert errors[1] < 0.6 * errors[0]


def test_a_network_with_scaled_inputs_computes_what_the_codes_say(loud):
    samples = texts(24)
    departures = []
    for scale in (False, True):
        codes = dict(encode_layers(loud, formats("int3:32"), samples, EncodeOptions("round", scale)))
        departures.append(departure(loud, coded_graph(loud, codes), texts(6, seed=7)))
    assert departures[1] < departures[0]


def test_scaled_graphs_are_equal(loud):
    factors = {"norm1": np.exp(np.random.default_rng(0).standard_normal(WIDTH)).astype(np.float32)}
    scaled = scale_inputs(loud, factors)
    assert departure(loud, scaled, texts(3)) < 1e-9
    assert np.allclose(scaled.params[scaled.node("q").inputs[1]], loud.params["wq"] * factors["norm1"])
    assert np.allclose(
        scaled.params[scaled.node("norm1").inputs[1]], loud.params["gamma1"] / factors["norm1"]
    )


@pytest.mark.parametrize("value", ["product", "embed", "tokens"])
def test_values_that_cannot_be_divided_are_refused(value):
    with pytest.raises(InputError, match="cannot be divided"):
        scale_inputs(network(), {value: np.ones(WIDTH, np.float32)})


def test_what_cannot_be_coded_is_refused():
    graph, samples = network(), texts(2)
    for layers, words in ((("nothing",), "no layer 'nothing'"), (("norm1",), r"'norm1' \(rms_norm\) has no")):
        with pytest.raises(InputError, match=words):
            next(encode_layers(graph, formats(layers=layers), samples))
    mixed = {"embed": format_of("int4"), "head": format_of("int8")}
    with pytest.raises(InputError, match="share the matrix 'table' have one format"):
        next(encode_layers(graph, mixed, samples))
    with pytest.raises(InputError, match="need calibration samples"):
        next(encode_layers(graph, formats()))
    with pytest.raises(InputError, match="not by 'magic'"):
        EncodeOptions("magic")
    with pytest.raises(InputError, match="expected an array"):
        next(encode_layers(graph, formats(), [{"words": np.zeros(TOKENS, np.int64)}]))


def test_inputs_that_overflow_are_refused():
    graph = network()
    params = {**graph.params, "gamma1": np.full(WIDTH, 1e38, np.float32)}
    with pytest.raises(InputError, match="sample 0 makes value"):
        dict(encode_layers(graph.with_nodes(graph.nodes, params=params), formats(), texts(2)))
