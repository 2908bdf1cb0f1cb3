"""The verbs: each turns its options into the arguments of the pipeline's function of that name.

Imports of the pipeline stand inside the functions: `bitsmith --help` must not wait for numpy.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConstraintError, DifferenceError, InputError
from . import options as o
from .output import Output

if TYPE_CHECKING:
    from ..frontends.language.model import LanguageModel
    from ..ir import Graph
    from ..pipeline.inspection import ArtifactInfo, ModelInfo
    from ..plan import Plan

OBJECTIVES = ("quality", "latency", "size")
TRIALS = 40
MEASURE_SECONDS = 2.0  # for the latency that compile shows
CODES = ".codes"  # beside an artifact in the making: what goes on from here after a stop


def inspect(
    subject: o.Subject,
    target: o.InspectedFor = None,
    shape: o.Shapes = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Show a model's layers, shapes, cost and what a target makes of them; or what an artifact is."""
    from .. import pipeline
    from ..pipeline.data_files import parse_shapes
    from .tables import inspected

    said = Output(as_json, quiet)
    if (subject / "manifest.json").exists() or not (subject.suffix or subject.exists()):
        # An artifact has no choice of these; pipeline.inspect says so of the target.
        if shape:
            raise InputError(f"{subject} is an artifact: its shapes are fixed. --shape is for models")
        info: ModelInfo | ArtifactInfo = pipeline.inspect(subject, target=target)
    else:
        info = pipeline.inspect(pipeline.load(subject, shapes=parse_shapes(shape or ())), target=target)
    said.emit(info, *inspected(info))


