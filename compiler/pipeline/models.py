"""From a model file to a Graph, and from a Graph to an Artifact."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np

from ..artifact import Artifact, read_manifest
from ..artifact.manifest import MANIFEST
from ..errors import InputError, ModelError, TargetError
from ..files import write_whole
from ..ir import Graph
from ..ledger import LedgerRow
from ..plan import Plan, free_layers_of
from ..samples import Samples, iterate
from .buckets import check_alike, share_params
from .coding import Coding
from .feeds import random_feed
from .language_models import entries_of
from .ledger_rows import layer_times, rows_of
from .tuning import tuned

if TYPE_CHECKING:
    from ...search.result import Candidate
    from ...targets.target import Target
    from ..calibrate import Ranges
    from ..formats import Coded
    from ..frontends.language.model import LanguageModel

PathLike = str | os.PathLike[str]
Shapes: TypeAlias = "Mapping[str, int | Sequence[int]]"
PlanLike: TypeAlias = "Plan | Candidate | PathLike"
Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)`."""
PROFILE_REPEATS = 20


@overload
def load(
    source: Any,
    *,
    shapes: Shapes | None = None,
    inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    constants: Mapping[str, Any] | None = None,
) -> Graph: ...
@overload
def load(
    source: Any,
    *,
    shapes: Sequence[Shapes],
    inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    constants: Mapping[str, Any] | None = None,
) -> tuple[Graph, ...]: ...
@overload
def load(source: PathLike, *, context: int, cache: str | None = None) -> LanguageModel: ...
def load(
    source: Any,
    *,
    shapes: Shapes | Sequence[Shapes] | None = None,
    inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    constants: Mapping[str, Any] | None = None,
    context: int | None = None,
    cache: str | None = None,
) -> Graph | tuple[Graph, ...] | LanguageModel:
    """The graph of an ONNX file, an `onnx.ModelProto` or a `torch.nn.Module`, with static shapes; or the
    language model of a checkpoint: a Hugging Face directory (config.json, safetensors) or a .gguf file.

    shapes  sizes that the model leaves open: `{"image": (1, 3, 224, 224)}` for a whole input, `{"batch": 1}`
            for a named dimension; or a list of such: a graph for each, to `compile` into one artifact
    inputs  example inputs, in order or by name: what a torch module is traced with
    constants
            values of inputs of an ONNX model that are the same in every run, such as the target of a Reshape:
            they are compiled in, and are no inputs of the result
    context of a language model: tokens that it has room for, at most those that it was made for; 2048 or less
            when None
    cache   what it keeps of them: "float16", "int8" or "float32" keys and values; None: float32, and float16
            once `compile` gets a plan that compresses the model

    A checkpoint's weights are read when they are used. Raises InputError, ModelError (not a valid model) or
    UnsupportedError (lists all that cannot be compiled).
    """
    from ..frontends import load_model
    from ..frontends.language.model import is_language_model, load_language_model

    if is_language_model(source):
        if shapes or inputs is not None or constants:
            raise InputError(
                f"{source} is a language model: its shapes follow from context=, its inputs are known"
            )
        return load_language_model(source, context=context, cache=cache)
    if context is not None or cache is not None:
        if isinstance(source, str | Path) and not Path(source).exists():
            raise ModelError(f"{source}: no such file")
        given = source if isinstance(source, str | Path) else type(source).__name__
        raise InputError(
            f"{given} is no language model, for which context and cache are: those are directories with a "
            "config.json, and .gguf files"
        )
    if shapes is None or isinstance(shapes, Mapping):
        return load_model(source, shapes=shapes, inputs=inputs, constants=constants)
    if not shapes:
        raise InputError("shapes is an empty list: give the sizes of each graph")
    graphs = (load_model(source, shapes=one, inputs=inputs, constants=constants) for one in shapes)
    return share_params(graphs)


