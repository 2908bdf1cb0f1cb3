"""The tree is clean: ruff, mypy, and files and functions of a size that one can read."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ("compiler", "passes", "search", "targets")
SCRIPTS = ("examples", "benchmarks")
FILE_LINES = {"tests": 600}
MOST_FILE_LINES = 350
MOST_FUNCTION_LINES = 60
SOURCES = (".py", ".c", ".h", ".cc", ".cpp")


def complaints(*command: str, cwd: Path = ROOT, **environment: str) -> str:
    """What a checker says when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    return f"{' '.join(command)}\n{done.stdout}\n{done.stderr}" if done.returncode else ""


def sources(*suffixes: str) -> list[Path]:
    tops = (*PACKAGE, *SCRIPTS, "tests")
    inside = [file for top in tops for file in sorted((ROOT / top).rglob("*")) if file.suffix in suffixes]
    return [ROOT / "__init__.py", *inside]


def overlong_files(files: list[Path], root: Path) -> list[str]:
    wrong = []
    for file in files:
        lines = len(file.read_text(encoding="utf-8").splitlines())
        most = FILE_LINES.get(file.relative_to(root).parts[0], MOST_FILE_LINES)
        if lines > most:
            wrong.append(f"{file.relative_to(root)}: {lines} lines, at most {most}; split it by concept")
    return wrong


def overlong_functions(files: list[Path], root: Path) -> list[str]:
    wrong = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MOST_FUNCTION_LINES:
                    place = f"{file.relative_to(root)}:{node.lineno}"
                    wrong.append(f"{place}: {node.name} has {lines} lines, at most {MOST_FUNCTION_LINES}")
    return wrong


def test_ruff_finds_nothing():
    said = complaints("ruff", "check", ".")
    assert not said, said


def test_ruff_would_format_nothing():
    said = complaints("ruff", "format", "--check", ".")
    assert not said, said


@pytest.fixture
def typed_tree(tmp_path):
    """The package under its import name: on disk its folders lie at the top of the repository."""
    package = tmp_path / "bitsmith"
    package.mkdir()
    for name in ("__init__.py", "py.typed", *PACKAGE):
        (package / name).symlink_to(ROOT / name)
    for name in SCRIPTS:
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def test_types_hold(typed_tree):
    mypy = ("mypy", f"--config-file={ROOT / 'pyproject.toml'}", f"--cache-dir={ROOT / '.mypy_cache'}")
    said = complaints(*mypy, "-p", "bitsmith", cwd=typed_tree, MYPYPATH=str(typed_tree))
    assert not said, said
    for folder in SCRIPTS:
        scripts = [f"{folder}/{file.name}" for file in sorted((ROOT / folder).glob("*.py"))]
        if scripts:
            path = os.pathsep.join([str(typed_tree), str(typed_tree / folder)])
            loose = (*mypy, "--explicit-package-bases")
            said = complaints(*loose, *scripts, cwd=typed_tree, MYPYPATH=path)
            assert not said, said


def test_files_are_short():
    assert not overlong_files(sources(*SOURCES), ROOT)


def test_functions_are_short():
    assert not overlong_functions(sources(".py"), ROOT)


def test_the_limits_bite(tmp_path):
    (tmp_path / "tests").mkdir()
    long = tmp_path / "long.py"
    long.write_text("def f():\n" + "    pass\n" * MOST_FILE_LINES)
    test = tmp_path / "tests" / "test_long.py"
    test.write_text("x = 1\n" * 601)
    fine = tmp_path / "tests" / "test_fine.py"
    fine.write_text("x = 1\n" * 600)
    wrong = overlong_files([long, test, fine], tmp_path)
    assert [line.split(":")[0] for line in wrong] == ["long.py", "tests/test_long.py"]
    assert len(overlong_functions([long, fine], tmp_path)) == 1
