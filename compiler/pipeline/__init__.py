"""The library functions: what `bitsmith.load`, `compile`, `search`... are, and what the command line calls.

models.py        load, compile and cross_compile
buckets.py       one model for several shapes
ledger_rows.py   the ledger of a compiled model
searching.py     search and report
bit_searching.py   search_bits: weight formats for language models
measuring.py     run and measure
benchmark.py     bench, with the speeds of language models (speeds.py)
inspection.py    inspect, targets and runs_here
diffing.py       diff, and the artifact's graph for it (exposing.py)
feeds.py         inputs to time a model on
reading.py       a language model's artifact and the text that it has read
generating.py    generate
evaluating.py    evaluate
data_files.py    arrays and options as the command line names them
onnx_peer.py     ONNX Runtime, to compare with
"""

from ..artifact import check_replaceable, open
from .benchmark import bench
from .bit_searching import search_bits
from .diffing import diff, load_like
from .evaluating import evaluate
from .generating import generate
from .inspection import inspect, runs_here, targets
from .measuring import measure, run
from .models import compile, cross_compile, load
from .searching import report, search

__all__ = [
    "bench",
    "check_replaceable",
    "compile",
    "cross_compile",
    "diff",
    "evaluate",
    "generate",
    "inspect",
    "load",
    "load_like",
    "measure",
    "open",
    "report",
    "run",
    "runs_here",
    "search",
    "search_bits",
    "targets",
]
