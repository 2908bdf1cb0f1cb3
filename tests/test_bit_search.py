"""Weight formats for the layers of language models: allocation, tables, trials, and a search to its end."""

import itertools
import json

import numpy as np
import pytest
import torch
from bitsmith.compiler import pipeline
from bitsmith.compiler.cli import main
from bitsmith.compiler.errors import ConstraintError, InputError
from bitsmith.compiler.formats import decode, encode, format_of
from bitsmith.compiler.pipeline.bit_searching import search_bits, text_windows
from bitsmith.compiler.pipeline.decode_times import DecodeTimes, decode_times
from bitsmith.compiler.pipeline.speeds import Speed
from bitsmith.compiler.plan import Plan
from bitsmith.compiler.reference import run_reference
from bitsmith.passes.code_layers import code_layers
from bitsmith.passes.encode_layers import encode_layers
from bitsmith.passes.layer_coder import EncodeOptions
from bitsmith.search.allocation import Variant, choose, undominated
from bitsmith.search.bits.bounds import parse_bound
from bitsmith.search.bits.codes import PlanCodes
from bitsmith.search.bits.judge import Judge
from bitsmith.search.bits.tables import (
    losses,
    measured,
    sampled,
)
from bitsmith.search.bits.trials import (
    OWN_REACH,
    REACH,
    Explorer,
    Trial,
    pareto,
)
from bitsmith.search.bits.units import units_of
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_checkpoints import VOCABULARY, config_of, logits, random_model
from tiny_language import LETTERS, tokenizer_json

FORMATS = tuple(map(format_of, ("int2:32", "bitmod3:32", "int8:32")))
NAMES = ("int2:32", "bitmod3:32", "int8:32")
TOKENS = 24

variants = st.lists(
    st.tuples(st.floats(0, 10).map(lambda v: round(v, 3)), st.integers(1, 900)), min_size=1, max_size=4
)


def menu_of(tables):
    return {str(i): [Variant(str(j), *v) for j, v in enumerate(t)] for i, t in enumerate(tables)}


@settings(max_examples=120, deadline=None)
@given(st.lists(variants, min_size=1, max_size=5), st.floats(0, 1))
def test_allocation_is_as_good_as_trying_everything(tables, share):
    menu = menu_of(tables)
    everything = [
        (sum(v.loss for v in pick), sum(v.bytes for v in pick)) for pick in itertools.product(*menu.values())
    ]
    for which in (0, 1):  # bounded in loss; in bytes
        bounds = [each[which] for each in everything]
        bound = min(bounds) + share * (max(bounds) - min(bounds))
        bound = round(bound) if which else bound + 1e-6
        best = min((each[1 - which] for each in everything if each[which] <= bound), default=None)
        found = choose(menu, **{("max_loss", "max_bytes")[which]: bound})
        if best is None:
            assert found is None
            continue
        sums = sum(v.loss for v in found.values()), sum(v.bytes for v in found.values())
        assert list(found) and set(found) == set(menu)
        assert sums[which] <= bound * (1 + 1e-5) + 1e-5
        assert sums[1 - which] <= best * (1 + 1e-5) + 1e-5


def test_an_allocation_without_room_is_none():
    assert choose(menu_of([[(1.0, 50)], [(0.0, 60)]]), max_bytes=109) is None


def test_dominated_variants_go():
    kept = undominated([Variant("a", 1, 10), Variant("b", 2, 12), Variant("c", 0.5, 20)])
    assert [v.name for v in kept] == ["a", "c"]


