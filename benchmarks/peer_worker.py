"""One engine with one model at one thread count, in a process of its own.

    python peer_worker.py '{"engine": "onnxruntime", "model": "m.onnx", "threads": 1, "precision": "float32",
                            "inputs": ["images.npy"], "batch": 1}'

`inputs` are .npy files, one for each model input, in the model's order; sample i of a file is its rows [i *
batch, (i + 1) * batch). The worker says {"ready": {...}} when the model is loaded and then answers one line
of JSON to each line it reads:

    run N         -> [seconds, ...]   N runs on the first sample, each timed alone
    outputs PATH  -> M                runs all M samples; output k of the model is array "k" of PATH (.npz)
    quit          -> (ends)           so does the end of its input: a worker never outlives its driver

Any failure ends the process with a traceback on stderr. Nothing but replies is written to stdout: what an
engine prints there goes to stderr. Only numpy and the engine are imported: each engine lives in another
environment.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from peer_protocol import private_stdout, serve, timed

Arrays = list[np.ndarray]
Run = Callable[[Arrays], Sequence[np.ndarray]]


def open_bitsmith(spec: dict[str, Any]) -> tuple[Run, dict[str, str]]:
    import bitsmith

    artifact = bitsmith.open(spec["model"])
    artifact.set_threads(spec["threads"])
    return lambda arrays: list(artifact.run(*arrays).values()), {"version": bitsmith.__version__}


def open_onnxruntime(spec: dict[str, Any]) -> tuple[Run, dict[str, str]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec["threads"]
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(spec["model"], options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    facts = {"version": onnxruntime.__version__}
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True))), facts


def open_openvino(spec: dict[str, Any]) -> tuple[Run, dict[str, str]]:
    import openvino

    config: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": spec["threads"],
        "NUM_STREAMS": 1,
        # Pinned threads cannot leave a core that another process uses; on an idle machine they are no faster.
        "ENABLE_CPU_PINNING": False,
    }
    if spec["precision"] == "float32":
        config["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = openvino.Core().compile_model(spec["model"], "CPU", config)
    request = compiled.create_infer_request()
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    # Shared memory on both sides is the fastest way that its Python API offers; `outputs` below copies what
    # it keeps.
    return (
        lambda arrays: list(request.infer(arrays, share_inputs=True, share_outputs=True).to_tuple()),
        {"version": openvino.__version__.split("-")[0], "computes_in": precision},
    )


ENGINES = {"bitsmith": open_bitsmith, "onnxruntime": open_onnxruntime, "openvino": open_openvino}


def samples(arrays: Arrays, batch: int) -> list[Arrays]:
    """Cuts [n, ...] arrays into n // batch samples of [batch, ...]; the incomplete rest is left out."""
    count = min(len(array) for array in arrays) // batch
    return [[np.ascontiguousarray(a[i * batch : (i + 1) * batch]) for a in arrays] for i in range(count)]


def write_outputs(run: Run, inputs: list[Arrays], path: str) -> int:
    """Runs every sample; saves the outputs, joined along the first axis; returns the number of samples."""
    rows = [[np.array(value) for value in run(sample)] for sample in inputs]
    joined: dict[str, Any] = {str(k): np.concatenate(v) for k, v in enumerate(zip(*rows, strict=True))}
    np.savez(path, **joined)
    return len(rows)


def verbs(run: Run, inputs: list[Arrays]) -> dict[str, Callable[[str], Any]]:
    """What each request is answered by."""
    return {
        "run": lambda count: timed(lambda: run(inputs[0]), int(count)),
        "outputs": lambda path: write_outputs(run, inputs, path),
    }


def main() -> None:
    spec = json.loads(sys.argv[1])
    replies = private_stdout()
    inputs = samples([np.load(path, mmap_mode="r") for path in spec["inputs"]], spec["batch"])
    start = time.perf_counter()
    run, facts = ENGINES[spec["engine"]](spec)
    ready = {**facts, "load_s": time.perf_counter() - start}
    print(json.dumps({"ready": ready}), file=replies, flush=True)
    serve(verbs(run, inputs), sys.stdin, replies)


if __name__ == "__main__":
    main()
