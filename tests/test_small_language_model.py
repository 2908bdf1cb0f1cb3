"""The parts of examples/small_language_model.py that need no package: making forms, and the table."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bitsmith.compiler import pipeline
from bitsmith.compiler.plan import Plan
from bitsmith.passes.layer_coder import EncodeOptions
from bitsmith.search.bits.units import units_of
from lm_checkpoints import config_of, random_model
from tiny_language import tokenizer_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import small_language_model as example  # noqa: E402


@pytest.fixture(scope="module")
def maker(tmp_path_factory):
    place = tmp_path_factory.mktemp("checkpoint")
    random_model(config_of("llama", num_hidden_layers=1)).save_pretrained(place)
    (place / "tokenizer.json").write_bytes(tokenizer_json())
    model = pipeline.load(place, context=64)
    letters = "".join(c for c in example._text(example.CALIBRATION).lower() if c.isalpha() or c == " ")
    return example.Maker(model, letters[:900], place / "out", EncodeOptions("round"), trials=1)


def test_a_form_is_made_once(maker):
    place = maker.made("int4:64")
    made = (place / "manifest.json").stat().st_mtime_ns
    with pipeline.open(place) as opened:
        plan = Plan.from_json(dict(opened.plan))
        assert {str(format) for format, _ in plan.coded.values()} == {"int4:64"}
        bits = example.mean_bits(maker.graph, opened.plan)
    assert maker.made("int4:64") == place and (place / "manifest.json").stat().st_mtime_ns == made
    weights = sum(unit.weights for unit in units_of(maker.graph))
    stored = sum(unit.bytes(plan.coded[unit.name][0]) for unit in units_of(maker.graph))
    assert bits == pytest.approx(8 * stored / weights) and 4.25 <= bits < 4.6


def test_forms_are_measured_beside_float(maker):
    places = {form: maker.made(form) for form in (example.FLOAT, "int4:64")}
    float32, coded = example.measured(places, maker.graph, maker.text[100:200], 60, 1)
    assert (float32.form, float32.bits, float32.kl) == (example.FLOAT, 32, 0) and coded.form == "int4:64"
    judged = pipeline.evaluate(places["int4:64"], maker.text[100:200], places[example.FLOAT], tokens=60)
    assert coded.kl == judged.kl > 0 and coded.perplexity == judged.perplexity
    assert float32.perplexity == judged.against_perplexity
    assert min(coded.prefill, coded.decode) > 0 and coded.size_bytes < float32.size_bytes


def test_what_a_plan_leaves_alone_has_32_bits(maker):
    assert example.mean_bits(maker.graph, Plan(maker.graph.name, {}).to_json()) == 32


def test_the_table_has_a_line_for_each_form():
    rows = [
        example.Row(example.FLOAT, 32, 540_000_000, 512.4, 40.2, 23.01, 0.0, "and then"),
        example.Row("int4:64", 4.25, 75_600_000, 600.0, 99.6, 25.5, 0.1234, "a | b"),
    ]
    lines = example.markdown(rows).splitlines()
    assert lines[2] == "| float32 | 32.00 | 540.0 | 512 | 40 | 23.01 | 0 | and then |"
    assert lines[3] == "| int4:64 | 4.25 | 75.6 | 600 | 100 | 25.50 | 0.1234 | a \\| b |"
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_texts_for_calibration_and_judging_are_apart():
    first, last = example._text(example.CALIBRATION), example._text(example.EVALUATION)
    assert len(first) > 20_000 and len(last) > 20_000
    lines = {line.strip() for line in first.splitlines() if len(line) > 40}
    assert not lines & {line.strip() for line in last.splitlines()}
