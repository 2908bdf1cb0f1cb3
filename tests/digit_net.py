"""A small convolutional classifier as an ONNX file, its batch left open, to try library functions on."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx_models import model, node

SHAPE = (1, 3, 16, 16)
LAYERS = ("stem", "depth", "point", "head")


def write_net(path: Path) -> Path:
    """conv 3x3 stride 2, depthwise, 1x1, mean, linear; image[batch, 3, 16, 16] -> logits[batch, 6]."""
    random = np.random.default_rng(7)

    def weight(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

    weights = {
        "w1": weight(16, 3, 3, 3),
        "b1": weight(16),
        "w2": weight(16, 1, 3, 3),
        "w3": weight(24, 16, 1, 1),
        "b3": weight(24),
        "w4": weight(6, 24),
        "b4": weight(6),
    }
    nodes = [
        node("Conv", "image w1 b1", "a", pads=[1, 1, 1, 1], strides=[2, 2], name="stem"),
        node("Relu", "a", "a1"),
        node("Conv", "a1 w2", "b", pads=[1, 1, 1, 1], group=16, name="depth"),
        node("Relu", "b", "b1_"),
        node("Conv", "b1_ w3 b3", "c", name="point"),
        node("Relu", "c", "c1"),
        node("GlobalAveragePool", "c1", "d"),
        node("Flatten", "d", "e"),
        node("Gemm", "e w4 b4", "logits", transB=1, name="head"),
    ]
    onnx.save(model(nodes, {"image": ("batch", 3, 16, 16)}, ("logits",), weights), path)
    return path


def samples(n: int, seed: int = 0) -> np.ndarray:
    """float32 [n, 3, 16, 16]."""
    return np.random.default_rng(seed).standard_normal((n, *SHAPE[1:])).astype(np.float32)


def truth(path: Path, images: np.ndarray) -> np.ndarray:
    """What ONNX Runtime computes, [n, 6]."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0]