def test_the_solver_does_not_print_where_json_goes(capfd):
    """Allocations that HiGHS repairs, which it says on stdout."""
    bits = np.array([2.17, 3.07, 3.1, 3.21, 3.37, 4.21, 5.25, 6.25, 8.25])
    for seed in (2, 7):
        rng = np.random.default_rng(seed)
        weights, counts = rng.choice([110592, 331776, 884736], 211), np.exp(rng.normal(size=211))
        losses = (
            (counts * weights / weights.mean())[:, None]
            * 4.0**-bits
            * np.exp(rng.normal(size=(211, 9)) * 0.05)
        )
        menu = {
            str(i): [Variant(str(b), float(v), int(w * b / 8)) for b, v in zip(bits, row, strict=True)]
            for i, (w, row) in enumerate(zip(weights, losses, strict=True))
        }
        assert choose(menu, max_bytes=int(3.3 * weights.sum() / 8))
    print("of Python's own")
    assert capfd.readouterr().out == "of Python's own\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tied model as transformers writes it, with a tokenizer of letters."""
    place = tmp_path_factory.mktemp("checkpoint")
    model = random_model(config_of("llama", tie_word_embeddings=True, num_hidden_layers=2))
    model.save_pretrained(place)
    (place / "tokenizer.json").write_bytes(tokenizer_json())
    return place, model


@pytest.fixture(scope="module")
def graph(checkpoint):
    return pipeline.load(checkpoint[0], context=64).graph_whole(TOKENS)


def texts(count=3, seed=3):
    rng = np.random.default_rng(seed)
    return [{"tokens": rng.integers(0, VOCABULARY, TOKENS)} for _ in range(count)]


@pytest.fixture(scope="module")
def judge(graph):
    return Judge(graph, texts())


def words(count=900, seed=5):
    rng = np.random.default_rng(seed)
    return "".join(rng.choice(list(LETTERS), count))


def test_units_are_layers_that_share_a_matrix(graph):
    found = {
        unit.name.removeprefix("model."): [x.split(".")[-1] for x in unit.layers] for unit in units_of(graph)
    }
    assert found["embed_tokens"] == ["embed_tokens", "lm_head"]
    assert found["layers.0.self_attn.v_proj"] == ["v_proj"]
    assert found["layers.1.mlp.gate_proj"] == ["gate_proj"]
    assert len(found) == 1 + 2 * 7


def test_bytes_of_a_unit_are_those_of_its_codes(graph):
    for unit in units_of(graph):
        for format in FORMATS:
            assert unit.bytes(format) == encode(graph.params[unit.matrix], format).nbytes


def test_kl_is_that_of_torch(checkpoint, graph, judge):
    _, model = checkpoint
    unit = units_of(graph)[1]
    changed = {unit.matrix: graph.params[unit.matrix] * np.float32(0.9)}
    runs = texts()
    before = [torch.from_numpy(logits(model, run["tokens"])).log_softmax(-1) for run in runs]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        model.load_state_dict(
            {k: torch.from_numpy(changed[k]) if k in changed else v for k, v in state.items()}
        )
        after = [torch.from_numpy(logits(model, run["tokens"])).log_softmax(-1) for run in runs]
    finally:
        model.load_state_dict(state)
    wanted = np.mean([(a.exp() * (a - b)).sum(-1).mean().item() for a, b in zip(before, after, strict=True)])
    assert judge.kl(changed) == pytest.approx(wanted, rel=1e-3)
    assert judge.kl({}) == pytest.approx(0, abs=1e-9)


def test_kl_of_codes_is_that_of_the_coded_graph(graph, judge):
    """Which also reads int8, with a scale for each group."""
    format, wanted = format_of("int6:32"), []
    units = units_of(graph)[1:]
    codes = {unit.name: encode(graph.params[unit.matrix], format) for unit in units}
    coded = code_layers(graph, codes)
    for run in texts():
        both = (next(iter(run_reference(g, run).values())) for g in (graph, coded))
        ours, theirs = (torch.from_numpy(each).log_softmax(-1) for each in both)
        wanted.append((ours.exp() * (ours - theirs)).sum(-1).mean().item())
    changed = {unit.matrix: decode(codes[unit.name]) for unit in units}
    found = judge.kl(changed, dict.fromkeys(codes, format))
    assert found == pytest.approx(np.mean(wanted), rel=1e-3)
    assert found > 1.02 * judge.kl(changed), "what is read in int8 costs something, too"


