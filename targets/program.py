"""The compiled form of a graph: kernel calls over one arena, in order."""

from dataclasses import dataclass
from enum import Enum

from ..compiler.analysis.roofline import Work


class Space(Enum):
    """Where a kernel's argument lives."""

    ARENA = "arena"
    WEIGHTS = "weights"
    INPUT = "input"
    OUTPUT = "output"


@dataclass(frozen=True)
class Place:
    """One pointer argument of a kernel call.

    `offset` counts bytes from the start of the arena or of `weights.bin`; for INPUT and OUTPUT it is the
    index of the graph's input or output, whose start is meant.
    """

    space: Space
    offset: int


@dataclass(frozen=True)
class Step:
    """One kernel call: `symbol(places..., begin, end)` with `0 <= begin < end <= tasks`.

    Any split of `[0, tasks)` over threads gives the same result: tasks write disjoint memory and read nothing
    that another task of the same step writes. `layer` names the graph node that the step belongs to (profiles
    and ledgers key on it). `work` is for rooflines: None where nobody counted it.
    """

    layer: str
    symbol: str
    places: tuple[Place, ...]
    tasks: int
    work: Work | None = None


@dataclass(frozen=True)
class TensorSpec:
    """A graph input or output as the caller sees it: contiguous, row-major, `dtype` a numpy name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Program:
    """A whole network. `features` are the CPU features its kernels need, by their names in /proc/cpuinfo."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    steps: tuple[Step, ...]
    arena_bytes: int
    weights_bytes: int
    features: tuple[str, ...]
