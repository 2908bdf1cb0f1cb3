"""Comparing tables of losses: ranks, plans, and going on after a stop."""

import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from bitsmith.compiler.errors import InputError
from bitsmith.compiler.formats import format_of
from bitsmith.search.bits.tables import KINDS
from lm_checkpoints import config_of, random_model
from tiny_language import LETTERS, tokenizer_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
loss_tables = import_module("loss_tables")
FORMATS = ["int2:32", "bitmod3:32", "int8:32"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    place = tmp_path_factory.mktemp("checkpoint")
    random_model(config_of("llama", tie_word_embeddings=True, num_hidden_layers=1)).save_pretrained(place)
    (place / "tokenizer.json").write_bytes(tokenizer_json())
    (place / "text.txt").write_text("".join(np.random.default_rng(1).choice(list(LETTERS), 700)))
    return place


def words(checkpoint, out, bits="4.5"):
    source = ["--model", str(checkpoint), "--text", str(checkpoint / "text.txt"), "--out", str(out)]
    return [*source, "--bits", bits, "--format", *FORMATS]


def test_every_table_gives_a_plan_within_the_bits(checkpoint, tmp_path, capsys):
    assert loss_tables.main(words(checkpoint, tmp_path)) == 0
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row["kind"] for row in rows] == list(KINDS)
    assert all(row["bits"] <= 4.5 and row["kl"] > 0 and -1 <= row["rho"] <= 1 for row in rows)
    assert rows[-1]["rho"] == pytest.approx(1)
    said = capsys.readouterr()
    assert f"| measured | 1.00 | {rows[-1]['bits']:.3f} | {rows[-1]['kl']:.4f} |" in said.out
    assert loss_tables.main(words(checkpoint, tmp_path)) == 0
    assert "losses of layers" not in capsys.readouterr().err, "tables are kept"


def test_ranks_are_compared_in_one_format():
    one, other = format_of("int2:32"), format_of("int8:32")
    table = {unit: {one: x, other: 1.0} for unit, x in zip("abcd", (1.0, 2.0, 3.0, 4.0), strict=True)}
    turned = {unit: {one: -(x[one] ** 3), other: 0.0} for unit, x in table.items()}
    swapped = {"a": table["b"], "b": table["a"], "c": table["c"], "d": table["d"]}
    assert loss_tables.agreement(table, turned, one) == pytest.approx(-1)
    assert loss_tables.agreement(table, swapped, one) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)


def test_bits_that_no_format_keeps(checkpoint, tmp_path, capsys):
    assert loss_tables.main(words(checkpoint, tmp_path, "1.2")) == InputError.exit_code
    assert "take at least" in capsys.readouterr().err
