"""Workers (peer_worker.py) as their driver sees them, and the order in which they take turns."""

import json
import os
import select
import statistics
import subprocess
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar


class PeerError(Exception):
    """An engine cannot be installed, prepared or run; the message is the reason that the table shows."""


class Worker:
    """A worker process. Each failure, even death or silence, is a PeerError; `close` always ends it."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 300.0,
    ) -> None:
        """Starts `command` and waits for its ready line. stderr goes to `log`, where reasons come from."""
        self._log = log
        self._timeout_s = timeout_s
        with log.open("wb") as stderr:
            # A session of its own keeps the terminal's Ctrl-C for the driver, which then ends every worker
            # itself.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=env,
                text=True,
                bufsize=1,
                start_new_session=True,
            )
        try:
            self.ready: dict[str, Any] = self._reply()["ready"]
        except BaseException:
            self.close()
            raise

    def run(self, count: int) -> list[float]:
        """Seconds of each of `count` runs."""
        return list(self.ask(f"run {count}"))

    def outputs(self, path: Path) -> int:
        """Has the outputs for all samples written to `path` (.npz: "0", "1", ...); returns their number."""
        return int(self.ask(f"outputs {path}"))

    def settle(self, limit_s: float = 2.0) -> float:
        """Waits until no thread of it wants to run; returns the CPU seconds that it used for nothing.

        ONNX Runtime's pool spins for about 55 ms after a run: that would be stolen from whoever has the next
        turn, and to forbid the spinning would slow its own runs.
        """
        start = self.cpu_s()
        deadline = time.monotonic() + limit_s
        while self.runnable() and time.monotonic() < deadline:
            time.sleep(0.002)
        return self.cpu_s() - start

    def runnable(self) -> bool:
        """Whether any thread of it runs or waits for a processor, which a CPU clock would not show."""
        for stat in Path(f"/proc/{self._process.pid}/task").glob("*/stat"):
            try:
                if stat.read_text().rpartition(")")[2].split()[0] == "R":
                    return True
            except OSError:
                continue  # The thread has ended since it was listed.
        return False

    def cpu_s(self) -> float:
        """CPU seconds of all its threads so far; 0 when it has ended: the next request to it says why."""
        # Linux gives each process's CPU clock this id (clock_getcpuclockid(3)): nanoseconds.
        try:
            return time.clock_gettime((~self._process.pid << 3) | 2)
        except OSError:
            return 0.0

    def close(self) -> None:
        """Ends the process: by its own will if it is listening, else by force. Safe to call again."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.close()
            process.wait(timeout=1)
        except (OSError, subprocess.TimeoutExpired):
            pass  # It is busy or dead already: the next lines end either.
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, request: str) -> Any:
        """The answer to any request."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request + "\n")
        except (OSError, ValueError) as error:
            raise PeerError(self._reason()) from error
        return self._reply()

    def _reply(self) -> Any:
        stdout = self._process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], self._timeout_s)[0]:
            raise PeerError(f"no answer in {self._timeout_s:g} s")
        line = stdout.readline()
        if not line:
            raise PeerError(self._reason())
        try:
            return json.loads(line)
        except json.JSONDecodeError as error:
            raise PeerError(f"answered {line!r}") from error

    def _reason(self) -> str:
        """The last line that it wrote to stderr, which for a Python traceback is the error."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1] if said else f"ended without a message, exit status {self._process.wait()}"


class Turn(Protocol):
    """What `interleave` needs of a worker."""

    def run(self, count: int) -> list[float]: ...

    def settle(self) -> float: ...


def busy_cpu_s() -> float:
    """CPU seconds since the start that the machine's processors were busy, or its host kept for itself."""
    # proc_stat(5): user nice system idle iowait irq softirq steal.
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


Key = TypeVar("Key", bound=Hashable)


def order(count: int, turn: int) -> list[int]:
    """The order of `count` workers in round `turn`: a Williams square.

    Over `count` rounds (twice as many when it is odd) each worker has each place, and each comes right after
    each other, equally often: what one leaves behind in the caches and the clock speed favours nobody.
    Source: E. J. Williams, Australian Journal of Scientific Research A 2 (1949), p. 149.
    """
    zigzag = [(j + 1) // 2 if j % 2 else -(j // 2) for j in range(count)]
    row = [(place + turn) % count for place in zigzag]
    return row[::-1] if count % 2 and (turn // count) % 2 else row


def interleave(
    workers: Mapping[Key, Turn],
    *,
    rounds: int,
    turn_s: float = 0.06,
    warmup: int = 2,
    on_round: Callable[[int], None] = lambda done: None,
) -> tuple[dict[Key, list[list[float]]], dict[Key, float], dict[Key, str]]:
    """Times all workers in turns, one at a time.

    A turn is `warmup` runs that are thrown away (another worker had the caches) and at least 3 timed runs,
    about `turn_s` seconds of them. Returns, by worker: the seconds of its timed runs, a list for each round;
    the median CPU seconds that it went on using after a turn; and, for those that failed, the reason (these
    are in it alone).
    """
    keys = list(workers)
    counts: dict[Key, int] = {}
    seconds: dict[Key, list[list[float]]] = {key: [] for key in keys}
    idle: dict[Key, list[float]] = {key: [] for key in keys}
    failed: dict[Key, str] = {}
    for key in keys:
        try:
            fastest = min(workers[key].run(warmup + 3)[warmup:])
            counts[key] = max(3, min(200, round(turn_s / fastest)))
            workers[key].settle()
        except PeerError as error:
            failed[key] = str(error)
    for turn in range(rounds):
        for key in (keys[i] for i in order(len(keys), turn)):
            if key in failed:
                continue
            try:
                seconds[key].append(workers[key].run(warmup + counts[key])[warmup:])
                idle[key].append(workers[key].settle())
            except PeerError as error:
                failed[key] = str(error)
        on_round(turn + 1)
    alive = [key for key in keys if key not in failed]
    return {k: seconds[k] for k in alive}, {k: statistics.median(idle[k]) for k in alive}, failed
