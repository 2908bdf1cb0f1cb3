"""bitsmith fits a neural network to a chip.

    graph = bitsmith.load("model.onnx")
    result = bitsmith.search(graph, calibration=samples, constraints=["agreement>=0.98"])
    artifact = bitsmith.compile(graph, plan=result.best, calibration=samples)
    artifact.save("model.bitsmith")
    outputs = bitsmith.open("model.bitsmith").run(image)

docs/api.md lists every signature with its shapes and units. Importing bitsmith imports none of torch, tvm,
onnx or optuna: each name below is fetched when it is first used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compiler import errors as errors
    from .compiler.artifact import Artifact as Artifact
    from .compiler.artifact import open as open
    from .compiler.errors import BitsmithError as BitsmithError
    from .compiler.ir import Graph as Graph
    from .compiler.pipeline import bench as bench
    from .compiler.pipeline import compile as compile
    from .compiler.pipeline import diff as diff
    from .compiler.pipeline import evaluate as evaluate
    from .compiler.pipeline import generate as generate
    from .compiler.pipeline import inspect as inspect
    from .compiler.pipeline import load as load
    from .compiler.pipeline import measure as measure
    from .compiler.pipeline import report as report
    from .compiler.pipeline import search as search
    from .compiler.pipeline import search_bits as search_bits
    from .compiler.plan import Plan as Plan
    from .search.result import SearchResult as SearchResult

__version__ = "0.1.0"

_HOME = {
    "Artifact": ".compiler.artifact",
    "BitsmithError": ".compiler.errors",
    "Graph": ".compiler.ir",
    "Plan": ".compiler.plan",
    "SearchResult": ".search.result",
    "bench": ".compiler.pipeline",
    "compile": ".compiler.pipeline",
    "diff": ".compiler.pipeline",
    "evaluate": ".compiler.pipeline",
    "generate": ".compiler.pipeline",
    "inspect": ".compiler.pipeline",
    "load": ".compiler.pipeline",
    "measure": ".compiler.pipeline",
    "open": ".compiler.artifact",
    "report": ".compiler.pipeline",
    "search_bits": ".compiler.pipeline",
}

__all__ = [*_HOME, "errors", "search"]


class _SearchPackage(ModuleType):
    """The package `bitsmith.search`, callable as the function `bitsmith.search(graph, ...)`.

    The function and the package share a name, and importing any `bitsmith.search.x` binds the package to it:
    whatever else were stored there would be overwritten. So the package itself is made callable. That is done
    here and not in the package because the function is defined above it (compiler/pipeline.py). Both uses
    then hold in any order of imports.
    """

    def __call__(self, *args: Any, **options: Any) -> Any:
        return import_module(".compiler.pipeline", __name__).search(*args, **options)

    @property
    def __signature__(self) -> Any:
        inspect = import_module("inspect")  # a slow import that only help() and editors need
        return inspect.signature(import_module(".compiler.pipeline", __name__).search)


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module(".compiler.errors", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


import_module(".search", __name__)
sys.modules[f"{__name__}.search"].__class__ = _SearchPackage
