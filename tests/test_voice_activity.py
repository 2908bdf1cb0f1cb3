"""The parts of examples/voice_activity.py that need neither its network nor its voices."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import speech  # noqa: E402
import voice_activity as example  # noqa: E402
from comparison import Subject, compared, subject  # noqa: E402
from speech import RATE, Stream, background, speaking  # noqa: E402


def loud(feed):
    """Stands in for the network: the mean of the loudness of all chunks so far, which is its state."""
    chunk, state = feed["input"][:, example.CONTEXT :], feed["state"]
    sums = state.reshape(-1)[:2] + [np.abs(chunk).mean(), 1]
    following = np.zeros(example.STATE, np.float32)
    following.reshape(-1)[:2] = sums
    return {"output": np.array([[sums[0] / sums[1]]], np.float32), "stateN": following}


def test_the_state_is_carried_from_chunk_to_chunk():
    sound = np.repeat(np.array([0.0, 0.5, 1.0, 0.1], np.float32), example.CHUNK)
    recording = Stream(sound, sound > 0.3, ())
    probabilities = example.heard(Subject(0, loud), recording)
    assert probabilities == pytest.approx([0, 0.25, 0.5, 0.4])
    assert example.truth(recording).tolist() == [False, True, True, False]


def test_chunks_begin_with_the_end_of_the_one_before():
    sound = np.arange(example.CHUNK * 3 + 100, dtype=np.float32)
    made = example.chunks(sound)
    assert made.shape == (3, example.CONTEXT + example.CHUNK)
    assert not made[0, : example.CONTEXT].any()
    assert np.array_equal(made[1:, : example.CONTEXT], made[:-1, -example.CONTEXT :])
    assert np.array_equal(made[:, example.CONTEXT :].reshape(-1), sound[: 3 * example.CHUNK])


def test_what_a_voice_says_is_found_with_its_short_gaps():
    voice = np.zeros(2 * RATE, np.float32)
    tone = np.sin(np.arange(RATE // 4) * 0.3).astype(np.float32)
    voice[RATE // 4 : RATE // 2] = tone
    voice[RATE // 2 + 1600 : RATE // 2 + 1600 + len(tone)] = tone  # 0.1 s later
    found = speaking(voice)
    edges = np.flatnonzero(np.diff(found.astype(int)))
    assert edges / RATE == pytest.approx([0.25, 0.85], abs=0.03)


def test_a_stream_has_its_voices_where_it_says(monkeypatch):
    def beep(text, voice):
        return np.full(RATE // 2, 0.5, np.float32)

    monkeypatch.setattr(speech, "spoken", beep)
    made = speech.stream(7, 3)
    assert len(made.sound) == len(made.speaks) and len(made.said) == 3
    assert made.sound.dtype == np.float32 and np.abs(made.sound).max() <= 1
    for start, text in made.said:
        assert text in speech.SENTENCES
        first = round(start * RATE)
        assert made.speaks[first + 500 : first + RATE // 2 - 500].all()
        assert not made.speaks[first - RATE // 4 : first - RATE // 20].any()
    again = speech.stream(7, 3)
    assert np.array_equal(made.sound, again.sound) and made.said == again.said


def test_backgrounds_are_quieter_than_voices():
    for seed in range(4):
        made = background(RATE, np.random.default_rng(seed))
        assert made.shape == (RATE,) and 0 < np.abs(made).max() < 0.2


@pytest.mark.parametrize(
    ("speaks", "line"),
    [([1, 1, 0, 0], "██··"), ([1] * 5 + [0] * 3, "███·"), ([0] * 4, "····")],
)
def test_a_timeline_shows_where(speaks, line):
    assert example.timeline(np.array(speaks, bool), 4) == line


class Doubling:
    size_bytes = 2_500_000

    def run(self, **named):
        return {"y": named["x"] * named["by"]}


def test_the_table_has_a_row_for_each_with_its_constants():
    doubled = subject(Doubling(), {"by": np.float32(2)})
    feed = {"x": np.ones(3, np.float32)}
    assert np.array_equal(doubled.run(feed)["y"], [2, 2, 2])
    table = compared({"one": doubled, "two": Subject(0, doubled.run)}, feed, {"good": ["yes", "no"]}, 3)
    cells = {column.header: list(column.cells) for column in table.columns}
    assert cells[""] == ["one", "two"] and cells["MB"] == ["2.5", ""] and cells["good"] == ["yes", "no"]
    assert all(float(ms) >= 0 for ms in cells["ms"])
