"""What must start fast imports little, and the public names hold in any order of imports."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    "torch",
    "tvm",
    "tvm_ffi",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "optuna",
    "plotly",
    "networkx",
}


def python(code: str, cwd: Path) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def third_party(statement: str, cwd: Path) -> set[str]:
    """Top-level modules outside the standard library that a statement loads in a fresh interpreter."""
    code = (
        "import json, sys\nbefore = set(sys.modules)\n"
        f"{statement}\n"
        "loaded = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(json.dumps(sorted(loaded - sys.stdlib_module_names - {'bitsmith'})))"
    )
    return set(json.loads(python(code, cwd).splitlines()[-1]))


def test_the_probe_sees_an_import(tmp_path):
    assert "numpy" in third_party("import numpy", tmp_path)


def test_import_bitsmith_needs_nothing(tmp_path):
    assert third_party("import bitsmith", tmp_path) == set()


@pytest.mark.parametrize(
    "statement",
    [
        "import bitsmith; bitsmith.open; bitsmith.Artifact",
        "import bitsmith.compiler.artifact",
        "from bitsmith import Graph, Plan, errors",
    ],
)
def test_running_an_artifact_needs_numpy_only(statement, tmp_path):
    assert third_party(statement, tmp_path) <= {"numpy"}


def test_help_loads_nothing_heavy(tmp_path):
    statement = (
        "from bitsmith.compiler.cli import main\nsys.argv = ['bitsmith', '--help']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code"
    )
    loaded = third_party(statement, tmp_path)
    assert not loaded & HEAVY


def test_every_public_name_resolves():
    import bitsmith

    for name in bitsmith.__all__:
        assert getattr(bitsmith, name) is not None
        assert name in dir(bitsmith)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = bitsmith.no_such_name


def test_type_checkers_see_the_same_names():
    import bitsmith

    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    homes = {name: home.lstrip(".") for name, home in bitsmith._HOME.items()}
    assert seen == {**homes, "errors": "compiler", "search": "compiler.pipeline"}


FAKE_PIPELINE = """
import sys, types
fake = types.ModuleType("bitsmith.compiler.pipeline")
def search(graph, *, trials=3): return ("searched", graph, trials)
fake.search = search
sys.modules["bitsmith.compiler.pipeline"] = fake
"""

CHECK_SEARCH = """
import inspect
assert bitsmith.search("graph", trials=7) == ("searched", "graph", 7)
assert list(inspect.signature(bitsmith.search).parameters) == ["graph", "trials"]
assert sys.modules["bitsmith.search"] is bitsmith.search
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import bitsmith",
        "import bitsmith.search",
        "import bitsmith\nimport bitsmith.search",
        "import bitsmith, importlib\nimportlib.import_module('bitsmith.search.result')",
        "from bitsmith.search.result import SearchResult\nimport bitsmith",
        "import bitsmith.search.result as r\nimport bitsmith\nassert r.SearchResult is bitsmith.SearchResult",
        "import bitsmith\nfrom bitsmith import search\nassert search is bitsmith.search",
        "import bitsmith, importlib\nimportlib.reload(bitsmith.search)\nimportlib.reload(bitsmith)",
    ],
)
def test_search_is_a_function_and_a_package_in_any_order(imports, tmp_path):
    assert python(FAKE_PIPELINE + imports + CHECK_SEARCH + "print('held')", tmp_path) == "held\n"


def test_folders_of_the_same_name_do_not_shadow(tmp_path):
    for name in ("search", "tests", "compiler", "passes", "targets"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong folder')")
    names = "bitsmith, bitsmith.search, bitsmith.compiler.ir, bitsmith.targets, bitsmith.passes"
    found = python(f"import sys, {names}\nprint(*(m.__file__ for m in ({names})))", tmp_path).split()
    assert len(found) == 5 and not any(file.startswith(str(tmp_path)) for file in found)


def test_open_loads_little_of_ours_and_no_compression_formats(tmp_path):
    """What a deployed program waits for at every start."""
    code = (
        "import sys, numpy\nbefore = set(sys.modules)\nimport bitsmith\nbitsmith.open\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = set(python(code, tmp_path).split())
    ours = {name for name in loaded if name.split(".")[0] == "bitsmith"} - {"bitsmith", "bitsmith.search"}
    artifact = {f"artifact{part}" for part in ("", ".artifact", ".manifest", ".native", ".store")}
    assert ours == {"bitsmith.compiler", *(f"bitsmith.compiler.{name}" for name in {"errors", *artifact})}
    assert not loaded & {"shutil", "lzma", "bz2"}


def test_generating_kernels_leaves_torch_alone(tmp_path):
    loaded = third_party("import bitsmith.targets.kernels.table", tmp_path)
    assert "tvm" in loaded and "torch" not in loaded


def test_torch_is_found_after_tvm_and_by_other_threads(tmp_path):
    code = (
        "import threading, bitsmith.targets.tvm_alone as alone\n"
        "def other(): import torch; print(torch.ones(2).sum().item())\n"
        "with alone.without_torch():\n"
        "    try: import torch\n"
        "    except ModuleNotFoundError: print('none')\n"
        "    thread = threading.Thread(target=other); thread.start(); thread.join()\n"
    )
    assert python(code, tmp_path).split() == ["none", "2.0"]