def compile(
    graph: Graph | Sequence[Graph] | LanguageModel,
    *,
    target: str = "host",
    plan: PlanLike | None = None,
    calibration: Samples | str | None = None,
    coded: Mapping[str, Coded] | None = None,
    method: str | None = None,
    kept: PathLike | None = None,
    tune: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """The compiled model, opened, in a temporary directory: `Artifact.save` keeps it.

    graph        or several of one model for different shapes (`load` with a list): the artifact has an entry
                 for each, on the same weights, and a run takes the one whose shapes its inputs have. Of a
                 language model: one token, a chunk of a prompt, a chunk with the logits of all its tokens
    target       what to compile for; "host" is this machine, `targets()` lists the rest
    plan         what each layer becomes: a Plan, a plan file, or a search's candidate (`result.best`);
                 None leaves every layer float32
    calibration  sample inputs (compiler/samples.py says in which forms); needed when the plan has int8
                 layers. Of several graphs the first is calibrated, and its ranges serve all. Of a language
                 model a text, whose first 8192 tokens its weights are coded for
    coded        codes of layers that the plan gives a weight format; the weights of others are taken from a
                 GGUF file that has the format, else coded here
    method       how: "round", "search", "hqq" or "compensate" (passes/encode_layers.py); by default
                 compensate with calibration, search without, and formats of 8 bits are rounded
    kept         folder for the codes of finished layers: a run that was stopped goes on there
    tune         measure several register tiles of each convolution and linear layer on this machine and take
                 the fastest, if the whole model is faster then; a minute or two at the first time
    threads      threads of a run (1 when None); `Artifact.set_threads` changes it

    The same graph, plan, calibration and target give the same library and weights, but for `tune`. The ledger
    is that of the first graph; its times come from one profile, one thread. Raises PlanError, InputError,
    TargetError (among others for a target that this machine cannot run: `cross_compile` is for those),
    UnsupportedError.
    """
    from ...targets.build import build
    from ...targets.select_planes import form_reasons

    chip, report = _running_here(target), progress or _silent
    asked = _given(plan)
    graphs, language = entries_of(graph, asked)
    coding = Coding(graph, coded, calibration, method, kept)
    (planned, *others), chosen, ranges = _planned(graphs, asked, coding, report, chip)
    given: dict[str, Any] = {"others": others, "plan": chosen.to_json(), "ranges": ranges, **language}

    def made(chip: Target) -> Artifact:
        return build(planned, chip, **given, progress=_stage(report, "compiling kernels"))

    feed = _first_feed(graphs[0], coding.samples)
    artifact, forms = made(chip), form_reasons(planned, chip.isa)
    if tune:
        artifact, tiles = tuned((planned, *others), chip, artifact, made, feed, _stage(report, "tuning"))
        forms |= tiles
    times = layer_times(artifact, feed, PROFILE_REPEATS)
    artifact = _with_ledger(artifact, rows_of(planned, chosen, times, _reason(plan), forms))
    artifact.set_threads(1 if threads is None else threads)
    return artifact


def cross_compile(
    graph: Graph | Sequence[Graph] | LanguageModel,
    out: PathLike,
    *,
    target: str,
    plan: PlanLike | None = None,
    calibration: Samples | str | None = None,
    coded: Mapping[str, Coded] | None = None,
    method: str | None = None,
    kept: PathLike | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes the compiled model to the directory `out` and returns its path; the target may be another
    machine's.

    As `compile`, but the ledger has no times. Raises OutputError besides.
    """
    from ...targets.build import write
    from ...targets.select_planes import form_reasons
    from ...targets.target import resolve

    chip = resolve(target)
    report = progress or _silent
    given = _given(plan)
    graphs, language = entries_of(graph, given)
    coding = Coding(graph, coded, calibration, method, kept)
    (planned, *others), chosen, ranges = _planned(graphs, given, coding, report, chip)
    forms = form_reasons(planned, chip.isa)
    ledger = [row.to_json() for row in rows_of(planned, chosen, {}, _reason(plan), forms)]
    stage = _stage(report, "compiling kernels")
    return write(
        planned,
        chip,
        Path(out),
        others=others,
        plan=chosen.to_json(),
        ledger=ledger,
        ranges=ranges,
        progress=stage,
        **language,
    )


def _running_here(target: str) -> Target:
    """The target of that name. Raises TargetError if this machine cannot run it."""
    from ...targets.target import resolve

    chip = resolve(target)
    if not chip.runs_here:
        raise TargetError(
            f"this machine cannot run code for {chip.name}: `cross_compile` and `bitsmith compile --target "
            f"{chip.name} -o DIR` write it without opening it"
        )
    return chip


def _silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody asked for."""


def _stage(report: Progress, name: str) -> Callable[[int, int], None]:
    return lambda done, total: report(name, done, total)


def _planned(
    graphs: Sequence[Graph],
    plan: Plan | None,
    coding: Coding,
    report: Progress,
    chip: Target,
) -> tuple[list[Graph], Plan, Ranges | None]:
    """The graphs as the plan makes them for the chip, the plan, and the ranges that an artifact keeps."""
    from ...passes.apply_plan import apply_plan
    from ...passes.prepare import prepare

    prepared = [prepare(graph) for graph in graphs]
    check_alike(prepared)
    chosen = (plan or Plan.uniform(prepared[0], "float32")).validate(prepared[0])
    ranges = _ranges(prepared[0], chosen, coding.samples, report)
    kept = None if ranges is None else ranges.for_plan(chosen)
    codes = coding.codes(prepared[0], chosen, report)
    planned = [
        apply_plan(graph, chosen, ranges, pair_bound=chip.pair_bound, coded=codes) for graph in prepared
    ]
    return planned, chosen, kept


def _given(plan: PlanLike | None) -> Plan | None:
    """The plan that was given in any form."""
    if plan is None:
        return None
    if isinstance(plan, str | os.PathLike):
        return Plan.load(plan)
    found = plan if isinstance(plan, Plan) else getattr(plan, "plan", None)
    if not isinstance(found, Plan):
        raise InputError(f"plan is a {type(plan).__name__}: give a Plan, a plan file or a search's candidate")
    return found


def _reason(plan: PlanLike | None) -> str:
    return "uniform float32: no plan was given" if plan is None else "asked for by the plan"


def _ranges(prepared: Graph, plan: Plan, calibration: Samples | None, report: Progress) -> Ranges | None:
    """The ranges of the values; None when the plan makes no layer int8 (those that came so need none)."""
    from ..calibrate import calibrate

    quantised = [node.name for node in free_layers_of(prepared) if plan.choice(node.name) == "int8"]
    if not quantised:
        return None
    if calibration is None:
        kinds = ", ".join(f"{name}: {kind}" for name, kind in prepared.fed)
        raise InputError(
            f"the plan makes {len(quantised)} layer(s) int8, which needs calibration data: give 20 to 200 "
            f"typical inputs ({kinds}) as `calibration` (command line: --calibration FILE.npy)"
        )
    return calibrate(
        prepared,
        calibration,
        method=plan.calibration.method,
        percentile=plan.calibration.percentile,
        progress=_stage(report, "calibrating"),
    )


def _first_feed(graph: Graph, calibration: Samples | None) -> dict[str, np.ndarray]:
    """Inputs for the profile: the first sample, or noise."""
    return random_feed(graph.fed) if calibration is None else iterate(graph, calibration)[0]


def _with_ledger(artifact: Artifact, rows: Sequence[LedgerRow]) -> Artifact:
    """The same artifact, which is in a temporary directory of its own, with this ledger in its manifest."""
    manifest = replace(artifact.manifest, ledger=tuple(row.to_json() for row in rows))
    write_whole(artifact.path / MANIFEST, manifest.to_json(), "the manifest")
    artifact.manifest = read_manifest(artifact.path)
    return artifact
