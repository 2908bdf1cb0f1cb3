"""Makes one engine's form of a model, in that engine's environment, and writes it into a folder.

    python peer_prepare.py '{"engine": "openvino", "precision": "int8", "model": "m.onnx",
                             "calibration": ["c.npy"], "batch": 1, "out": "folder"}'

Prints one line of JSON: {"files": {variant: path}} with a single variant but for ONNX Runtime's int8, whose
fastest form depends on the CPU; the driver times them and keeps one.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peer_protocol import private_stdout
from peer_worker import samples

Files = dict[str, Path]


def bitsmith_float32(spec: dict[str, Any], out: Path) -> Files:
    import bitsmith

    bitsmith.compile(bitsmith.load(spec["model"])).save(out / "float32.bitsmith")
    return {"": out / "float32.bitsmith"}


def bitsmith_int8(spec: dict[str, Any], out: Path) -> Files:
    import bitsmith

    graph = bitsmith.load(spec["model"])
    plan = bitsmith.Plan.uniform(graph, "int8")
    bitsmith.compile(graph, plan=plan, calibration=_samples(spec)).save(out / "int8.bitsmith")
    return {"": out / "int8.bitsmith"}


def onnxruntime_float32(spec: dict[str, Any], out: Path) -> Files:
    return {"": Path(shutil.copy(spec["model"], out / "float32.onnx"))}


def onnxruntime_int8(spec: dict[str, Any], out: Path) -> Files:
    """QDQ, uint8 activations, weights per channel: int8, int8 of 7 bits, or uint8.

    Without VNNI the kernels add pairs of products in 16 bits, which overflow for full int8 weights; 7 bits
    (`reduce_range`) do not. https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(_samples(spec))

        def get_next(self) -> dict[str, np.ndarray] | None:
            sample = next(self.rest, None)
            return None if sample is None else dict(zip(names, sample, strict=True))

    names = _onnx_inputs(spec["model"])
    cleaned = out / "cleaned.onnx"
    # Its symbolic inference of shapes fails on some models; here all shapes are known.
    quant_pre_process(_with_channels(spec["model"], out), cleaned, skip_symbolic_shape=True)
    variants = {
        "u8s8": {"weight_type": QuantType.QInt8, "reduce_range": False},
        "u8s8 7-bit": {"weight_type": QuantType.QInt8, "reduce_range": True},
        "u8u8": {"weight_type": QuantType.QUInt8, "reduce_range": False},
    }
    fixed = {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QUInt8, "per_channel": True}
    files = {name: out / f"{name.replace(' ', '_')}.onnx" for name in variants}
    for name, options in variants.items():
        quantize_static(cleaned, files[name], Reader(), **fixed, **options)
    cleaned.unlink()
    (out / "newer.onnx").unlink(missing_ok=True)
    return files


def _with_channels(path: str, out: Path) -> str:
    """The model, in an opset whose DequantizeLinear has scales per channel (13), which its own may lack."""
    import onnx
    from onnx.version_converter import convert_version

    model = onnx.load(path)
    if all(opset.version >= 13 for opset in model.opset_import if not opset.domain):
        return path
    newer = out / "newer.onnx"
    onnx.save(convert_version(model, 13), newer)
    return str(newer)


def openvino_float32(spec: dict[str, Any], out: Path) -> Files:
    return _save_openvino(_openvino_model(spec), out / "float32.xml", compress=False)


def openvino_default(spec: dict[str, Any], out: Path) -> Files:
    """As its tools do unasked: weights saved as float16, precision chosen for the CPU at load."""
    return _save_openvino(_openvino_model(spec), out / "default.xml", compress=True)


def openvino_int8(spec: dict[str, Any], out: Path) -> Files:
    import nncf

    calibration = _samples(spec)
    dataset = nncf.Dataset(calibration)
    model = nncf.quantize(_openvino_model(spec), dataset, subset_size=len(calibration))
    return _save_openvino(model, out / "int8.xml", compress=False)


def _openvino_model(spec: dict[str, Any]) -> Any:
    import openvino

    return openvino.Core().read_model(spec["model"])


def _save_openvino(model: Any, path: Path, *, compress: bool) -> Files:
    import openvino

    openvino.save_model(model, path, compress_to_fp16=compress)
    return {"": path}


def _samples(spec: dict[str, Any]) -> list[list[np.ndarray]]:
    return samples([np.load(path, mmap_mode="r") for path in spec["calibration"]], spec["batch"])


def _onnx_inputs(path: str) -> list[str]:
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    constants = {value.name for value in graph.initializer}
    return [value.name for value in graph.input if value.name not in constants]


RECIPES: dict[tuple[str, str], Callable[[dict[str, Any], Path], Files]] = {
    ("bitsmith", "float32"): bitsmith_float32,
    ("bitsmith", "int8"): bitsmith_int8,
    ("onnxruntime", "float32"): onnxruntime_float32,
    ("onnxruntime", "int8"): onnxruntime_int8,
    ("openvino", "float32"): openvino_float32,
    ("openvino", "default"): openvino_default,
    ("openvino", "int8"): openvino_int8,
}


def main() -> None:
    spec = json.loads(sys.argv[1])
    replies = private_stdout()
    files = RECIPES[spec["engine"], spec["precision"]](spec, Path(spec["out"]))
    print(json.dumps({"files": {name: path.name for name, path in files.items()}}), file=replies, flush=True)


if __name__ == "__main__":
    main()
