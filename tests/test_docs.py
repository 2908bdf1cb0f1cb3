"""docs/api.md says what the code does: signatures, exit codes, verbs, fields of the files."""

import dataclasses
import inspect
import re
from pathlib import Path

import bitsmith
import pytest
from bitsmith.compiler import errors
from bitsmith.compiler.analysis.difference import LayerDifference
from bitsmith.compiler.artifact import ArraySpec, Artifact, Manifest
from bitsmith.compiler.cli import app
from bitsmith.compiler.ledger import LedgerRow
from bitsmith.compiler.measure import Latency, Quality
from bitsmith.compiler.pipeline import cross_compile
from bitsmith.compiler.pipeline.diffing import DiffReport
from bitsmith.compiler.plan import Plan
from bitsmith.search.objectives import parse_constraint
from bitsmith.search.result import Candidate, SearchResult

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
FUNCTIONS = ("load", "compile", "open", "search", "measure", "bench", "diff", "inspect", "report")


def bare(function) -> str:
    """A signature without types, as the document writes it."""
    parameters = [
        p.replace(annotation=inspect.Parameter.empty) for p in inspect.signature(function).parameters.values()
    ]
    return str(inspect.Signature(parameters))


def section(title: str) -> str:
    return re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", TEXT, re.S | re.M)[1]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_are_the_codes(name):
    written = re.search(r"```python\n(.*?)\n```", section(name), re.S)[1]
    assert written.split(" -> ")[0] == name + bare(getattr(bitsmith, name))


def test_cross_compile_is_written_as_it_is():
    assert f"cross_compile{bare(cross_compile)} -> Path" in TEXT


def names_in_tables(text: str) -> list[str]:
    """The names in the first column: of `plan.choice(layer) -> str` it is choice."""
    cells = re.findall(r"^\| (`.*?) \|", text, re.M)
    return [
        re.match(r"(?:\w+\.)?(\w+)", code)[1] for cell in cells for code in re.findall(r"`([^`]+)`", cell)
    ]


def field_names(*kinds: type) -> list[str]:
    return [field.name for kind in kinds for field in dataclasses.fields(kind)]


def test_members_exist():
    own = {*dir(Artifact), "manifest", "path"}
    assert set(names_in_tables(section("Artifact"))) <= own
    assert set(names_in_tables(section("Plan"))) <= {*dir(Plan), *field_names(Plan)}
    told = set(names_in_tables(section("Latency and Quality"))) - {"Latency", "Quality"}
    assert told <= set(field_names(Latency, Quality)) and len(told) > 9
    compared = set(re.findall(r"`(\w+)`", section("diff")))
    assert set(field_names(DiffReport, LayerDifference)) <= compared
    search = set(re.findall(r"`(\w+)`", section("search")))
    assert {"best", "front", "ledger", "trials", "met", "notes"} <= search & {*field_names(SearchResult)}
    assert set(field_names(Candidate)) <= search


def test_exit_codes_are_those_of_the_errors():
    written = dict(re.findall(r"^\| (\d+) \| `(\w+)` \|", section("Errors and exit codes"), re.M))
    kinds = [k for k in vars(errors).values() if inspect.isclass(k) and k is not errors.BitsmithError]
    assert written == {str(k.exit_code): k.__name__ for k in kinds}


def test_every_verb_is_listed():
    written = set(re.findall(r"^\| `bitsmith (\w+)", section("Command line"), re.M))
    assert written == {command.name for command in app.registered_commands}


def test_bounds_parse():
    bounds = re.findall(r"\w+(?:>=|<=)[\d.]+\w*", section("Bounds"))
    assert len(bounds) > 8
    assert [parse_constraint(bound).text for bound in bounds] == bounds


def test_fields_of_the_files_are_listed():
    manifest, ledger = section("manifest.json").split("A row of `ledger`")
    assert set(field_names(Manifest, ArraySpec)) <= set(re.findall(r"`(\w+)`", manifest))
    assert names_in_tables(ledger) == field_names(LedgerRow)


def test_the_plan_in_the_document_is_a_plan():
    plan = Plan.from_text(re.search(r"```json\n(.*?)```", section("plan.json"), re.S)[1])
    assert plan.layers == {"stem": "float32", "head": "int8"}
