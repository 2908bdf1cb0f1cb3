"""Imports follow the rows of the table in ARCHITECTURE.md, which is read from there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOPS = ("compiler", "passes", "search", "targets")
THE_ROOT = "the package root"


def read_rows(text: str) -> dict[str, int]:
    """`{"compiler/errors": 0, ...}` from the table's lines `| row | module, module |`."""
    rows: dict[str, int] = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"\|\s*(\d+)\s*\|(.*)\|", line):
            for name in match[2].split(","):
                assert name.strip() not in rows, f"ARCHITECTURE.md lists {name.strip()} twice"
                rows[name.strip()] = int(match[1])
    return rows


def row_of(module: str, rows: dict[str, int]) -> int | None:
    """The row of `compiler/ops/conv`: its own, or that of the nearest package around it."""
    parts = module.split("/")
    for length in range(len(parts), 0, -1):
        if (row := rows.get("/".join(parts[:length]))) is not None:
            return row
    return None


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package: `compiler/ops/conv` -> file; a package's own code is `compiler/ops`."""
    found = {THE_ROOT: root / "__init__.py"}
    for top in TOPS:
        for file in sorted((root / top).rglob("*.py")):
            name = file.relative_to(root).with_suffix("").as_posix().removesuffix("/__init__")
            found[name] = file
    return found


def imports(name: str, file: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """(line, module of ours) for each import of our own modules, wherever in the file it stands."""
    package = [] if name == THE_ROOT else name.split("/")
    if file.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "bitsmith":
                    yield node.lineno, "/".join(alias.name.split(".")[1:]) or THE_ROOT
        elif isinstance(node, ast.ImportFrom) and (base := _base(node, package)) is not None:
            for alias in node.names:
                inner = "/".join([*base, alias.name])
                yield node.lineno, inner if inner in known else "/".join(base) or THE_ROOT


def _base(node: ast.ImportFrom, package: list[str]) -> list[str] | None:
    inside = (node.module or "").split(".") if node.module else []
    if node.level == 0:
        return inside[1:] if inside[:1] == ["bitsmith"] else None
    return [*package[: len(package) - node.level + 1], *inside]


def violations(root: Path, rows: dict[str, int]) -> list[str]:
    known = modules(root)
    wrong = []
    for name, file in known.items():
        if (own := row_of(name, rows)) is None:
            if _has_code(file):
                wrong.append(f"{file.relative_to(root)}:1: in no row of the table in ARCHITECTURE.md; add it")
            continue
        for line, target in imports(name, file, known):
            row = row_of(target, rows)
            if row is None and _has_code(known.get(target, file)):
                wrong.append(f"{file.relative_to(root)}:{line}: imports {target}, which is in no row")
            elif row is not None and row > own:
                wrong.append(
                    f"{file.relative_to(root)}:{line}: row {own} imports {target} of row {row}. "
                    f"Data flows one way: pass what is needed as an argument, or move the code to row {row}"
                )
    return list(dict.fromkeys(wrong))


def _has_code(file: Path) -> bool:
    """Package markers that hold a docstring only belong to no row."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body)


def test_imports_go_one_way():
    rows = read_rows((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    assert len(rows) > 10, "the table of layers in ARCHITECTURE.md was not found"
    wrong = violations(ROOT, rows)
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "__init__.py").write_text('"""root"""\n')
    for top in TOPS:
        (tmp_path / top).mkdir()
        (tmp_path / top / "__init__.py").write_text('"""marker"""\n')
    (tmp_path / "compiler" / "ir.py").write_text("")
    return tmp_path


TABLE = "| 0 | compiler/ir |\n| 1 | passes |\n| 2 | search |\n| 3 | the package root |"


@pytest.mark.parametrize(
    "statement",
    [
        "from ..search import x",
        "from .. import search",
        "from ..search.study import x",
        "import bitsmith.search",
        "from bitsmith.search import x",
        "import bitsmith",
        "from .. import Graph",
        "def f():\n    from ..search import x",
        "if TYPE_CHECKING:\n    from ..search import x",
        "try:\n    import bitsmith.search.study as s\nexcept ImportError:\n    s = None",
    ],
)
def test_an_upward_import_is_found_wherever_it_hides(tree, statement):
    (tree / "passes" / "fuse.py").write_text("import os\n" + statement + "\n")
    (wrong,) = violations(tree, read_rows(TABLE))
    assert wrong.startswith("passes/fuse.py:") and "row 1 imports" in wrong


def test_downward_and_level_imports_are_fine(tree):
    (tree / "passes" / "fold.py").write_text(
        "import numpy\nfrom search import elsewhere\nfrom ..compiler import ir\n"
    )
    (tree / "passes" / "fuse.py").write_text("from . import fold\nfrom ..compiler.ir import Graph\n")
    assert violations(tree, read_rows(TABLE)) == []


def test_a_module_in_no_row_is_reported(tree):
    (tree / "compiler" / "stray.py").write_text("x = 1\n")
    (wrong,) = violations(tree, read_rows(TABLE))
    assert wrong.startswith("compiler/stray.py:1: in no row")
