"""The walk over tasks that both depthwise generators share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import emit
from .depthwise_spec import DepthwiseSpec


def each_task(spec: DepthwiseSpec, begin: Any, end: Any, body: Callable[[Any, Any, Any], None]) -> None:
    """`body(picture, first output row, group of units)` for every task in [begin, end). All rows of a group
    that fit in cache are one task, so that a line fetched for one vector is still there for the next."""
    with emit.loop(begin, end) as task:
        group = task % spec.groups if spec.groups > 1 else 0
        place = task // spec.groups if spec.groups > 1 else task
        image = place // spec.row_tasks if spec.n > 1 else 0
        block = (place % spec.row_tasks if spec.n > 1 else place) if spec.row_tasks > 1 else 0
        body(image, block * spec.rows, group)


def task_rows(spec: DepthwiseSpec, row: Any) -> Any:
    """Output rows of the task that starts at `row`."""
    return emit.vmin(spec.oh - row, spec.rows) if spec.oh % spec.rows else spec.rows
