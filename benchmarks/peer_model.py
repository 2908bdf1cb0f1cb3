"""What is benchmarked: a model with fixed shapes, data to calibrate and to judge on, as files for workers."""

import hashlib
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bitsmith.compiler.errors import InputError, ModelError

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
CALIBRATION_PICTURES = 100
EVALUATION_PICTURES = (
    117  # three crops of each of the 39 photographs of examples/photos that nothing else sees
)


@dataclass(frozen=True)
class Subject:
    """model         ONNX file, one, static shapes
    calibration   .npy files, one for each input, [n * batch, ...]
    evaluation    the same, of other samples
    labels        class of each evaluation sample, if known
    batch         rows that one run takes
    data          what the samples are, in words
    """

    name: str
    model: Path
    calibration: tuple[Path, ...]
    evaluation: tuple[Path, ...]
    labels: np.ndarray | None
    batch: int
    data: str

    def key(self, extra: str) -> str:
        """Content hash of the model, the calibration data and `extra`: what a prepared model depends on."""
        digest = hashlib.sha256(extra.encode())
        for path in (self.model, *self.calibration):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:16]


def efficientnet(folder: Path) -> Path:
    """The default model: exported into `folder` once, by a process of its own, since it needs torch."""
    path = folder / "efficientnet_lite0.onnx"
    if not path.exists():
        part = path.with_suffix(".part")
        command = [sys.executable, str(EXAMPLES / "efficientnet.py"), str(part)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ModelError(f"the default model cannot be exported: {done.stderr.strip().splitlines()[-1]}")
        part.rename(path)
    return path


def subject(
    source: Path,
    folder: Path,
    *,
    calibration: Sequence[Path] = (),
    evaluation: Sequence[Path] = (),
    pictures: Path | None = None,
    example_pictures: bool = False,
) -> Subject:
    """Reads the model and its data and writes what the workers need into `folder`.

    Data come from the .npy files if given, else from the folder `pictures`, else from examples/pictures.py if
    `example_pictures`, else they are noise, which is enough for latency. Raises ModelError and InputError.
    """
    model = load_onnx(source)
    labels = None
    if calibration or evaluation:
        cal, ev, data = _arrays(calibration), _arrays(evaluation), "arrays"
    elif pictures is not None:
        cal, ev, labels = folder_pictures(pictures, _picture_side(model))
        data = f"{len(ev[0])} pictures of {pictures}"
    elif example_pictures:
        cal, ev = _example_pictures()
        data = f"{len(ev[0])} pictures of examples/photos"
    else:
        cal, ev, data = (
            _noise(model, 16, seed=1),
            _noise(model, 16, seed=2),
            "noise: only the latencies mean anything",
        )
    batch = fix_shapes(model, cal)
    fix_shapes(model, ev)
    return Subject(
        name=source.stem,
        model=_save_model(model, folder / "model.onnx"),
        calibration=_save(cal, folder, "calibration"),
        evaluation=_save(ev, folder, "evaluation"),
        labels=labels,
        batch=batch,
        data=data,
    )


def load_onnx(path: Path) -> Any:
    """The model with its external weights. Raises ModelError for a file that is missing or is not ONNX."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (OSError, DecodeError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{path}: cannot be read as an ONNX model: {str(error).splitlines()[0]}") from error
    return model


def inputs(model: Any) -> list[Any]:
    """The model's inputs proper: old files list their weights among them."""
    weights = {value.name for value in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def fix_shapes(model: Any, arrays: Sequence[np.ndarray]) -> int:
    """Gives open dimensions the sizes that the arrays have (1 for the first) and returns the batch.

    Raises InputError when the arrays do not fit the model.
    """
    from onnxruntime.tools.onnx_model_utils import make_input_shape_fixed

    wanted = inputs(model)
    if len(arrays) != len(wanted):
        names = ", ".join(value.name for value in wanted)
        raise InputError(f"the model has {len(wanted)} inputs ({names}); data was given for {len(arrays)}")
    batch = 1
    for value, array in zip(wanted, arrays, strict=True):
        dims = value.type.tensor_type.shape.dim
        fixed = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
        shape = [size or actual for size, actual in zip(fixed, (1, *array.shape[1:]), strict=False)]
        if len(fixed) != array.ndim or tuple(shape[1:]) != array.shape[1:] or len(array) < shape[0]:
            raise InputError(f"input {value.name!r} is {fixed}; the data {list(array.shape)} do not fit it")
        if None in fixed:
            make_input_shape_fixed(model.graph, value.name, shape)
        batch = shape[0]
    return batch


def folder_pictures(folder: Path, side: int) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray | None]:
    """Pictures of a folder, at most CALIBRATION_PICTURES for calibration and the others to judge on.

    The centre, `side` pixels square, of a picture scaled to side / 0.875; (pixel - 127) / 128. A file whose
    name is a number shows the class of that number: if all are so, their classes are returned too.
    """
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(files) < 2:
        raise InputError(f"{folder}: needs at least two .jpg or .png pictures, has {len(files)}")
    # Spread over the whole folder: it is sorted by class.
    count = min(CALIBRATION_PICTURES, len(files) // 2)
    chosen = {files[i * len(files) // count] for i in range(count)}
    kept = [path for path in files if path not in chosen]
    named = all(re.fullmatch(r"\d+", path.stem) for path in files)
    labels = np.array([int(path.stem) for path in kept]) if named else None
    pixels = [np.stack([_picture(path, side) for path in part]) for part in (sorted(chosen), kept)]
    return [pixels[0]], [pixels[1]], labels


def _picture(path: Path, side: int) -> np.ndarray:
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        rgb, whole = image.convert("RGB"), round(side / 0.875)
        if min(rgb.size) != whole:
            rgb = ImageOps.cover(rgb, (whole, whole), Image.Resampling.BICUBIC)
        left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
        pixels = np.asarray(rgb.crop((left, top, left + side, top + side)), np.float32)
    return ((pixels - 127.0) / 128.0).transpose(2, 0, 1).copy()


def _picture_side(model: Any) -> int:
    dims = [dim.dim_value for dim in inputs(model)[0].type.tensor_type.shape.dim]
    if len(inputs(model)) != 1 or len(dims) != 4 or dims[1] != 3 or dims[2] != dims[3] or not dims[2]:
        raise InputError(f"pictures need one input [n, 3, side, side]; the model's first is {dims}")
    return int(dims[2])


def _example_pictures() -> tuple[list[np.ndarray], list[np.ndarray]]:
    sys.path.insert(0, str(EXAMPLES))
    from importlib import import_module

    source = import_module("pictures")
    return [source.calibration_pictures(CALIBRATION_PICTURES)], [
        source.held_out_pictures(EVALUATION_PICTURES)
    ]


def _noise(model: Any, count: int, seed: int) -> list[np.ndarray]:
    from onnx.helper import tensor_dtype_to_np_dtype

    rng = np.random.default_rng(seed)
    arrays = []
    for value in inputs(model):
        tensor = value.type.tensor_type
        shape = [dim.dim_value or 1 for dim in tensor.shape.dim]
        if tensor_dtype_to_np_dtype(tensor.elem_type) != np.float32:
            raise InputError(f"input {value.name!r} is not float32: give --calibration and --evaluation")
        arrays.append(rng.standard_normal((count * shape[0], *shape[1:]), np.float32))
    return arrays


def _arrays(paths: Sequence[Path]) -> list[np.ndarray]:
    if not paths:
        raise InputError(
            "--calibration and --evaluation go together: one .npy file for each input of the model"
        )
    try:
        return [np.load(path) for path in paths]
    except (OSError, ValueError) as error:
        raise InputError(f"the data cannot be read: {error}") from error


def _save(arrays: Sequence[np.ndarray], folder: Path, stem: str) -> tuple[Path, ...]:
    paths = tuple(folder / f"{stem}{i}.npy" for i in range(len(arrays)))
    for path, array in zip(paths, arrays, strict=True):
        np.save(path, array)
    return paths


def _save_model(model: Any, path: Path) -> Path:
    import onnx

    onnx.save(model, path)
    return path
