"""Text from a compiled language model, and its judgement, against the reference executor and formulas."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bitsmith.compiler.artifact import open
from bitsmith.compiler.artifact.manifest import MANIFEST, TOKENIZER
from bitsmith.compiler.cli.app import main
from bitsmith.compiler.cli.language import _speak
from bitsmith.compiler.cli.output import Output
from bitsmith.compiler.errors import ArtifactError, InputError
from bitsmith.compiler.pipeline import bench, evaluate, generate
from bitsmith.compiler.pipeline.generating import Sampling
from bitsmith.compiler.pipeline.reading import Reader, Speech
from bitsmith.compiler.reference import run_reference
from tiny_language import BEGIN, CAPACITY, END, LETTERS, VOCABULARY, language_graph, write_language

PROMPT = "what now, then?"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language(tmp_path_factory.mktemp("language") / "tiny")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language(tmp_path_factory.mktemp("language") / "other", "int8")


def ids(text: str) -> list[int]:
    return [LETTERS.index(letter) for letter in text]


def reference(tokens: list[int], cache: str = "float16") -> np.ndarray:
    """Logits after each token, by one whole pass of the reference executor."""
    graph = language_graph(len(tokens), len(tokens), cache)
    feeds = {"tokens": np.array(tokens), "position": np.array([0]), "rows": np.arange(len(tokens))}
    return run_reference(graph, feeds)["logits"]


def greedy(prompt: str, most: int) -> list[int]:
    tokens = [BEGIN, *ids(prompt)]
    first = len(tokens)
    while len(tokens) - first < most and (new := int(reference(tokens)[-1].argmax())) != END:
        tokens.append(new)
    return tokens[first:]


def test_greedy_text_is_the_reference_s(place: Path) -> None:
    wanted = "".join(LETTERS[t] if t < END else "" for t in greedy(PROMPT, 12))
    made = generate(place, PROMPT, max_tokens=12)
    assert "".join(made) == wanted == made.text
    assert made.pace.prompt_tokens == 1 + len(PROMPT)


def test_pieces_come_one_by_one_and_the_pace_says_how_far(place: Path) -> None:
    with open(place) as artifact:
        made = generate(artifact, PROMPT, max_tokens=3, temperature=2.0, seed=1)
        assert isinstance(made, Iterator) and made.pace.tokens == 0
        assert next(made) in LETTERS
        assert made.pace.tokens == 1 and made.pace.stopped == "" and made.pace.decode_seconds == 0
        list(made)
        assert made.pace.tokens == 3 and made.pace.stopped == "length"
        assert made.pace.prefill_per_second > 0 < made.pace.decode_per_second
        assert artifact.run(*arrays(0))  # it is the caller's, and still open


def arrays(position: int) -> tuple[np.ndarray, ...]:
    return np.zeros(1, np.int64), np.array([position]), np.zeros(1, np.int64)


def test_it_stops_where_the_context_is_full(place: Path) -> None:
    for seed in range(20):  # a random network ends some texts by itself
        made = generate(place, PROMPT, max_tokens=999, temperature=1.5, seed=seed)
        list(made)
        assert made.pace.stopped in ("end", "context")
        if made.pace.stopped == "context":
            assert made.pace.prompt_tokens + made.pace.tokens == CAPACITY + 1
            return
    pytest.fail("every text ended before the context was full")


def test_it_stops_at_the_end_token_and_does_not_say_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter([0, 1, END, 2])
    monkeypatch.setattr(Sampling, "choose", lambda self, logits, chance: next(said))
    made = generate(place, PROMPT)
    assert "".join(made) == "ab" and made.pace.stopped == "end" and made.pace.tokens == 2


def test_characters_of_several_bytes_come_whole(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wanted = "né €5"
    tokens = tokenizer.encode(wanted).ids
    with open(place) as artifact:
        monkeypatch.setattr(Speech, "tokens", lambda self, text: [0])
        made = generate(artifact, "x", max_tokens=len(tokens))
        made._tokenizer, said = tokenizer, iter(tokens)
        monkeypatch.setattr(Sampling, "choose", lambda self, logits, chance: next(said) % VOCABULARY)
        monkeypatch.setattr(Reader, "read", lambda self, given: np.zeros(VOCABULARY))
        real = iter(tokens)
        step = made._stream.step

        class Stream:
            def step(self, tokenizer: Tokenizer, token: int) -> str | None:
                return step(tokenizer, next(real))

        made._stream = Stream()
        pieces = list(made)
    assert "".join(pieces) == wanted and not any("\ufffd" in piece for piece in pieces)


LOGITS = np.array([1.0, 3.0, 2.0, -1.0, 2.5], np.float32)


def shares(sampling: Sampling) -> np.ndarray:
    chance = np.random.default_rng(0)
    drawn = [sampling.choose(LOGITS, chance) for _ in range(20000)]
    return np.bincount(drawn, minlength=5) / len(drawn)


def softmax(logits: np.ndarray, kept: list[int]) -> np.ndarray:
    made = np.zeros(len(logits))
    made[kept] = np.exp(logits[kept]) / np.exp(logits[kept]).sum()
    return made


@pytest.mark.parametrize(
    ("sampling", "wanted"),
    [
        (Sampling(), np.eye(5)[1]),
        (Sampling(1.0), softmax(LOGITS, [0, 1, 2, 3, 4])),
        (Sampling(2.0), softmax(LOGITS / 2, [0, 1, 2, 3, 4])),
        (Sampling(1.0, top_k=2), softmax(LOGITS, [1, 4])),
        (Sampling(1.0, top_k=1), np.eye(5)[1]),
        # Shares 0.464, 0.281, 0.171...: the third is the first to reach 0.8 with those before.
        (Sampling(1.0, top_p=0.8), softmax(LOGITS, [1, 4, 2])),
        (Sampling(1.0, top_p=0.01), np.eye(5)[1]),
        (Sampling(1.0, top_k=2, top_p=0.99), softmax(LOGITS, [1, 4])),
    ],
)
def test_tokens_are_drawn_by_their_shares(sampling: Sampling, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(shares(sampling), wanted, atol=0.015)


def test_a_seed_says_all_that_is_random(place: Path) -> None:
    first, again, third = (
        "".join(generate(place, PROMPT, max_tokens=15, temperature=1.0, seed=seed)) for seed in (4, 4, 5)
    )
    assert first == again != third


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0 or more"),
        ({"temperature": float("nan")}, "temperature must be 0 or more"),
        ({"top_k": -2}, "top_k must be"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"max_tokens": -1}, "max_tokens must be"),
        ({"threads": 0}, "threads must be"),
    ],
)
def test_options_out_of_range_are_refused(place: Path, options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate(place, PROMPT, **options)


def test_a_prompt_longer_than_the_context_is_refused(place: Path) -> None:
    with pytest.raises(
        InputError, match=f"the prompt has {CAPACITY + 1} tokens, more than the context of {CAPACITY}"
    ):
        generate(place, "a" * CAPACITY)
    made = generate(place, "a" * (CAPACITY - 1), temperature=0.0)
    assert len(list(made)) <= 1 and made.pace.stopped in ("context", "end")


def test_what_is_no_language_model_is_refused(place: Path, tmp_path: Path) -> None:
    with open(place) as artifact:
        plain = artifact.save(tmp_path / "plain")
        mute = artifact.save(tmp_path / "mute")
    manifest = json.loads((plain / MANIFEST).read_text())
    (plain / MANIFEST).write_text(json.dumps({**manifest, "language": None}))
    with pytest.raises(InputError, match="no language model"):
        generate(plain, PROMPT)
    del manifest["files"][TOKENIZER]
    (mute / MANIFEST).write_text(json.dumps(manifest))
    (mute / TOKENIZER).unlink()
    with pytest.raises(ArtifactError, match="has no tokenizer.json"):
        generate(mute, PROMPT)
    (mute / TOKENIZER).write_text("{]")
    with pytest.raises(ArtifactError, match=r"tokenizer.json cannot be read"):
        generate(mute, PROMPT)


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 16, 21, 30, 39])
def test_a_text_may_be_read_in_any_parts(place: Path, cut: int) -> None:
    """Chunks, single tokens, and a last chunk that begins earlier because it would not fit."""
    tokens = [BEGIN, *np.random.default_rng(2).integers(0, END, CAPACITY - 1).tolist()]
    wanted = reference(tokens)
    with open(place) as artifact:
        reader = Reader(artifact)
        np.testing.assert_allclose(reader.read(tokens[:cut]), wanted[cut - 1], atol=3e-4)
        np.testing.assert_allclose(reader.read(tokens[cut:]), wanted[-1], atol=3e-4)
        assert reader.room == 0
        with pytest.raises(InputError, match="1 tokens after 40 do not fit"):
            reader.read([0])
        reader.clear()
        scored = [*reader.score(tokens[:cut]), *reader.score(tokens[cut:])]
        np.testing.assert_allclose(np.array(scored), wanted, atol=3e-4)
        with pytest.raises(InputError, match="not in the vocabulary"):
            Reader(artifact).read([VOCABULARY])


def test_a_call_that_was_interrupted_is_made_up_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [BEGIN, *np.random.default_rng(3).integers(0, END, 29).tolist()]
    with open(place) as artifact:
        reader, run = Reader(artifact), Reader._run
        calls = iter(range(99))

        def second_fails(self: Reader, *given: object) -> np.ndarray:
            if next(calls) == 1:
                raise KeyboardInterrupt
            return run(self, *given)  # type: ignore[arg-type]

        monkeypatch.setattr(Reader, "_run", second_fails)
        with pytest.raises(KeyboardInterrupt):
            reader.read(tokens[:25])
        assert 0 < reader.done < 25
        np.testing.assert_allclose(reader.read(tokens[25:]), reference(tokens)[-1], atol=3e-4)
        reader.clear()
        next(reader.score(tokens[:20]))  # the rest is not asked for
        made = np.array(list(reader.score(tokens[20:])))
        np.testing.assert_allclose(made, reference(tokens)[20:], atol=3e-4)


TEXT = "the cat sat. the dog sat, too! did it? " * 3


def judged(cache: str, window: int) -> list[tuple[int, np.ndarray]]:
    """(token, log shares before it) of each prediction."""
    found = []
    for begin in range(0, len(TEXT), window - 1):
        tokens = [BEGIN, *ids(TEXT[begin : begin + window - 1])]
        logits = reference(tokens[:-1], cache).astype(np.float64)
        shares = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        found += list(zip(tokens[1:], shares, strict=True))
    return found


def test_perplexity_and_divergence_are_what_the_formulas_say(place: Path, other: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = evaluate(
        place, TEXT, other, window=30, progress=lambda stage, done, total: seen.append((done, total))
    )
    mine, theirs = judged("float16", 30), judged("int8", 30)
    assert made.predictions == len(mine) == len(TEXT) and seen[-1] == (len(TEXT), len(TEXT))
    assert made.perplexity == pytest.approx(np.exp(-np.mean([row[t] for t, row in mine])), rel=1e-3)
    assert made.against_perplexity == pytest.approx(np.exp(-np.mean([row[t] for t, row in theirs])), rel=1e-3)
    pairs = [(a, b) for (_, a), (_, b) in zip(mine, theirs, strict=True)]
    assert made.kl == pytest.approx(np.mean([np.exp(b) @ (b - a) for a, b in pairs]), rel=0.05)
    assert made.agreement == pytest.approx(np.mean([a.argmax() == b.argmax() for a, b in pairs]))


def test_a_model_does_not_differ_from_itself(place: Path) -> None:
    made = evaluate(place, TEXT, place, tokens=50)
    assert made.kl == 0 and made.agreement == 1 and made.predictions == 50
    alone = evaluate(place, TEXT, tokens=50)
    assert alone.kl is None and alone.perplexity == made.perplexity == made.against_perplexity


def test_texts_and_models_that_cannot_be_judged_are_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to predict"):
        evaluate(place, "")
    with pytest.raises(InputError, match="leaves nothing to predict"):
        evaluate(place, TEXT, window=1)
    with open(place) as artifact:
        strange = artifact.save(tmp_path / "strange")
    manifest = json.loads((strange / MANIFEST).read_text())
    manifest["language"]["add_bos"] = False
    (strange / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="other tokens"):
        evaluate(place, TEXT, strange)


def test_bench_says_tokens_per_second(place: Path, other: Path) -> None:
    report = bench([place, other], threads=(1, 2), repeats=2)
    assert [(row.name, row.threads) for row in report.speeds] == [
        (str(where), n) for n in (1, 2) for where in (place, other)
    ]
    assert all(row.prompt == 20 and row.steps == 20 for row in report.speeds)
    assert all(row.prefill_per_second > 0 and row.decode_per_second > 0 for row in report.speeds)


def cli(*words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return int(stopped.value.code or 0)


def test_the_command_line_streams_and_judges(
    place: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = "".join(generate(place, PROMPT, max_tokens=12))
    assert cli("generate", place, "--prompt", PROMPT, "--max-tokens", 12) == 0
    printed = capsys.readouterr()
    assert printed.out == wanted + "\n"
    assert "prefill 16 tokens" in printed.err and "tok/s; decode" in printed.err
    assert cli("generate", place, "--prompt", PROMPT, "-n", 12, "--json", "--threads", 2) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["text"] == wanted and data["stopped"] in ("length", "end") and data["prompt_tokens"] == 16
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    assert cli("eval", place, text, "--against", other, "--tokens", 30, "--json", "-q") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["predictions"] == 30 and 0 < found["kl"] < 0.1
    assert cli("eval", place, text) == 0
    assert "perplexity of" in capsys.readouterr().out
    assert cli("inspect", place) == 0
    assert f"4 states, 5.12 kB, for {CAPACITY} tokens" in capsys.readouterr().out
    assert cli("eval", place, tmp_path / "nothing.txt") == InputError.exit_code
    assert "cannot read the text" in capsys.readouterr().err
    assert cli("generate", place, "--prompt", "a" * 99) == InputError.exit_code
    assert "more than the context" in capsys.readouterr().err


def test_an_interrupt_ends_it_with_what_was_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupted(Iterator[str]):
        def __init__(self) -> None:
            self.pieces = iter(["so ", "far"])

        def __next__(self) -> str:
            try:
                return next(self.pieces)
            except StopIteration:
                raise KeyboardInterrupt from None

    assert _speak(Interrupted(), Output()) == "interrupted"  # type: ignore[arg-type]
    assert capsys.readouterr().out == "so far\n"


def test_generating_needs_numpy_and_tokenizers_only(place: Path) -> None:
    code = (
        "import sys, bitsmith\n"
        f"print(''.join(bitsmith.generate({str(place)!r}, 'hello', max_tokens=3)))\n"
        f"bitsmith.evaluate({str(place)!r}, 'hello there')\n"
        "assert not {'torch', 'tvm', 'onnx', 'onnxruntime', 'optuna'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr


def test_weights_that_give_no_numbers_are_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(place) as artifact:
        monkeypatch.setattr(
            type(artifact),
            "run",
            lambda self, **feed: {"logits": np.full((1, VOCABULARY), np.nan, np.float32)},
        )
        with pytest.raises(ArtifactError, match="not all numbers"):
            Reader(artifact).read([1])


def test_a_model_without_a_chunk_reads_token_by_token(place: Path) -> None:
    tokens = [BEGIN, *ids("hello")]
    with open(place) as artifact:
        reader = Reader(artifact)
        reader.chunks, reader.scored = [], 0
        np.testing.assert_allclose(reader.read(tokens), reference(tokens)[-1], atol=3e-4)
        reader.clear()
        np.testing.assert_allclose(np.array(list(reader.score(tokens))), reference(tokens), atol=3e-4)
