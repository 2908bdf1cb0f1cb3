"""One engine with one language model at one thread count, in a process of its own.

    python llm_worker.py '{"engine": "llama_cpp", "model": "m.gguf", "threads": 1, "prompt": 128,
                           "context": 512}'

The worker says {"ready": {...}} when the model is loaded and then answers one line of JSON to each line:

    prefill N           -> [seconds, ...]   N times a prompt into an empty memory, until its last logits
    decode N            -> [seconds, ...]   N single tokens behind the prompt, each timed alone
    logits TOKENS PATH  -> n                logits of every token of TOKENS (.npy, int64 [n]), read from an
                                            empty memory, to PATH (.npy, float32 [n, vocabulary])
    quit                -> (ends)           so does the end of its input

Any failure ends the process with a traceback on stderr. Nothing but replies is written to stdout. Only numpy
and the engine are imported.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from peer_protocol import private_stdout, serve, timed

SEED = 0


class Engine(Protocol):
    """A model with a memory of what it has read. `read` gives the logits float32 [vocabulary] behind the last
    token; `score` those behind each token, from an empty memory."""

    facts: dict[str, str]
    vocabulary: int

    def clear(self) -> None: ...

    def read(self, tokens: Sequence[int]) -> np.ndarray: ...

    def score(self, tokens: Sequence[int]) -> np.ndarray: ...


class Bitsmith:
    def __init__(self, spec: dict[str, Any]) -> None:
        import bitsmith
        from bitsmith.compiler.pipeline.reading import Reader

        artifact = bitsmith.open(spec["model"])
        artifact.set_threads(spec["threads"])
        self._reader = Reader(artifact)
        self.vocabulary = self._reader.language.vocabulary
        self.facts = {"version": bitsmith.__version__}

    def clear(self) -> None:
        self._reader.clear()

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        return self._reader.read(list(tokens))

    def score(self, tokens: Sequence[int]) -> np.ndarray:
        self.clear()
        return np.stack([row.copy() for row in self._reader.score(list(tokens))])


class LlamaCpp:
    """By llama.cpp's own functions: what its Python class adds to a step is not timed."""

    def __init__(self, spec: dict[str, Any]) -> None:
        import llama_cpp

        self._lib = llama_cpp
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(
            str(spec["model"]).encode(), llama_cpp.llama_model_default_params()
        )
        if not model:
            raise RuntimeError(f"llama.cpp cannot load {spec['model']}")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = spec["context"]
        options.n_threads = options.n_threads_batch = spec["threads"]
        self._context = llama_cpp.llama_init_from_model(model, options)
        if not self._context:
            raise RuntimeError("llama.cpp cannot make a context")
        self._batch = llama_cpp.llama_batch_init(spec["context"], 0, 1)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.facts = {"version": llama_cpp.__version__}
        self._read = 0

    def clear(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        self._read = 0

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        return self._decode(tokens, [len(tokens) - 1])[0]

    def score(self, tokens: Sequence[int]) -> np.ndarray:
        self.clear()
        return self._decode(tokens, range(len(tokens)))

    def _decode(self, tokens: Sequence[int], wanted: Iterable[int]) -> np.ndarray:
        batch, rows = self._batch, sorted(wanted)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, self._read + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = 0
        for i in rows:
            batch.logits[i] = 1
        if self._lib.llama_decode(self._context, batch):
            raise RuntimeError(f"llama.cpp cannot read {len(tokens)} tokens at {self._read}")
        self._read += len(tokens)
        found = [self._lib.llama_get_logits_ith(self._context, i) for i in rows]
        return np.stack([np.ctypeslib.as_array(row, (self.vocabulary,)) for row in found])


ENGINES: dict[str, Callable[[dict[str, Any]], Engine]] = {"bitsmith": Bitsmith, "llama_cpp": LlamaCpp}


class Timer:
    """Prompts and steps of random tokens. `prompt` and `context` in tokens."""

    def __init__(self, engine: Engine, prompt: int, context: int) -> None:
        self.engine, self.prompt, self.context = engine, prompt, context
        tokens = np.random.default_rng(SEED).integers(0, engine.vocabulary, context)
        self.tokens: list[int] = tokens.tolist()
        self.read = 0

    def prefill(self, count: int) -> list[float]:
        return timed(self._prompt, count)

    def decode(self, count: int) -> list[float]:
        """Behind the prompt at most as many tokens as the prompt has: then it begins anew, untimed."""
        seconds: list[float] = []
        last = min(2 * self.prompt, self.context)
        while len(seconds) < count:
            if not self.prompt <= self.read < last:
                self._prompt()
            seconds += timed(self._step, min(count - len(seconds), last - self.read))
        return seconds

    def _prompt(self) -> None:
        self.engine.clear()
        self.engine.read(self.tokens[: self.prompt])
        self.read = self.prompt

    def _step(self) -> None:
        self.engine.read(self.tokens[self.read : self.read + 1])
        self.read += 1

    def logits(self, source: str, place: str) -> int:
        found = self.engine.score(np.load(source).tolist())
        self.read = 0
        np.save(place, found)
        return len(found)


def verbs(timer: Timer) -> dict[str, Callable[[str], Any]]:
    """What each request is answered by."""
    return {
        "prefill": lambda count: timer.prefill(int(count)),
        "decode": lambda count: timer.decode(int(count)),
        "logits": lambda places: timer.logits(*places.split()),
    }


def main() -> None:
    spec = json.loads(sys.argv[1])
    replies = private_stdout()
    engine = ENGINES[spec["engine"]](spec)
    print(json.dumps({"ready": engine.facts}), file=replies, flush=True)
    serve(verbs(Timer(engine, spec["prompt"], spec["context"])), sys.stdin, replies)


if __name__ == "__main__":
    main()
