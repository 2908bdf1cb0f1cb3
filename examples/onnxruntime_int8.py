"""The same network in int8 by ONNX Runtime's own quantiser, in its fastest form, to compare with."""

from pathlib import Path

import numpy as np


def quantise(model: Path, out: Path, pictures: np.ndarray, vnni: bool) -> Path:
    """Writes the quantised model and returns its path: QDQ, uint8 activations, int8 weights per channel.

    pictures   calibration, float32 [n, ...], one run each
    vnni       the CPU sums byte products in 32 bits. Without, ONNX Runtime's kernels add pairs of them in 16
               bits, which overflow for weights of 8 bits: its documentation says to use 7 (`reduce_range`)
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self.rest = iter([{name: picture[None]} for picture in pictures])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rest, None)

    cleaned, unfinished = out.with_suffix(".cleaned"), out.with_suffix(".part")
    quant_pre_process(model, cleaned)
    quantize_static(
        cleaned,
        unfinished,
        Reader(_only_input(model)),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=not vnni,
    )
    cleaned.unlink()
    return unfinished.replace(out)


def _only_input(model: Path) -> str:
    import onnx

    (value,) = onnx.load(model, load_external_data=False).graph.input
    return str(value.name)
