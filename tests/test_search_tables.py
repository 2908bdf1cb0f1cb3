"""A search decides about large tables of embeddings too: rows of int8 are what uniform int8 makes of them."""

import numpy as np
from bitsmith.compiler.artifact import open as open_artifact
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.database import Database
from bitsmith.compiler.plan import TABLE_INT8, Plan
from bitsmith.compiler.reference import run_reference
from bitsmith.passes.prepare import prepare
from bitsmith.search.run import search

WORDS, WIDTH = 1100, 64


def network():
    rng = np.random.default_rng(0)
    b = GraphBuilder("words")
    tokens = b.input("tokens", (1, 8), "int64")
    table = b.param("table", rng.standard_normal((WORDS, WIDTH)).astype(np.float32))
    rows = b.add("gather", [table, tokens], name="embedding", axis=0)
    weight = b.param("w", (rng.standard_normal((10, WIDTH)) / 8).astype(np.float32))
    return b.finish([b.add("linear", [rows, weight], name="head")])


def test_the_smallest_plan_has_a_table_of_int8(tmp_path):
    graph = network()
    tokens = np.random.default_rng(1).integers(0, WORDS, (24, 8))
    result = search(
        graph,
        calibration=tokens[:8],
        evaluate=tokens[8:],
        constraints=["sqnr>=25"],
        objectives=["size"],
        trials=1,
        out=tmp_path / "out",
        database=Database(tmp_path / "times.db"),
    )
    uniform = Plan.uniform(prepare(graph), "int8", result.int8.plan.calibration)
    assert dict(result.int8.plan.layers) == dict(uniform.layers)
    assert uniform.choice("embedding") == TABLE_INT8
    assert result.met and result.best.plan.choice("embedding") == TABLE_INT8
    assert result.best.size_bytes < result.float32.size_bytes - 2 * 4 * WORDS * WIDTH / 3
    row = next(row for row in result.ledger if row.layer == "embedding")
    assert row.choice == TABLE_INT8 and row.weight_bytes == WORDS * (WIDTH + 4)
    with open_artifact(result.best.artifact) as artifact:
        found = artifact.run(tokens=tokens[:1])["head"]
    wanted = run_reference(graph, {"tokens": tokens[:1]})["head"]
    assert np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(wanted)
