"""The tables of losses that a search over weight formats can start from, compared on one language model.

    python benchmarks/loss_tables.py                        SmolLM2-135M, plans of 3.25 bits
    python benchmarks/loss_tables.py --model m.gguf --bits 3.0 --text book.txt

For each kind (search/bits/tables.py): how well its ranking of the layers' units agrees with that of measured
KL (Spearman's rho, in the format of about four bits that KL was measured in), and the KL of the exact
allocation for it, on text that no table saw. What is finished is kept in out/loss_tables: a second start goes
on. The measured table takes a run of the judge for each unit, an hour for SmolLM2 on one core.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bitsmith.compiler.errors import BitsmithError
from bitsmith.compiler.formats import Format, format_of
from bitsmith.compiler.frontends.language.model import LanguageModel, load_language_model
from bitsmith.compiler.pipeline.bit_searching import FORMATS, text_windows
from bitsmith.search.bits.bounds import parse_bound
from bitsmith.search.bits.search import BitSearch, BitSettings, probe_of
from bitsmith.search.bits.tables import KINDS
from language_models import TEXTS, smollm
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
MEASURED = "measured"


@dataclass(frozen=True)
class Compared:
    """`rho`: rank correlation with measured KL over units; `predicted` by the table (no KL, but for curvature
    and measured) and `kl` measured, nats per token, of its exact allocation of `bits` per weight."""

    kind: str
    rho: float
    bits: float
    predicted: float
    kl: float


def compared(
    model: LanguageModel,
    text: str,
    bits: float,
    formats: Sequence[str],
    tokens: int,
    folder: Path,
    report: Callable[[str, int, int], None],
) -> tuple[Compared, ...]:
    """One for each kind of table. Raises BitsmithError."""
    table_runs, judge_runs = text_windows(model, text, tokens)
    graph = model.graph_whole(len(table_runs[0]["tokens"]))
    known = tuple(map(format_of, formats))
    tables, found = {}, {}
    for kind in KINDS:
        settings = BitSettings(parse_bound([f"bits<={bits:g}"]), known, kind, trials=1, seed=0)
        search = BitSearch(graph, table_runs, judge_runs, settings, folder / kind, report)
        found[kind] = search.best(0, 0), search.coded_weights
        tables[kind] = search.table
    probe, rows = probe_of(known), []
    for kind, (trial, weights) in found.items():
        assert trial is not None, "a bound on bits that nothing keeps is refused before"
        rho = agreement(tables[kind], tables[MEASURED], probe)
        rows.append(Compared(kind, rho, 8 * trial.bytes / weights, trial.predicted, trial.kl))
    return tuple(rows)


Table = Mapping[str, Mapping[Format, float]]


def agreement(table: Table, other: Table, format: Format) -> float:
    """Spearman's rho of two tables' losses of the units in one format."""
    from scipy.stats import spearmanr

    units = list(table)
    return float(spearmanr([table[u][format] for u in units], [other[u][format] for u in units]).statistic)


def markdown(rows: Sequence[Compared]) -> str:
    lines = ["| table of losses | rho with measured KL | bits | KL of its plan |", "|---|---|---|---|"]
    lines += [f"| {row.kind} | {row.rho:.2f} | {row.bits:.3f} | {row.kl:.4f} |" for row in rows]
    return "\n".join([*lines, ""])


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, help="a checkpoint; default: SmolLM2-135M from its package")
    add("--text", type=Path, default=TEXTS / "alice_first_chapters.txt")
    add("--bits", type=float, default=3.25)
    add("--format", nargs="+", default=list(FORMATS))
    add("--tokens", type=int, default=4096, help="of the text; a quarter judges (4096)")
    add("--out", type=Path, default=ROOT / "out" / "loss_tables")
    chosen, notes = parser.parse_args(words), Console(stderr=True, soft_wrap=True)

    def report(stage: str, done: int, total: int) -> None:
        notes.print(f"{stage}: {done}/{total}", markup=False)

    try:
        model = load_language_model(chosen.model or smollm())
        text = chosen.text.read_text(encoding="utf-8")
        rows = compared(model, text, chosen.bits, chosen.format, chosen.tokens, chosen.out, report)
    except (BitsmithError, OSError) as error:
        notes.print(f"loss_tables: error: {error}", markup=False)
        return getattr(error, "exit_code", 1)
    facts = json.dumps([asdict(row) for row in rows], indent=1)
    (chosen.out / "table.json").write_text(facts, encoding="utf-8")
    Console(soft_wrap=True).print(markdown(rows), markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
