"""What a pass is, and how a list of them is run.

A pass is a function Graph -> Graph with a name. It may assume a valid graph and must leave one:
`run_passes` checks after each, so that a mistake is reported against the pass that made it and not against
the kernel that trips over it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..compiler.errors import BitsmithError, InternalError
from ..compiler.ir import Graph
from ..compiler.verify import verify


@dataclass(frozen=True)
class Pass:
    """A named rewriting of graphs. It keeps the graph's inputs, its output names and the names of its
    layers.
    """

    name: str
    run: Callable[[Graph], Graph]


def run_passes(
    graph: Graph, passes: Sequence[Pass], dump: Callable[[str, Graph], None] | None = None
) -> Graph:
    """Run the passes in order and verify after each. `dump(pass name, graph)` sees every result.

    Raises InternalError naming the pass that failed and those that ran before it; errors of the user
    (BitsmithError other than InternalError) pass through unchanged.
    """
    done: list[str] = []
    for each in passes:
        try:
            result = verify(each.run(graph))
            _check_interface(graph, result)
        except BitsmithError as error:
            if not isinstance(error, InternalError):
                raise
            raise InternalError(f"{_where(each, done)}: {error}") from error
        except Exception as error:
            raise InternalError(f"{_where(each, done)}: {type(error).__name__}: {error}") from error
        if dump:
            dump(each.name, result)
        graph = result
        done.append(each.name)
    return graph


def _check_interface(before: Graph, after: Graph) -> None:
    interfaces = [(graph.inputs, graph.outputs, graph.states) for graph in (before, after)]
    if interfaces[0] != interfaces[1]:
        raise InternalError("the pass changed the graph's inputs, outputs or states")
    kinds = [(value, before.type_of(value), after.type_of(value)) for value in before.outputs]
    changed = [f"{value} from {old} to {new}" for value, old, new in kinds if old != new]
    if changed:
        raise InternalError(f"the pass changed the type of output {', '.join(changed)}")


def _where(current: Pass, done: Sequence[str]) -> str:
    return f"pass {current.name!r} failed after {', '.join(done) if done else 'no other pass'}"
