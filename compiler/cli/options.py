"""Arguments and options of the verbs, as typer reads them from annotations."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

ABOUT_DATA = (
    "FILE.npy of n samples, FILE.npz of such arrays by input name, or a directory with one file per sample"
)
QUALITIES = "agreement, kl, cosine, sqnr, accuracy, accuracy_drop"


class CodingMethod(StrEnum):
    """How weights become codes."""

    ROUND = "round"
    SEARCH = "search"
    HQQ = "hqq"
    COMPENSATE = "compensate"


class CacheType(StrEnum):
    """What a language model keeps of the tokens so far."""

    FLOAT16 = "float16"
    INT8 = "int8"
    FLOAT32 = "float32"


# what to work on
Model = Annotated[
    Path,
    Argument(
        metavar="MODEL",
        help="The network: an .onnx file, or a language model (.gguf, or a directory with config.json).",
        show_default=False,
    ),
]
Subject = Annotated[Path, Argument(metavar="MODEL|ARTIFACT", show_default=False)]
ArtifactDir = Annotated[
    Path, Argument(metavar="ARTIFACT", help="A directory that `bitsmith compile` wrote.", show_default=False)
]
Artifacts = Annotated[list[Path], Argument(metavar="MODEL|ARTIFACT...", show_default=False)]
Result = Annotated[
    Path, Argument(metavar="RESULT", help="A search's directory, or its search.json.", show_default=False)
]

# what to write
ArtifactOut = Annotated[
    Path,
    Option(
        "--out", "-o", metavar="DIR", help="Directory to write; replaces an artifact.", show_default=False
    ),
]
SearchOut = Annotated[
    Path, Option("--out", "-o", metavar="DIR", help="Where study and results go.", show_default=False)
]
ArraysOut = Annotated[
    Path | None, Option("--out", "-o", metavar="FILE", help="Write the outputs to this .npz.")
]
PageOut = Annotated[Path, Option("--out", "-o", metavar="FILE", help="The page to write.")]

# how to read the model and the data
Target = Annotated[
    str, Option("--target", "-t", help="What to compile for: `bitsmith targets` lists the names.")
]
InspectedFor = Annotated[
    str | None,
    Option("--target", "-t", help="Of a model: whose kernels to look for; this machine's by default."),
]
Shapes = Annotated[
    list[str] | None,
    Option(
        "--shape",
        metavar="NAME=SIZES",
        help="Fix an input (image=1x3x224x224) or a named dimension (batch=1). Repeatable.",
    ),
]
Buckets = Annotated[
    list[str] | None,
    Option(
        "--shape",
        metavar="NAME=SIZES",
        help="Fix an input (image=1x3x224x224) or a named dimension (batch=1). Repeatable. Several sizes "
        "(seq=32,64,128) go into one artifact, and a run takes those that fit its inputs; of several names "
        "the k-th sizes go together. --calibration is for the first.",
    ),
]
Calibration = Annotated[
    Path | None,
    Option(
        "--calibration",
        "-c",
        metavar="DATA|TEXT",
        help=f"Sample inputs, for int8's ranges and for codes: {ABOUT_DATA}; of a language model a text.",
    ),
]
SearchCalibration = Annotated[
    Path,
    Option(
        "--calibration",
        "-c",
        metavar="DATA|TEXT",
        help=f"Sample inputs: {ABOUT_DATA}; of a language model a text file.",
        show_default=False,
    ),
]
Evaluate = Annotated[
    Path | None,
    Option("--evaluate", "-e", metavar="DATA", help="Samples to judge on; else a part of the calibration."),
]
Labels = Annotated[
    Path | None,
    Option(metavar="FILE", help="Classes of the samples judged on: .npy, or one number per line."),
]

# compile
PlanFile = Annotated[
    Path | None,
    Option("--plan", "-p", metavar="FILE", help="Plan: what each layer becomes; float32 without one."),
]
UniformChoice = Annotated[
    str | None,
    Option(
        "--uniform",
        metavar="CHOICE",
        help="Instead of a plan, the same for every layer: int8, bfloat16, float32 or a weight format "
        "(int4:64).",
    ),
]

Context = Annotated[
    int | None,
    Option(
        metavar="TOKENS",
        min=1,
        help="Of a language model: prompt and answer together, at most what it was made for; usually 2048.",
    ),
]
Cache = Annotated[
    CacheType | None,
    Option(
        help="Of a language model: type of keys and values; when not given float16, of an uncompressed model "
        "float32."
    ),
]
Method = Annotated[
    CodingMethod | None,
    Option(
        help="How weights become codes: to the nearest level, by least squares (usual), by HQQ, or with "
        "errors that make each other good (needs --calibration, and is usual with it).",
        show_default=False,
    ),
]
Tune = Annotated[
    bool,
    Option(
        "--tune", help="Measure several register tiles of each layer; keep those that make the model faster."
    ),
]
KeepCodes = Annotated[
    bool,
    Option(
        "--keep-codes",
        help="Of a GGUF file: leave weights as its codes where a weight format has the same values.",
    ),
]

# search
Bounds = Annotated[
    list[str] | None,
    Option(
        "--constraint",
        metavar="BOUND",
        help=f"agreement>=0.98, latency<=3ms, size<=0.3x (of float)... Repeatable. Qualities: {QUALITIES}. "
        "Of a language model one of size<=60MB, bits<=3.5, kl<=0.02, decode>=200tok/s.",
    ),
]
Objectives = Annotated[
    list[str] | None,
    Option("--objective", metavar="NAME", help="quality, latency or size; all three by default. Repeatable."),
]
Trials = Annotated[
    int | None,
    Option(
        min=0,
        help="Plans to measure beside the two uniform ones (40 by default); of a language model 8 in all.",
    ),
]
WeightFormats = Annotated[
    list[str] | None,
    Option(
        "--format",
        metavar="FORMAT",
        help="Of a language model, what a layer can become: int4:128. Repeatable.",
    ),
]
LossTable = Annotated[
    str | None,
    Option(
        "--losses",
        metavar="TABLE",
        help="Of a language model, its first losses: curvature (by default), output, shiftadd, measured.",
    ),
]
Timeout = Annotated[float | None, Option(min=0, help="Seconds after which no further trial starts.")]
Study = Annotated[
    str | None, Option(metavar="URL", help="Optuna storage; by default an SQLite file in the directory.")
]

# run and bench
InputFiles = Annotated[
    list[Path] | None,
    Argument(metavar="FILE.npy...", help="The inputs, in the model's order.", show_default=False),
]
Inputs = Annotated[
    list[str] | None,
    Option("--input", "-i", metavar="NAME=FILE", help="An input: image=picture.npy. Repeatable."),
]
Pad = Annotated[
    bool,
    Option("--pad", help="Fill inputs up with zeros to the smallest compiled shapes that hold them."),
]
Random = Annotated[bool, Option("--random", help="Random inputs instead.")]
Against = Annotated[
    list[str] | None,
    Option(metavar="WHAT", help="onnxruntime (needs --model), or another artifact. Repeatable."),
]
OnnxFile = Annotated[
    Path | None, Option("--model", "-m", metavar="FILE", help="The .onnx file that ONNX Runtime runs.")
]
BenchInputs = Annotated[
    Path | None, Option("--inputs", metavar="DATA", help=f"Inputs instead of random ones: {ABOUT_DATA}.")
]
ThreadCounts = Annotated[str, Option("--threads", metavar="N,N", help="Numbers of threads, one by one.")]
Repeats = Annotated[int, Option(min=1, help="Rounds; each runs everything once.")]
Seconds = Annotated[float | None, Option(min=0, help="Stop a number of threads after so long.")]
Profile = Annotated[bool, Option("--profile", help="Add each kernel beside this machine's limits.")]

# diff
Tolerance = Annotated[
    float,
    Option(help="Largest error of a compiled layer, as a share of the range of its values (float32 layers)."),
]
LeastSqnr = Annotated[
    float | None,
    Option("--sqnr", metavar="DB", help="Decibels that every layer must keep against the float model."),
]
Entry = Annotated[
    int,
    Option("--entry", metavar="N", help="Of an artifact for several shapes, the one to compare."),
]

# generate and eval
Prompt = Annotated[
    str,
    Option("--prompt", "-p", metavar="TEXT", help="What to go on from; - reads stdin.", show_default=False),
]
MaxTokens = Annotated[int, Option("--max-tokens", "-n", min=0, help="Tokens to make at most.")]
Temperature = Annotated[
    float,
    Option(min=0, help="0: the likeliest token each time; above, by chance, the more evenly the higher."),
]
TopK = Annotated[int, Option("--top-k", min=0, help="Choose among so many of the likeliest; 0: all.")]
TopP = Annotated[
    float, Option("--top-p", help="Choose among the likeliest that have this share together; 1: all.")
]
TextFile = Annotated[Path, Argument(metavar="TEXT", help="A text file in UTF-8.", show_default=False)]
AgainstModel = Annotated[
    Path | None,
    Option("--against", metavar="ARTIFACT|MODEL", help="What to compare with, as the float model."),
]
JudgedTokens = Annotated[int | None, Option("--tokens", min=1, help="Judge so many tokens; else all.")]
Window = Annotated[int, Option(min=2, help="Tokens read in one go; each piece begins anew.")]

# everywhere
Threads = Annotated[int, Option("--threads", min=1, help="Threads of a run.")]
Seed = Annotated[int, Option(min=0, help="Of all that is random.")]
AsJson = Annotated[bool, Option("--json", help="Print the result as JSON, and nothing else, on stdout.")]
Quiet = Annotated[bool, Option("--quiet", "-q", help="No progress and no notes on stderr.")]
Debug = Annotated[bool, Option("--debug", help="Show the stack trace of an error.")]
