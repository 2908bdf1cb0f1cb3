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
    STATE = "state"


@dataclass(frozen=True)
class Place:
    """One pointer argument of a kernel call.

    `offset` counts bytes from the start of the arena, the states or `weights.bin`; for INPUT and OUTPUT it is
    the index of the graph's input or output, whose start is meant.
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
class Limit:
    """Elements of the program's input of that number (int32 or int64) must be 0 to `most`."""

    input: int
    most: int


@dataclass(frozen=True)
class Program:
    """A whole network. `features` are the CPU features its kernels need, by their names in /proc/cpuinfo.

    `states` is what an instance keeps from run to run, in `state_bytes` of memory of its own; `inputs` and
    `outputs` are without them.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    steps: tuple[Step, ...]
    arena_bytes: int
    weights_bytes: int
    features: tuple[str, ...]
    states: tuple[TensorSpec, ...] = ()
    state_bytes: int = 0
    limits: tuple[Limit, ...] = ()