def test_curvature_foretells_the_kl_of_small_noise(graph, judge):
    """Noise on one layer's weights moves its outputs by a known variance."""
    layer = "model.layers.1.mlp.down_proj"
    slopes = judge.curvature([layer], draws=200)[layer]
    weight = graph.params[f"{layer}.weight"]
    seen = []
    for seed in range(20):
        noise = np.random.default_rng(seed).standard_normal(weight.shape).astype(np.float32) * 0.01
        seen.append(judge.kl({f"{layer}.weight": weight + noise}))
    spread = 0.01**2 * np.square(_inputs_of(graph, layer)).sum(1).mean()
    assert 0.5 * slopes.sum() * spread == pytest.approx(np.mean(seen), rel=0.25)


def _inputs_of(graph, layer):
    rows, value = [], graph.node(layer).inputs[0]
    for run in texts():
        run_reference(graph, run, lambda name, array: rows.append(array) if name == value else None)
    return np.concatenate(rows)


def table_of(graph, judge, kind):
    units = units_of(graph)
    layers = [layer for unit in units for layer in unit.layers]
    slopes = judge.curvature(layers, draws=8) if kind == "curvature" else None
    return losses(graph, texts(), units, FORMATS, slopes, kind)


@pytest.mark.parametrize("kind", ["output", "shiftadd", "curvature"])
def test_more_bits_lose_less_in_every_table(graph, judge, kind):
    table = table_of(graph, judge, kind)
    for unit in units_of(graph):
        row = [table[unit.name][format] for format in FORMATS]
        assert row[0] > row[1] > row[2] > 0


def test_sampled_rows_stand_for_all():
    rng = np.random.default_rng(0)
    share, error = rng.exponential(size=5000), rng.exponential(size=5000)
    rows, counts = sampled(share, 1000)
    assert len(rows) <= 1000 and counts.sum() == pytest.approx(share.sum())
    assert counts @ error[rows] == pytest.approx(share @ error, rel=0.1)
    rows, counts = sampled(share[:5], 1000)
    assert rows.tolist() == [0, 1, 2, 3, 4] and (counts == share[:5]).all()


def explorer(graph, judge, folder, **more):
    codes = PlanCodes(graph, texts(), EncodeOptions(), folder)
    return Explorer(judge, units_of(graph), table_of(graph, judge, "curvature"), codes.decoded, **more)


def test_a_measured_table_is_of_measured_kl(graph, judge):
    units = units_of(graph)[1:3]
    output = table_of(graph, judge, "output")
    decoded = {u.matrix: decode(encode(graph.params[u.matrix], FORMATS[1])) for u in units}
    table = measured(judge, units, output, FORMATS[1], decoded)
    for unit in units:
        alone = {unit.matrix: decoded[unit.matrix]}
        assert table[unit.name][FORMATS[1]] == pytest.approx(
            judge.kl(alone, dict.fromkeys(unit.layers, FORMATS[1]))
        )
        ratio = table[unit.name][FORMATS[0]] / table[unit.name][FORMATS[1]]
        assert ratio == pytest.approx(output[unit.name][FORMATS[0]] / output[unit.name][FORMATS[1]])


def test_shares_are_slopes_of_kl(graph, judge):
    """Half of what KL changes by when one matrix's error grows, by finite differences without int8 inputs,
    which are steps; all together are about KL itself. The table that is the head too counts in both."""
    units = units_of(graph)
    formats = {layer: FORMATS[2] for unit in units for layer in unit.layers}
    rng = np.random.default_rng(2)
    errors = {u.matrix: rng.standard_normal(u.shape).astype(np.float32) * 0.004 for u in units}

    def moved(matrix="", by=0.0):
        return {m: graph.params[m] + e * np.float32(1 + by * (m == matrix)) for m, e in errors.items()}

    kl, shares = judge.shares(moved(), formats)
    assert kl == pytest.approx(judge.kl(moved(), formats), rel=1e-5)
    assert sum(shares.values()) == pytest.approx(kl, rel=0.15)
    for unit in units:
        ends = [judge.kl(moved(unit.matrix, by), {}) for by in (-0.05, 0.05)]
        found = sum(shares[layer] for layer in unit.layers)
        assert found == pytest.approx((ends[1] - ends[0]) / 0.2, rel=0.1, abs=0.02 * kl)


