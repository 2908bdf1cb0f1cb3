"""The benchmark beside llama.cpp: workers, fair steps, distances, the float file, the table."""

import io
import json
import sys
from importlib import import_module
from pathlib import Path

import gguf
import lm_checkpoints as lm
import numpy as np
import pytest
import torch
from bitsmith.compiler.errors import InputError, ModelError
from tiny_language import CAPACITY, VOCABULARY, write_language

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
worker, turns, files, table, driver, peer_turns, protocol = map(
    import_module,
    (
        *("llm_worker", "llm_turns", "llm_files", "llm_table", "language_models"),
        *("peer_turns", "peer_protocol"),
    ),
)
OURS = {"engine": "bitsmith", "threads": 1, "prompt": 8, "context": CAPACITY}


class Scripted:
    """An engine that notes what it is asked."""

    vocabulary, facts = 7, {"version": "1"}

    def __init__(self):
        self.memory, self.steps = 0, []

    def clear(self):
        self.memory = 0

    def read(self, tokens):
        self.steps.append((self.memory, len(tokens)))
        self.memory += len(tokens)
        return np.zeros(7, np.float32)

    def score(self, tokens):
        return np.eye(7, dtype=np.float32)[tokens]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return write_language(tmp_path_factory.mktemp("tiny") / "a", cache="float32")


def test_steps_stand_behind_the_prompt():
    engine = Scripted()
    seconds = worker.Timer(engine, prompt=4, context=7).decode(5)
    assert len(seconds) == 5 and min(seconds) > 0
    assert engine.steps == [(0, 4), (4, 1), (5, 1), (6, 1), (0, 4), (4, 1), (5, 1)]


def test_a_prompt_is_read_into_an_empty_memory():
    engine = Scripted()
    timer = worker.Timer(engine, prompt=4, context=7)
    assert len(timer.prefill(2)) == 2 and timer.decode(1)
    assert engine.steps == [(0, 4), (0, 4), (4, 1)]


def test_requests_are_answered_until_quit(tmp_path):
    np.save(tmp_path / "t.npy", np.array([3, 1]))
    asked = [f"logits {tmp_path / 't.npy'} {tmp_path / 'l.npy'}\n", "decode 2\n", "quit\n", "decode 9\n"]
    said = io.StringIO()
    protocol.serve(worker.verbs(worker.Timer(Scripted(), 4, 7)), asked, said)
    count, seconds = map(json.loads, said.getvalue().splitlines())
    assert count == 2 and len(seconds) == 2
    assert np.array_equal(np.load(tmp_path / "l.npy").argmax(1), [3, 1])


def test_an_unknown_request_is_refused():
    with pytest.raises(ValueError, match="unknown request 'sing 3'"):
        protocol.serve(worker.verbs(worker.Timer(Scripted(), 4, 7)), ["sing 3"], io.StringIO())


def test_our_engine_scores_as_it_reads(artifact):
    engine = worker.Bitsmith(OURS | {"model": str(artifact)})
    assert engine.vocabulary == VOCABULARY
    tokens = [5, 1, 9, 0, 7, 2, 2, 11, 3, 4, 6]
    scored = engine.score(tokens)
    engine.clear()
    engine.read(tokens[:8])
    np.testing.assert_allclose(engine.read(tokens[8:9]), scored[8], rtol=0, atol=1e-4)
    assert scored.shape == (11, VOCABULARY)


