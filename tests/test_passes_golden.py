"""Every pass on small graphs: what it makes of them, word for word, and that they still compute the same."""

import os

import pytest
from bitsmith.compiler.text import print_graph
from bitsmith.compiler.verify import verify
from bitsmith.passes.simplify_moves import simplify_moves
from golden_passes import FOLDER, PASSES, SEPARATOR, assert_equal_outputs, graph_from_text

FILES = [file for name in PASSES for file in sorted((FOLDER / name).glob("*.txt"))]
CASES = [file.relative_to(FOLDER).with_suffix("").as_posix() for file in FILES]


def test_every_pass_has_a_golden_text():
    assert {case.split("/")[0] for case in CASES} == set(PASSES)


@pytest.mark.parametrize("case", CASES)
def test_golden(case):
    file = FOLDER / f"{case}.txt"
    source, _, wanted = file.read_text(encoding="utf-8").partition(SEPARATOR)
    before = graph_from_text(source)
    after = verify(PASSES[case.split("/")[0]](before), case)
    found = print_graph(after)
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(print_graph(before) + SEPARATOR + found, encoding="utf-8")
    else:
        assert print_graph(before) == source, "write the first graph as print_graph does"
        assert found == wanted
    assert_equal_outputs(before, after)


@pytest.mark.parametrize("case", CASES)
def test_a_pass_has_nothing_left_to_do_after_itself(case):
    source = (FOLDER / f"{case}.txt").read_text(encoding="utf-8").partition(SEPARATOR)[0]
    run = PASSES[case.split("/")[0]]
    once = simplify_moves(run(graph_from_text(source)))
    assert print_graph(simplify_moves(run(once))) == print_graph(once)