def test_what_a_unit_adds_scales_its_losses(graph, judge, tmp_path):
    """A head adds twice what the table says; of the two q projections one adds a quarter more and one makes
    KL less; v projections add nothing; all others just that."""
    table = table_of(graph, judge, "curvature")
    units = [unit.name for unit in units_of(graph)]
    choices = dict.fromkeys(units, FORMATS[1])
    shares = {unit: table[unit][FORMATS[1]] for unit in units}
    q, v = ([u for u in units if u.endswith(name)] for name in ("q_proj", "v_proj"))
    for unit, factor in {units[0]: 2, q[0]: 1.25, q[1]: -1, v[0]: 0, v[1]: 0}.items():
        shares[unit] *= factor
    known = [Trial("a", choices, 0, 0.0, 1.0, shares)]
    scales = explorer(graph, judge, tmp_path, known=known).scales()
    said = {unit: table[unit][FORMATS[1]] for unit in units}
    usual = sum(shares.values()) / sum(said.values())
    of_q = max(sum(shares[u] for u in q) / sum(said[u] for u in q), usual / REACH)
    assert scales[units[0]] == pytest.approx(2) and scales[units[-1]] == pytest.approx(1)
    assert scales[q[0]] == pytest.approx(min(1.25, of_q * OWN_REACH))
    assert scales[q[1]] == pytest.approx(of_q / OWN_REACH)
    assert scales[v[0]] == pytest.approx(usual / REACH / OWN_REACH)


def test_trials_keep_the_bound_and_find_less_than_uniform(graph, judge, tmp_path):
    found = explorer(graph, judge, tmp_path)
    uniform = found.measure({unit.name: FORMATS[1] for unit in found.units})
    best = found.within(uniform.bytes, 4)
    assert len({tuple(t.choices.items()) for t in found.trials}) == len(found.trials) >= 2
    assert all(t.bytes <= uniform.bytes for t in found.trials)
    assert best.kl == min(t.kl for t in found.trials) < uniform.kl
    assert found.within(100, 1) is None


def test_the_smallest_plan_below_a_kl(graph, judge, tmp_path):
    found = explorer(graph, judge, tmp_path)
    bits8 = found.measure({unit.name: FORMATS[2] for unit in found.units})
    bits3 = found.measure({unit.name: FORMATS[1] for unit in found.units})
    best = found.below(2 * bits3.kl, 4)
    assert best.kl <= 2 * bits3.kl and best.bytes <= bits3.bytes
    assert explorer(graph, judge, tmp_path).below(bits8.kl / 1e3, 2) is None


def test_a_front_has_no_plan_that_another_beats():
    made = [
        Trial(str(i), {}, size, 0.0, kl, {})
        for i, (size, kl) in enumerate([(9, 1.0), (5, 2.0), (7, 3.0), (9, 0.5)])
    ]
    assert [t.name for t in pareto(made)] == ["1", "3"]


def searched(checkpoint, out, constraint="bits<=4.5", **more):
    options = {"formats": NAMES, "trials": 3, "calibration": words(), "encode": EncodeOptions("search")}
    model = pipeline.load(checkpoint[0], context=64)
    return search_bits(model, out, constraints=[constraint], **options | more)