def compile(
    model: o.Model,
    out: o.ArtifactOut,
    plan: o.PlanFile = None,
    uniform: o.UniformChoice = None,
    calibration: o.Calibration = None,
    method: o.Method = None,
    target: o.Target = "host",
    shape: o.Buckets = None,
    context: o.Context = None,
    cache: o.Cache = None,
    keep_codes: o.KeepCodes = False,
    tune: o.Tune = False,
    threads: o.Threads = 1,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Compile a model to an artifact, by a plan or uniformly; for several shapes, if given. Coding of weights
    that was stopped goes on."""
    from .. import pipeline
    from ..frontends.language.model import LanguageModel
    from ..pipeline.data_files import parse_buckets, read_samples, read_text
    from .tables import compiled

    if plan is not None and uniform is not None:
        raise InputError("--plan and --uniform exclude each other: a plan says what every layer becomes")
    said = Output(as_json, quiet)
    pipeline.check_replaceable(out)
    room: dict[str, Any] = {"context": context, "cache": cache and cache.value}
    loaded = pipeline.load(model, shapes=parse_buckets(shape) if shape else None, **room)
    speaks = isinstance(loaded, LanguageModel)
    given = None if calibration is None else (read_text if speaks else read_samples)(calibration)
    kept = out.with_name(out.name + CODES)
    how: dict[str, Any] = {
        "target": target,
        "plan": _plan(loaded, plan, uniform, keep_codes),
        "calibration": given,
        "method": method and method.value,
        "kept": kept,
    }
    if tune and (speaks or not pipeline.runs_here(target)):
        raise InputError(
            "--tune measures float32 and int8 layers on this machine: leave it out for language models, "
            "whose codes have one tile, and for targets of other machines"
        )
    measured = None
    with said.progress() as progress:
        # A language model is not opened here: its weights would be in memory.
        if pipeline.runs_here(target) and not speaks:
            with pipeline.compile(loaded, **how, tune=tune, threads=threads, progress=progress) as made:
                made.save(out)
                measured = pipeline.measure(made, threads=threads, seconds=MEASURE_SECONDS)
        else:
            pipeline.cross_compile(loaded, out, **how, progress=progress)
    shutil.rmtree(kept, ignore_errors=True)
    info = pipeline.inspect(out)
    said.emit({"artifact": info, "measured": measured}, *compiled(info, measured))


def _plan(
    loaded: Graph | tuple[Graph, ...] | LanguageModel,
    plan: Path | None,
    uniform: str | None,
    keep_codes: bool,
) -> Plan | None:
    from ..frontends.language.model import LanguageModel
    from ..pipeline.language_models import entries_of, kept_plan
    from ..plan import Plan

    chosen = None if plan is None else Plan.load(plan)
    if uniform is not None:
        chosen = Plan.uniform(entries_of(loaded)[0][0], uniform)
    if not keep_codes:
        return chosen
    if not isinstance(loaded, LanguageModel):
        raise InputError("--keep-codes is for GGUF files, which hold codes")
    return kept_plan(loaded, chosen)


def search(
    model: o.Model,
    out: o.SearchOut,
    calibration: o.SearchCalibration,
    evaluate: o.Evaluate = None,
    labels: o.Labels = None,
    constraint: o.Bounds = None,
    objective: o.Objectives = None,
    trials: o.Trials = None,
    timeout: o.Timeout = None,
    study: o.Study = None,
    target: o.Target = "host",
    shape: o.Shapes = None,
    weight_format: o.WeightFormats = None,
    losses: o.LossTable = None,
    threads: o.Threads = 1,
    seed: o.Seed = 0,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Choose each layer's data type by measured latency and quality; of a language model its weight format,
    by size and KL. A search that was stopped goes on."""
    from .. import pipeline
    from ..frontends.language.model import is_language_model
    from ..pipeline.data_files import parse_shapes, read_labels, read_samples
    from .bits import FormatSearch, refuse, search_formats
    from .tables import searched

    said = Output(as_json, quiet)
    if is_language_model(model):
        foreign = {"evaluate": evaluate, "labels": labels, "objective": objective, "study": study}
        refuse(foreign | {"shape": shape, "timeout": timeout}, "networks with arrays as inputs")
        wanted = FormatSearch(tuple(constraint or ()), weight_format, losses, trials, target, seed)
        return search_formats(model, out, calibration, wanted, said)
    refuse({"format": weight_format, "losses": losses}, "language models")
    samples, judged = read_samples(calibration), None if evaluate is None else read_samples(evaluate)
    classes = None if labels is None else read_labels(labels)
    graph = pipeline.load(model, shapes=parse_shapes(shape or ()))
    with said.progress() as progress:
        result = pipeline.search(
            graph,
            target=target,
            calibration=samples,
            evaluate=judged,
            labels=classes,
            objectives=tuple(objective or OBJECTIVES),
            constraints=tuple(constraint or ()),
            trials=TRIALS if trials is None else trials,
            timeout=timeout,
            study=study,
            out=out,
            threads=threads,
            seed=seed,
            progress=progress,
        )
    page = pipeline.report(result, out / "report.html")
    said.emit(result, *searched(result, out, page))
    if not result.met:
        raise ConstraintError(f"no plan met {', '.join(result.constraints)}; {out} holds the closest one")


def run(
    artifact: o.ArtifactDir,
    files: o.InputFiles = None,
    values: o.Inputs = None,
    random: o.Random = False,
    pad: o.Pad = False,
    seed: o.Seed = 0,
    out: o.ArraysOut = None,
    threads: o.Threads = 1,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Run an artifact once on arrays from files, and show or store its outputs."""
    from .. import pipeline
    from ..pipeline.data_files import read_array, read_named, write_arrays
    from ..pipeline.feeds import entry_used, random_feed, signature
    from .tables import outputs, told_entry

    if bool(files or values) == random:
        raise InputError("give a .npy file for each input, in order or as --input name=file.npy, or --random")
    said = Output(as_json, quiet)
    with pipeline.open(artifact) as opened:
        opened.set_threads(threads)
        feed = random_feed(signature(opened).inputs, seed) if random else read_named(values or ())
        arrays = [read_array(file) for file in files or ()]
        given = {spec.name: array for spec, array in zip(opened.inputs, arrays, strict=False)} | feed
        if pad:
            arrays, feed = [], opened.padded(*arrays, **feed)
        results = pipeline.run(opened, *arrays, **feed)
        used = entry_used(opened, {**given, **feed}, given)
    if out is not None:
        write_arrays(out, results)
    data, shown = outputs(results, out)
    said.emit({**data, **used}, *told_entry(used), shown)


def bench(
    artifacts: o.Artifacts,
    against: o.Against = None,
    model: o.OnnxFile = None,
    data: o.BenchInputs = None,
    threads: o.ThreadCounts = "1",
    repeats: o.Repeats = 100,
    seconds: o.Seconds = None,
    profile: o.Profile = False,
    shape: o.Shapes = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Time artifacts, or models in float32, in turns, beside each other and beside ONNX Runtime."""
    from .. import pipeline
    from ..pipeline.data_files import parse_shapes, parse_threads, read_samples
    from .tables import benched

    said = Output(as_json, quiet)
    result = pipeline.bench(
        artifacts,
        against=against or (),
        model=model,
        inputs=None if data is None else read_samples(data),
        threads=parse_threads(threads),
        repeats=repeats,
        seconds=seconds,
        profile=profile,
        shapes=parse_shapes(shape or ()),
    )
    said.emit(result, *benched(result))


def diff(
    model: o.Model,
    artifact: o.ArtifactDir,
    data: o.BenchInputs = None,
    tolerance: o.Tolerance = 1e-4,
    least_sqnr: o.LeastSqnr = None,
    shape: o.Shapes = None,
    entry: o.Entry = 0,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Find the first layer of an artifact that departs from its model, in float32 and in int8; exits with 11
    when one does.
    """
    from .. import pipeline
    from ..pipeline.data_files import parse_shapes, read_samples
    from .diff_table import compared, verdict

    said = Output(as_json, quiet)
    samples = None if data is None else read_samples(data)
    shapes = parse_shapes(shape or ())
    if shapes and entry:
        raise InputError("--shape and --entry are two ways to say which shapes to compare: give one")
    graphs = (pipeline.load(model, shapes=shapes),) if shapes else pipeline.load_like(model, artifact, entry)
    with said.progress() as progress:
        result = pipeline.diff(
            graphs,
            artifact,
            inputs=samples,
            tolerance=tolerance,
            least_sqnr=least_sqnr,
            progress=progress,
        )
    said.emit(result, *compared(result))
    if not result.ok:
        raise DifferenceError(f"{artifact} departs from {model}: {'; '.join(verdict(result))}")


def report(
    result: o.Result,
    out: o.PageOut = Path("report.html"),
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Write a search's result as one HTML page that needs no network."""
    from .. import pipeline

    page = pipeline.report(result, out)
    Output(as_json, quiet).emit({"report": page}, f"wrote {page}")


def targets(as_json: o.AsJson = False, quiet: o.Quiet = False, debug: o.Debug = False) -> None:
    """List what can be compiled for, and what this machine runs."""
    from .. import pipeline
    from .tables import listed_targets

    found = pipeline.targets()
    Output(as_json, quiet).emit(found, listed_targets(found))