def test_a_worker_process_is_judged_and_timed(artifact, tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "PROMPT", 8)
    monkeypatch.setattr(turns, "CONTEXT", CAPACITY)
    monkeypatch.setattr(turns, "WINDOW", 10)
    import os
    from contextlib import ExitStack

    models = [turns.Model("bitsmith", name, artifact, 10) for name in ("a", "b")]
    missing = turns.Model("bitsmith", "gone", tmp_path / "gone", 1)
    python = {"bitsmith": Path(sys.executable)}
    with ExitStack() as stack:
        rest = (tmp_path, stack, dict(os.environ), lambda text: None)
        qualities = turns.judged(models, artifact, python, "some words, and some more.", 24, *rest)
        speeds = turns.timed([*models, missing], python, [1], 2, *rest)
    assert qualities["bitsmith a"] == turns.Quality(24, pytest.approx(0, abs=1e-6), 1.0)
    assert set(speeds.rounds) == {(m.name, 1, verb) for m in models for verb in turns.VERBS}
    assert all(len(rounds) == 2 and min(map(min, rounds)) > 0 for rounds in speeds.rounds.values())
    assert set(speeds.failed) == {("bitsmith gone", 1, verb) for verb in turns.VERBS}
    rows = table.to_json(models, qualities, speeds)
    assert all(each["ratio"]["median"] == 1 for each in rows[0]["speeds"]) and len(rows[1]["speeds"]) == 2


def test_distance_is_that_of_torch():
    rng = np.random.default_rng(0)
    wanted, found = rng.standard_normal((2, 6, 40)).astype(np.float32)
    found[0] = wanted[0]
    shares = [torch.from_numpy(each).double().log_softmax(-1) for each in (found, wanted)]
    kl = torch.nn.functional.kl_div(*shares, reduction="sum", log_target=True)
    same = (wanted.argmax(1) == found.argmax(1)).sum()
    np.testing.assert_allclose(turns.distance(wanted, found), [float(kl), same], rtol=1e-9)


def test_the_float_file_is_the_decoded_one(tmp_path):
    model = lm.random_model(lm.config_of("llama", tie_word_embeddings=True))
    source = lm.write_gguf(tmp_path / "small.gguf", model, "Q4_0")
    files.write_float(source, tmp_path / "f.gguf")
    before, after = (gguf.GGUFReader(path) for path in (source, tmp_path / "f.gguf"))
    assert [t.name for t in before.tensors] == [t.name for t in after.tensors]
    for one, other in zip(before.tensors, after.tensors, strict=True):
        assert other.tensor_type == gguf.GGMLQuantizationType.F32
        assert np.array_equal(gguf.quants.dequantize(one.data, one.tensor_type), other.data)
    kept = [name for name in before.fields if not name.startswith(("GGUF.", "general."))]
    assert kept and all(before.fields[n].contents() == after.fields[n].contents() for n in kept)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"no such thing")
    with pytest.raises(ModelError, match="is no GGUF file"):
        files.write_float(tmp_path / "x.gguf", tmp_path / "f.gguf")


def test_quantising_says_why_it_fails(tmp_path):
    with pytest.raises(peer_turns.PeerError, match="Q4_0 cannot be made"):
        files.quantised(tmp_path / "a", "Q4_0", tmp_path / "b", Path(sys.executable))
    with pytest.raises(InputError, match="llama.cpp's formats are"):
        files.quantised(tmp_path / "a", "Q9", tmp_path / "b", Path(sys.executable))
    assert not list(tmp_path.iterdir())


def test_the_table_has_ratios_by_rounds():
    models = [turns.Model("llama_cpp", "Q4_0", Path(), 90_000_000), turns.Model("bitsmith", "f", Path(), 7)]
    key = [(model.name, 2, "prefill") for model in models]
    speeds = turns.Speeds(
        {key[0]: [[1.28], [2.56]], key[1]: [[0.32], [0.64]]}, {(models[1].name, 2, "decode"): "no room"}
    )
    qualities = {model.name: turns.Quality(5, 0.25, 0.8) for model in models}
    rows = table.to_json(models, qualities, speeds)
    text = table.markdown({"models": rows})
    assert rows[1]["speeds"][0]["ratio"]["median"] == 4
    assert "| bitsmith | f | 0.0 | 0.2500 | 80.0% | failed | 300 (4.00) |" in text
    assert "failed: no room" in text


@pytest.mark.parametrize("words", [["--rounds", "0"], ["--artifact", "a=nowhere"], ["--kind", "Q9"]])
def test_wrong_words_end_with_one_message(words, capsys):
    with pytest.raises(SystemExit) as end:
        driver.arguments(words)
    assert end.value.code == 2 and "error:" in capsys.readouterr().err
