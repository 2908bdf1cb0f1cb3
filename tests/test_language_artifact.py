"""A compiled network with a cache: chunks and single tokens give what one whole pass gives."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import numpy as np
import pytest
from bitsmith.compiler.artifact import Artifact, open
from bitsmith.compiler.artifact.manifest import TOKENIZER
from bitsmith.compiler.errors import ArtifactError, InputError, UnsupportedError
from bitsmith.compiler.pipeline import compile, diff
from bitsmith.compiler.reference import run_reference
from bitsmith.targets.lower import lower
from bitsmith.targets.program import Space
from bitsmith.targets.states import in_place
from bitsmith.targets.target import resolve
from tiny_language import CAPACITY, CHUNK, LANGUAGE, VOCABULARY, language_graph, write_language

TEXT = np.random.default_rng(0).integers(0, VOCABULARY, 30)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language(tmp_path_factory.mktemp("language") / "tiny")


def whole(cache: str = "float16") -> np.ndarray:
    graph = language_graph(len(TEXT), len(TEXT), cache)
    feeds = {"tokens": TEXT, "position": np.array([0]), "rows": np.arange(len(TEXT))}
    return run_reference(graph, feeds)["logits"]


def chunk(artifact: Artifact, begin: int, rows: np.ndarray | None = None) -> np.ndarray:
    """Logits of the last token, or of `rows`, of the chunk that begins there, padded with zeros."""
    tokens = np.zeros(CHUNK, np.int64)
    given = TEXT[begin : begin + CHUNK]
    tokens[: len(given)] = given
    rows = np.array([len(given) - 1]) if rows is None else rows
    return artifact.run(tokens, np.array([begin]), rows)["logits"]


def step(artifact: Artifact, at: int) -> np.ndarray:
    return artifact.run(TEXT[at : at + 1], np.array([at]), np.array([0]))["logits"][0]


@pytest.mark.parametrize("cache", ["float16", "int8"])
def test_chunks_and_tokens_give_what_a_whole_pass_gives(cache: str, place: Path, tmp_path: Path) -> None:
    here = place if cache == "float16" else write_language(tmp_path / "int8", cache)
    wanted = whole(cache)
    with open(here) as artifact:
        for threads in (1, 2):
            artifact.set_threads(threads)
            np.testing.assert_allclose(chunk(artifact, 0, np.arange(CHUNK)), wanted[:CHUNK], atol=2e-4)
            np.testing.assert_allclose(chunk(artifact, CHUNK)[0], wanted[2 * CHUNK - 1], atol=2e-4)
            for at in range(2 * CHUNK, 27):
                np.testing.assert_allclose(step(artifact, at), wanted[at], atol=2e-4)
            # The last chunk is padded: what padding leaves in the cache is overwritten before it is read.
            np.testing.assert_allclose(chunk(artifact, 27)[0], wanted[29], atol=2e-4)


def test_caches_are_written_in_place(place: Path) -> None:
    graph = language_graph(1, 1)
    assert set(in_place(graph)) == {after for _, after in graph.states}
    program = lower(graph, resolve("host")).program
    assert not any(step.symbol.startswith("copy") for step in program.steps)
    assert program.state_bytes >= 4 * 2 * CAPACITY * 8 * 2
    assert [spec.name for spec in program.inputs] == ["tokens", "position", "rows"]
    with open(place) as artifact:
        assert [s.name for s in artifact.states] == [before for before, _ in graph.states]
        assert artifact.outputs[0].name == "logits" and len(artifact.outputs) == 1


def test_diff_looks_into_caches() -> None:
    graph = language_graph(CHUNK, CHUNK)
    feeds = [
        {"tokens": tokens, "position": np.array([0]), "rows": np.arange(CHUNK)}
        for tokens in (TEXT[:CHUNK], TEXT[CHUNK : 2 * CHUNK])
    ]
    with compile(graph) as artifact:
        report = diff(graph, artifact, inputs=feeds)
    assert report.ok and report.reproduced
    shown = {row.op: row for row in report.layers}
    assert 0 < shown["cached_attention"].error < 1e-5  # it was compared: sums have another order
    assert shown["cache_write"].error == 0


def test_two_instances_do_not_share_what_they_keep(place: Path) -> None:
    with open(place) as one, open(place) as other:
        first = [step(one, at) for at in range(5)]
        np.testing.assert_array_equal(step(other, 0), first[0])
        assert not np.array_equal(step(other, 4), first[4])  # it has not seen tokens 1 to 3
        np.testing.assert_array_equal(step(one, 4), first[4])


def test_reset_makes_it_as_new(place: Path) -> None:
    with open(place) as artifact:
        fresh = step(artifact, 3)  # attends to rows of zeros
        for at in range(4):
            step(artifact, at)
        assert not np.array_equal(step(artifact, 3), fresh)
        artifact.reset()
        np.testing.assert_array_equal(step(artifact, 3), fresh)


@pytest.mark.parametrize("position", [-1, CAPACITY, 2**62])
def test_a_position_beyond_the_cache_is_refused_and_changes_nothing(place: Path, position: int) -> None:
    with open(place) as artifact:
        before = [step(artifact, at) for at in range(3)][-1]
        with pytest.raises(InputError, match=f"'position'.* is {position}, must be 0 to {CAPACITY - 1}"):
            artifact.run(TEXT[:1], np.array([position]), np.array([0]))
        np.testing.assert_array_equal(step(artifact, 2), before)


def test_a_chunk_must_fit_whole(place: Path) -> None:
    with open(place) as artifact:
        chunk(artifact, CAPACITY - CHUNK)
        with pytest.raises(InputError, match=f"must be 0 to {CAPACITY - CHUNK}"):
            chunk(artifact, CAPACITY - CHUNK + 1)


def test_the_codes_that_c_gives(place: Path) -> None:
    library = ctypes.CDLL(str(place / "model.so"))
    library.bitsmith_last_error.restype = ctypes.c_char_p
    model = ctypes.c_void_p()
    assert library.bitsmith_open(1, str(place).encode(), ctypes.byref(model)) == 0
    arrays = [np.zeros(1, np.int64), np.array([CAPACITY]), np.zeros(1, np.int64)]
    logits = np.zeros((1, VOCABULARY), np.float32)
    pointers = (ctypes.c_void_p * 3)(*(a.ctypes.data for a in arrays))
    made = (ctypes.c_void_p * 1)(logits.ctypes.data)
    assert library.bitsmith_run(model, pointers, made) == 9 and not logits.any()
    assert b"position" in library.bitsmith_last_error()
    arrays[1][:] = 0
    assert library.bitsmith_run(model, pointers, made) == 0 and logits.any()
    assert library.bitsmith_state_count() == 4 and library.bitsmith_reset(model) == 0
    assert library.bitsmith_reset(None) == 1
    library.bitsmith_close(model)


def test_a_call_that_is_refused_as_busy_changes_nothing(place: Path) -> None:
    """Of calls at the same time on one instance, those that C refuses leave the caches alone."""
    library = ctypes.CDLL(str(place / "model.so"))
    model = ctypes.c_void_p()
    assert library.bitsmith_open(1, str(place).encode(), ctypes.byref(model)) == 0
    codes: list[int] = []

    def call(token: int, entry: int = 0) -> tuple[int, np.ndarray]:
        size = CHUNK if entry else 1
        arrays = [np.full(size, token), np.array([1 if entry else 0]), np.zeros(1, np.int64)]
        logits = np.zeros((1, VOCABULARY), np.float32)
        pointers = (ctypes.c_void_p * 3)(*(a.ctypes.data for a in arrays))
        made = (ctypes.c_void_p * 1)(logits.ctypes.data)
        return library.bitsmith_run_entry(model, entry, pointers, made, 0), logits

    def resets() -> None:
        for _ in range(3000):
            codes.append(library.bitsmith_reset(model))

    other = threading.Thread(target=resets)
    other.start()
    runs = [call(3) for _ in range(300)]
    other.join()
    library.bitsmith_close(model)
    assert {code for code, _ in runs} <= {0, 7} and set(codes) <= {0, 7}
    done = [logits for code, logits in runs if code == 0]
    assert done and all(np.array_equal(logits, done[0]) for logits in done)
    assert not any(logits.any() for code, logits in runs if code)


def test_the_manifest_says_what_it_is(place: Path) -> None:
    with open(place) as artifact:
        assert artifact.manifest.language == LANGUAGE
        assert artifact.manifest.files[TOKENIZER].bytes == (place / TOKENIZER).stat().st_size
        copy = artifact.save(place.parent / "copy")
    with open(copy) as again:
        assert again.manifest.language == LANGUAGE and (copy / TOKENIZER).exists()
    (copy / TOKENIZER).write_bytes(b"{}")
    with pytest.raises(ArtifactError, match=r"tokenizer.json"):
        open(copy)


def test_states_that_change_places_are_refused() -> None:
    from bitsmith.compiler.builder import GraphBuilder

    b = GraphBuilder("swap")
    one, two = b.input("one", (4,)), b.input("two", (4,))
    y = b.add("add", [one, two])
    first, second = (b.add("reshape", [x], shape=(4,)) for x in (one, two))
    b.keep(one, second)
    b.keep(two, first)
    with pytest.raises(UnsupportedError, match="one state before and another after"):
        lower(b.finish([y]), resolve("host"))


def test_a_cache_that_is_read_after_it_was_written_elsewhere_is_copied() -> None:
    """Another node reads what the state was before: it must not be written in place."""
    from bitsmith.compiler.builder import GraphBuilder
    from bitsmith.targets.build import build

    b = GraphBuilder("old")
    cache, new, position = b.input("cache", (1, 4, 8)), b.input("new", (1, 1, 8)), b.input("p", (1,), "int64")
    after = b.add("cache_write", [cache, new, position])
    y = b.add("sub", [after, cache])
    b.keep(cache, after)
    graph = b.finish([y])
    assert not in_place(graph)
    rows = np.arange(16, dtype=np.float32).reshape(2, 1, 1, 8)
    state = np.zeros((1, 4, 8), np.float32)
    with build(graph, resolve("host")) as artifact:
        for at, row in zip((2, 2), rows, strict=True):
            wanted = run_reference(graph, {"cache": state, "new": row, "p": np.array([at])})
            made = artifact.run(row, np.array([at]))
            np.testing.assert_array_equal(made[y], wanted[y])
            state = wanted[after]
    assert Space.STATE in {p.space for s in lower(graph, resolve("host")).program.steps for p in s.places}
