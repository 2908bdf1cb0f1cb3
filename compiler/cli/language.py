"""The verbs of language models: generate and eval."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from . import options as o
from .output import Output, table

if TYPE_CHECKING:
    from rich.table import Table

    from ..pipeline.evaluating import Evaluation
    from ..pipeline.generating import Generation, Pace


def generate(
    artifact: o.ArtifactDir,
    prompt: o.Prompt,
    max_tokens: o.MaxTokens = 256,
    temperature: o.Temperature = 0.0,
    top_k: o.TopK = 0,
    top_p: o.TopP = 1.0,
    seed: o.Seed = 0,
    threads: o.Threads = 1,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Go on with a text as a language model's artifact would, and print what comes as it comes."""
    from .. import pipeline

    said = Output(as_json, quiet)
    with pipeline.open(artifact) as opened:
        made = pipeline.generate(
            opened,
            _text_of(prompt),
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            threads=threads,
        )
        stopped = _speak(made, said)
    pace = made.pace
    if not as_json:
        if not quiet:
            said.err.print(_pace(pace, stopped), markup=False, soft_wrap=True)
        return
    facts = {
        "text": made.text,
        "stopped": stopped,
        "prompt_tokens": pace.prompt_tokens,
        "tokens": pace.tokens,
        "prefill_tokens_per_second": pace.prefill_per_second,
        "decode_tokens_per_second": pace.decode_per_second,
    }
    said.emit(facts)


def _text_of(prompt: str) -> str:
    """`-` is what comes on stdin; so prompts of several lines need no quoting."""
    if prompt != "-":
        return prompt
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt on stdin is not text in UTF-8: {error}") from None


def _speak(made: Generation, said: Output) -> str:
    """Prints the pieces; why it ended. An interrupt ends it with what was said."""
    stopped = ""
    try:
        for piece in made:
            if not said.as_json:
                _print(piece, said)
    except KeyboardInterrupt:
        stopped = "interrupted"
    if not said.as_json:
        _print("\n", said)
    return stopped or made.pace.stopped


def _print(text: str, said: Output) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        said.out.on_broken_pipe()


def _pace(pace: Pace, stopped: str) -> str:
    why = {
        "end": "the model ended it",
        "length": "--max-tokens reached",
        "context": "the context is full",
        "interrupted": "interrupted",
    }[stopped]
    return (
        f"prefill {pace.prompt_tokens} tokens, {pace.prefill_per_second:.1f} tok/s; "
        f"decode {pace.tokens} tokens, {pace.decode_per_second:.1f} tok/s; {why}"
    )


def eval(
    artifact: o.ArtifactDir,
    text: o.TextFile,
    against: o.AgainstModel = None,
    tokens: o.JudgedTokens = None,
    window: o.Window = 512,
    threads: o.Threads = 1,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Perplexity of a language model's artifact on a text, and how far its predictions are from another's."""
    from .. import pipeline
    from ..pipeline.data_files import read_text

    said = Output(as_json, quiet)
    with said.progress() as progress:
        result = pipeline.evaluate(
            artifact,
            read_text(text),
            against,
            tokens=tokens,
            window=window,
            threads=threads,
            progress=progress,
        )
    said.emit(result, evaluated(result, artifact, against))


def evaluated(result: Evaluation, artifact: Path, against: Path | None) -> Table:
    made = table("", "what", ">value")
    rows: list[tuple[str, Any, str]] = [
        ("predictions", result.predictions, "d"),
        (f"perplexity of {artifact}", result.perplexity, ".4f"),
        (f"perplexity of {against}", result.against_perplexity, ".4f"),
        ("KL divergence, nats per token", result.kl, ".5f"),
        ("same likeliest token", result.agreement, ".2%"),
    ]
    for what, value, form in rows:
        if value is not None:
            made.add_row(what, format(value, form))
    return made