@pytest.fixture(scope="module")
def result(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("searched")
    return searched(checkpoint, out), out


def test_a_search_ends_with_an_artifact_a_plan_and_a_table(checkpoint, graph, result):
    found, out = result
    assert found.met and found.best.bits <= 4.5 and 1 < len(found.points) <= 3
    plan = Plan.load(out / "plan.json")
    assert plan == found.plan
    chosen = {str(format) for format, _ in plan.coded.values()}
    assert len(chosen) > 1, "tiny random networks have layers that count more and less"
    kept = json.loads((out / "search.json").read_text())
    assert kept["best"]["kl"] == found.best.kl and kept["plan"] == plan.to_json()
    with pipeline.open(out / "best") as opened:
        assert opened.size_bytes == found.size_bytes
        assert opened.plan == plan.to_json()
    assert not (out / "codes").exists()


def test_the_artifact_computes_what_its_codes_say(checkpoint, result):
    """KL of the compiled mix, with int8 inputs, against that of its codes by the reference executor; both on
    the text of the search, the latter on a part of it.
    """
    found, out = result
    compiled = pipeline.evaluate(out / "best", words(), checkpoint[0], window=64)
    assert compiled.kl == pytest.approx(found.best.kl, rel=0.5)
    assert compiled.kl < 0.5 * np.log(VOCABULARY)


def test_a_search_goes_on(checkpoint, result):
    found, out = result
    again = searched(checkpoint, out, trials=4)
    count = len(found.points)
    assert again.went_on == count and again.points[:count] == found.points
    with pytest.raises(InputError, match="another model, text"):
        searched(checkpoint, out, seed=9)


def test_room_that_no_format_fits_in(checkpoint, tmp_path):
    with pytest.raises(InputError, match="take at least"):
        searched(checkpoint, tmp_path, constraint="bits<=1.5")
    assert not any(tmp_path.iterdir()), "said before anything is measured"
    with pytest.raises(InputError, match="beside [0-9]+ of all else"):
        searched(checkpoint, tmp_path, constraint="size<=0.1x")


class Slow:
    """Speeds of an artifact that takes `slower` times as long as its layers together."""

    def __init__(self, times, slower, model):
        self.times, self.slower, self.model = times, slower, model

    def __call__(self, artifacts, threads):
        ((name, artifact),) = artifacts.items()
        coded = Plan.from_json(dict(artifact.plan)).coded
        found = self.times.total({unit: coded[unit][0] for unit in self.times.units})
        return (Speed(name, threads[0], 1, 1, 1.0, 1e9 / (found * self.slower)),)


@pytest.mark.parametrize(("share", "slower", "met"), [(0.6, 1.2, True), (0.01, 1.0, False)])
def test_a_bound_on_speed(checkpoint, tmp_path, monkeypatch, share, slower, met):
    """A unit takes as many nanoseconds as its codes bytes; the limit lies a share of the way up."""
    model = pipeline.load(checkpoint[0], context=64)
    units = units_of(model.graph_whole(64))
    times = DecodeTimes({u.name: {format_of(n): u.bytes(format_of(n)) for n in NAMES} for u in units}, 500)
    ends = [times.total(dict.fromkeys(times.units, format_of(name))) for name in (NAMES[0], NAMES[-1])]
    limit = 1e9 / (min(ends) + share * (max(ends) - min(ends))) if met else 2e9 / min(ends)
    monkeypatch.setattr("bitsmith.compiler.pipeline.bit_searching.decode_times", lambda *rest: times)
    monkeypatch.setattr("bitsmith.compiler.pipeline.bit_searching.speeds", Slow(times, slower, model))
    found = searched(checkpoint, tmp_path, constraint=f"decode>={limit:.6f}tok/s", trials=2)
    assert found.met == met and (found.decode >= limit) == met
    chosen = {unit: found.plan.coded[unit][0] for unit in times.units}
    assert found.decode == pytest.approx(1e9 / (times.total(chosen) * slower))
    if not met:
        assert times.total(chosen) == min(ends)


def test_times_are_measured_once_for_a_machine(checkpoint, tmp_path, monkeypatch):
    model = pipeline.load(checkpoint[0], context=64)
    units = units_of(model.graph_whole(64))
    formats = [format_of(name) for name in NAMES[:2]]
    found = decode_times(model, units, formats, tmp_path, lambda *stage: None)
    assert found.rest > 0 and all(min(times.values()) > 0 for times in found.units.values())
    assert set(found.units) == {unit.name for unit in units}
    monkeypatch.setattr("bitsmith.compiler.pipeline.decode_times.compile", None)
    assert decode_times(model, units, formats, tmp_path, lambda *stage: None) == found


def test_damaged_memories_are_refused(checkpoint, result, tmp_path):
    _, out = result
    for name in ("trials.json", "table.npz"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    (tmp_path / "table.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="table.npz is damaged"):
        searched(checkpoint, tmp_path)
    (tmp_path / "trials.json").write_text("{")
    with pytest.raises(InputError, match="trials.json cannot be read"):
        searched(checkpoint, tmp_path)


def test_windows_for_tables_and_for_judging_are_apart(checkpoint):
    model = pipeline.load(checkpoint[0], context=64)
    text = words(900)
    made, judged = text_windows(model, text, 4096)
    assert len(made) == 11 and len(judged) == 3
    everything = np.concatenate([run["tokens"] for run in made + judged])
    assert len(everything) == 14 * 64
    with pytest.raises(InputError, match="too few"):
        text_windows(model, "abc", 4096)


@pytest.mark.parametrize(
    ("texts", "kind", "limit"),
    [
        (["size<=60MB"], "size", 60e6),
        (["size<=0.3x"], "size", 0.3),
        (["bits <= 3.5"], "bits", 3.5),
        (["kl<=0.02"], "kl", 0.02),
        (["decode >= 200 tok/s"], "decode", 200),
    ],
)
def test_bounds(texts, kind, limit):
    found = parse_bound(texts)
    assert (found.kind, found.limit) == (kind, pytest.approx(limit))


@pytest.mark.parametrize(
    "texts",
    [
        [],
        ["kl<=1", "bits<=3"],
        ["latency<=3ms"],
        ["bits<=99"],
        ["size<=3"],
        ["nonsense"],
        ["decode>=20"],
        ["decode<=9tok/s"],
    ],
)
def test_bounds_that_are_none(texts):
    with pytest.raises(InputError):
        parse_bound(texts)


def test_plans_are_coded_as_compile_codes(graph, tmp_path, monkeypatch):
    """And not again: neither a plan, nor, in another one, a matrix that embedding and head share."""
    units, table = units_of(graph), units_of(graph)[0]
    codes = PlanCodes(graph, texts(), EncodeOptions(), tmp_path)
    plans = [{layer: FORMATS[n] for u in units for layer in u.layers} for n in (1, 0)]
    plans[1] |= dict.fromkeys(table.layers, FORMATS[1])
    first = codes.of(plans[0])
    for layer, each in encode_layers(graph, plans[0], texts()):
        assert all(np.array_equal(a, first[layer].arrays[n]) for n, a in each.coded.arrays.items())
    monkeypatch.setattr("bitsmith.passes.encode_layers.float_inputs", None)
    second = codes.of(plans[1])
    assert second[table.layers[0]] is second[table.layers[1]] is first[table.name]
    monkeypatch.setattr("bitsmith.passes.layer_coder.LayerCoder.code", None)
    again = codes.of(plans[1])
    assert all(np.array_equal(again[x].arrays["codes"], second[x].arrays["codes"]) for x in second)


def test_the_command_line_ends_with_an_artifact(checkpoint, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(words(), encoding="utf-8")
    words_of = ["search", str(checkpoint[0]), "-o", str(tmp_path / "found"), "-c", str(text), "--trials", "2"]
    more = ["--format", "bitmod3:32", "--format", "int8:32", "--losses", "output", "--quiet"]
    with pytest.raises(SystemExit) as end:
        main([*words_of, *more, "--constraint", "kl<=2", "--json"])
    assert end.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["met"] and said["best"]["kl"] <= 2 and said["table"] == "output"
    assert Plan.load(tmp_path / "found" / "plan.json").to_json() == said["plan"]
    with pytest.raises(SystemExit) as end:
        main([*words_of, *more, "--constraint", "kl<=0.000001"])
    assert end.value.code == ConstraintError.exit_code
    captured = capsys.readouterr()
    assert "no plan met kl<=1e-06" in captured.err.replace("0.000001", "1e-06") and "(chosen)" in captured.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--constraint", "latency<=3ms"], "not for language models"),
        ([], "needs one bound"),
        (["--constraint", "kl<=1", "--labels", "labels.npy"], "--labels is for networks"),
        (["--constraint", "kl<=1", "--format", "int99"], "int99"),
        (["--constraint", "kl<=1", "--losses", "guess"], "guess"),
        (["--constraint", "kl<=1", "--trials", "0"], "at least one plan"),
    ],
)
def test_what_the_command_line_refuses(checkpoint, tmp_path, capsys, options, message):
    text = tmp_path / "text.txt"
    text.write_text(words(), encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        main(["search", str(checkpoint[0]), "-o", str(tmp_path / "out"), "-c", str(text), *options])
    assert end.value.code not in (0, None)
    assert message in capsys.readouterr().err
