"""How a worker answers its driver: a line of JSON for each line that it reads."""

import gc
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO


def serve(verbs: Mapping[str, Callable[[str], Any]], requests: Iterable[str], replies: TextIO) -> None:
    """Answers each request, `verb rest`, by what the verb makes of the rest, until `quit` or their end.

    Raises ValueError for one that it does not know."""
    for line in requests:
        verb, _, rest = line.rstrip("\n").partition(" ")
        if verb == "quit":
            return
        if verb not in verbs:
            raise ValueError(f"unknown request {line!r}: expected {', '.join(verbs)} or quit")
        print(json.dumps(verbs[verb](rest)), file=replies, flush=True)


def timed(act: Callable[[], Any], count: int) -> list[float]:
    """Seconds of each of `count` runs; as in timeit, the garbage collector waits."""
    seconds = []
    gc.disable()
    for _ in range(count):
        start = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - start)
    gc.enable()
    return seconds


def private_stdout() -> TextIO:
    """Keeps the pipe for the replies and sends file descriptor 1, which engines print on, to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return replies
