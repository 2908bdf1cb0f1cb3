"""How `compile` makes the codes of weights: by which method, for which text, and from where it goes on."""

import bitsmith
import lm_checkpoints as lm
import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.cli import main
from bitsmith.compiler.errors import InputError
from bitsmith.compiler.formats import decode, encode, format_of
from bitsmith.compiler.pipeline.coding import Coding, text_runs
from bitsmith.compiler.plan import Plan
from bitsmith.passes.encode_layers import encode_layers
from bitsmith.passes.layer_coder import EncodeOptions
from tokenizers import Tokenizer, models, pre_tokenizers

CONTEXT, FORMAT = 24, "int3:16"
LAYER = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    place = tmp_path_factory.mktemp("llama")
    lm.random_model(lm.config_of("llama", bos_token_id=0)).save_pretrained(place)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(lm.VOCABULARY)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(place / "tokenizer.json"))
    return place


@pytest.fixture(scope="module")
def model(checkpoint):
    return bitsmith.load(checkpoint, context=CONTEXT)


@pytest.fixture(scope="module")
def text():
    return " ".join(map(str, np.random.default_rng(3).integers(0, lm.VOCABULARY, 600)))


def codes(model, *, given=None, calibration=None, method=None, kept=None, layers=(LAYER,)):
    plan = Plan(model.name, dict.fromkeys(layers, FORMAT))
    coding = Coding(model, given, calibration, method, kept)
    return coding.codes(model.graph(1, 1), plan, lambda stage, done, total: None)


def same(a, b):
    return all(np.array_equal(a.arrays[name], b.arrays[name]) for name in a.arrays)


def test_a_text_gives_compensated_codes(model, text):
    graph = model.graph_whole(CONTEXT)
    ids = [int(word) for word in text.split()]
    runs = [{"tokens": np.array(ids[i : i + CONTEXT])} for i in range(0, 600, CONTEXT)]
    ((_, expected),) = encode_layers(graph, {LAYER: format_of(FORMAT)}, runs, EncodeOptions("compensate"))
    found = codes(model, calibration=text)[LAYER]
    weight = model.weights[f"{LAYER}.weight"].array()
    assert same(found, expected.coded)
    assert not same(found, encode(weight, format_of(FORMAT)))


@pytest.mark.parametrize("method", [None, "search", "hqq", "round"])
def test_codes_without_a_text(model, method):
    weight = model.weights[f"{LAYER}.weight"].array()
    found = codes(model, method=method)[LAYER]
    rounded = encode(weight, format_of(FORMAT))
    assert same(found, rounded) == (method == "round")
    if method in (None, "search"):
        assert same(found, encode(weight, format_of(FORMAT), np.ones(weight.shape[1], np.float32)))
        assert np.square(weight - decode(found)).sum() < np.square(weight - decode(rounded)).sum()


def test_eight_bits_are_rounded_unless_a_method_is_asked_for(model, text):
    weight = model.weights[f"{LAYER}.weight"].array()
    plan = Plan(model.name, {LAYER: "int8:16"})
    made = [
        Coding(model, None, text, method, None).codes(model.graph(1, 1), plan, lambda *stage: None)[LAYER]
        for method in (None, "compensate")
    ]
    rounded = encode(weight, format_of("int8:16"))
    assert same(made[0], rounded) and not same(made[1], rounded)


def test_given_codes_are_not_made_again(model, text):
    weight = model.weights[f"{LAYER}.weight"].array()
    mine = encode(weight, format_of(FORMAT))
    assert codes(model, given={LAYER: mine}, calibration=text)[LAYER] is mine


def test_what_is_finished_is_kept(model, text, tmp_path, monkeypatch):
    first = codes(model, calibration=text, kept=tmp_path / "codes")
    monkeypatch.setattr("bitsmith.passes.encode_layers.LayerCoder", None)
    again = codes(model, calibration=text, kept=tmp_path / "codes")
    assert same(first[LAYER], again[LAYER])
    with pytest.raises(InputError, match="were coded from another model"):
        codes(model, calibration=text[:500], kept=tmp_path / "codes")


def test_the_first_tokens_of_a_text(model, text):
    runs = text_runs(model, text, 60)
    assert [run["tokens"].size for run in runs] == [CONTEXT] * 2
    assert runs[1]["tokens"].tolist() == [int(word) for word in text.split()[CONTEXT : 2 * CONTEXT]]
    with pytest.raises(InputError, match="has 3 tokens, too few: give at least 8"):
        text_runs(model, "1 2 3", 60)


def test_arrays_calibrate_codes_of_other_networks():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((24, 48)).astype(np.float32)
    b = GraphBuilder("net")
    x = b.input("x", (4, 48))
    graph = b.finish([b.add("linear", [x, b.param("w", weight)], name="layer")])
    samples = (rng.standard_normal((64, 4, 6)) @ rng.standard_normal((6, 48))).astype(np.float32)
    plan = Plan("net", {"layer": f"{FORMAT}@float32"})
    errors = {}
    for method in ("round", "search", None):
        with bitsmith.compile(graph, plan=plan, calibration=samples, method=method) as artifact:
            found = np.stack([artifact.run(sample)["layer"] for sample in samples])
            errors[method] = float(np.square(found - samples @ weight.T).sum())
    assert errors[None] < 0.7 * errors["search"] < 0.7 * errors["round"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "magic"}, "codes are made by round, search, hqq, compensate, not by 'magic'"),
        ({"method": "compensate"}, "need calibration samples"),
        ({"method": "hqq", "layers": ()}, "the plan has none"),
        ({"calibration": np.zeros((2, 3))}, "are coded for a text"),
    ],
)
def test_what_is_refused(model, options, says):
    with pytest.raises(InputError, match=says):
        codes(model, **options)


def test_a_text_for_a_network_with_arrays():
    b = GraphBuilder("net")
    graph = b.finish([b.add("silu", [b.input("x", (2,))])])
    with pytest.raises(InputError, match="a text calibrates language models"):
        bitsmith.compile(graph, calibration="some text")


def test_the_command_line(checkpoint, model, text, tmp_path, capsys):
    place, out = tmp_path / "text.txt", tmp_path / "out"
    place.write_text(text)
    words = ["compile", str(checkpoint), "-o", str(out), "--context", str(CONTEXT), "--uniform", FORMAT]
    with pytest.raises(SystemExit) as end:
        main([*words, "--calibration", str(place)])
    said = capsys.readouterr().err
    assert not end.value.code and "coding weights" in said and not out.with_name("out.codes").exists()
    plan = Plan.uniform(model.graph(1, 1), FORMAT)
    with (
        bitsmith.compile(model, plan=plan, calibration=text) as expected,
        bitsmith.open(out) as found,
        bitsmith.compile(model, plan=plan, method="round") as rounded,
    ):
        feed = {"tokens": np.array([7]), "position": np.array([0]), "rows": np.array([0])}
        logits = [artifact.run(**feed)["logits"] for artifact in (expected, found, rounded)]
    assert np.array_equal(logits[0], logits[1]) and not np.array_equal(logits[0], logits[2])


def test_a_text_that_cannot_be_read(checkpoint, tmp_path, capsys):
    words = ["compile", str(checkpoint), "-o", str(tmp_path / "out"), "--uniform", FORMAT]
    with pytest.raises(SystemExit) as end:
        main([*words, "-c", str(tmp_path / "gone.txt")])
    assert end.value.code == InputError.exit_code
    assert "cannot read the text" in capsys.readouterr().err
