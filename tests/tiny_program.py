"""A small Program with C kernels, so that library and artifact can be tested without the kernel generator."""

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bitsmith.compiler.artifact import ArraySpec, Manifest, write_artifact
from bitsmith.targets.link import HEADER, find_compiler, hash64, link_library
from bitsmith.targets.program import Place, Program, Space, Step, TensorSpec

# A task of a linear kernel is one row of w. `k_hold` keeps a run going until its input is set.
KERNELS = """
#include <math.h>
#include <stdint.h>
#define LINEAR(name, K) \\
void name(float *x, float *w, float *b, float *y, int32_t begin, int32_t end) { \\
    for (int32_t n = begin; n < end; n++) { \\
        float sum = 0; \\
        for (int k = 0; k < K; k++) sum += x[k] * w[n * K + k]; \\
        y[n] = sum + b[n]; \\
    } \\
}
LINEAR(k_linear_19, 19)
LINEAR(k_linear_37, 37)
LINEAR(k_linear_60, 60)
void k_relu_37(float *x, int32_t begin, int32_t end) {
    for (int i = begin * 37; i < end * 37; i++) x[i] = fmaxf(x[i], 0);
}
void k_add(float *a, float *b, float *y, int32_t begin, int32_t end) {
    for (int i = begin; i < end; i++) y[i] = a[i] + b[i];
}
void k_hold(volatile int32_t *x, volatile int32_t *y, int32_t begin, int32_t end) {
    y[0] = begin + end;
    while (!x[0]) {}
    y[1] = x[0];
}
/* Task 2 waits, some seconds at most, for task 3. */
void k_after(volatile int32_t *y, int32_t begin, int32_t end) {
    for (int32_t i = begin; i < end; i++) {
        for (int64_t n = 0; i == 2 && !y[3] && n < INT64_C(2000000000); n++) {}
        y[i] = i == 2 && !y[3] ? -1 : i + 1;
    }
}
"""
ODD_LAYER = 'stage "1"\\conv ü\n??/'


def _place(space: str, offset: int = 0) -> Place:
    return Place(Space(space), offset)


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    shapes = {"w1": (37, 19), "b1": (37,), "w2": (10, 37), "b2": (10,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def packed_weights() -> tuple[bytes, dict[str, int]]:
    """The weights file and where each array starts: multiples of 64. Its size is no multiple of 8."""
    blob, starts = b"", {}
    for name, array in weights().items():
        blob += b"\0" * (-len(blob) % 64)
        starts[name] = len(blob)
        blob += array.tobytes()
    return blob + b"end", starts


def program(features: tuple[str, ...] = ()) -> Program:
    blob, at = packed_weights()
    hidden = _place("arena", 64)
    steps = (
        Step(
            ODD_LAYER,
            "k_linear_19",
            (_place("input"), _place("weights", at["w1"]), _place("weights", at["b1"]), hidden),
            37,
        ),
        Step("act", "k_relu_37", (hidden,), 1),
        Step(
            "head",
            "k_linear_37",
            (hidden, _place("weights", at["w2"]), _place("weights", at["b2"]), _place("output", 1)),
            10,
        ),
        Step("sum", "k_add", (_place("output", 1), _place("input", 1), _place("output", 0)), 10),
    )
    return Program(
        name='tiny "net"',
        inputs=(TensorSpec("x", (1, 19), "float32"), TensorSpec("extra", (10,), "float32")),
        outputs=(TensorSpec("z", (1, 10), "float32"), TensorSpec("y", (1, 10), "float32")),
        steps=steps,
        arena_bytes=64 + 37 * 4,
        weights_bytes=len(blob),
        features=features,
    )


def holding_program() -> Program:
    """One step that says that it has begun in output[0], and ends when input[0] is set."""
    step = Step("hold", "k_hold", (_place("input"), _place("output")), 1)
    flags = TensorSpec("go", (4,), "int32")
    return Program("holding", (flags,), (TensorSpec("state", (4,), "int32"),), (step,), 0, 0, ())


def waiting_program() -> Program:
    """Four tasks, of which number 2 ends only when number 3 is done; output[i] is i + 1, or -1 for a wait in
    vain."""
    step = Step("after", "k_after", (_place("output"),), 4)
    return Program("waiting", (), (TensorSpec("done", (4,), "int32"),), (step,), 0, 0, ())


def picture_program() -> tuple[Program, bytes, np.ndarray]:
    """A linear classifier of pictures float32[1, 3, 4, 5]; its weights file; its matrix [7, 60]."""
    matrix = np.random.default_rng(3).standard_normal((7, 60)).astype(np.float32)
    blob = matrix.tobytes() + bytes(7 * 4)
    places = (_place("input"), _place("weights"), _place("weights", matrix.nbytes), _place("output"))
    specs = (TensorSpec("image", (1, 3, 4, 5), "float32"),), (TensorSpec("logits", (1, 7), "float32"),)
    steps = (Step("fc", "k_linear_60", places, 7),)
    return Program("pictures", *specs, steps, 0, len(blob), ()), blob, matrix


def inputs(seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((1, 19)).astype(np.float32), rng.standard_normal(10).astype(np.float32)


def reference(x: np.ndarray, extra: np.ndarray) -> dict[str, np.ndarray]:
    """What the program computes, by numpy in double precision."""
    w = {name: array.astype(np.float64) for name, array in weights().items()}
    y = np.maximum(x @ w["w1"].T + w["b1"], 0) @ w["w2"].T + w["b2"]
    return {"z": y + extra, "y": y}


@dataclass(frozen=True)
class Toolbox:
    """Compiles the kernels once and links libraries in `directory`."""

    directory: Path

    @property
    def kernels(self) -> Path:
        made = self.directory / "kernels.o"
        if not made.exists():
            source = self.directory / "kernels.c"
            source.write_text(KERNELS)
            command = [*find_compiler(), "-O2", "-fPIC", "-c", str(source), "-o", str(made)]
            subprocess.run(command, check=True)
        return made

    def library(self, program: Program, blob: bytes) -> Path:
        made = self.directory / f"{abs(hash((program, blob)))}.so"
        if not made.exists():
            cache = self.directory / "cache"
            link_library(made, [self.kernels], program, hash64(blob), cache=cache)
        return made

    def artifact(self, directory: Path, program: Program, blob: bytes) -> Path:
        manifest = Manifest(
            name=program.name,
            inputs=tuple(ArraySpec(s.name, s.shape, s.dtype) for s in program.inputs),
            outputs=tuple(ArraySpec(s.name, s.shape, s.dtype) for s in program.outputs),
            target="x86-64-tiny",
            features=program.features,
            arena_bytes=program.arena_bytes,
            plan={"version": 1, "layers": {}},
            ledger=({"layer": "head", "choice": "float32"},),
            versions={"bitsmith": "0.1.0"},
        )
        library = self.library(program, blob)
        return write_artifact(directory, manifest, library=library, weights=blob, header=HEADER)


def cpu_flags() -> set[str]:
    """The CPU features that Linux reports."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()


def package_environment() -> dict[str, str]:
    """An environment in which a new Python finds the same bitsmith."""
    import bitsmith

    root = str(Path(bitsmith.__file__).resolve().parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


def threads(expected: int = 0) -> int:
    """How many this process has. Where that is not what is expected, after a moment: one that was joined may
    still be listed."""
    until = time.monotonic() + 10
    while (found := len(os.listdir("/proc/self/task"))) != expected and expected:
        if time.monotonic() > until:
            break
        time.sleep(0.01)
    return found
