"""Networks that are benchmarked together, each with samples like those that it is made for.

An entry of NETWORKS takes a folder that keeps models and one for samples, and gives the ONNX file, and .npy
files to calibrate and to judge with, one for each input.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from peer_model import EXAMPLES, efficientnet

Made = tuple[Path, list[Path], list[Path]]
SAMPLES = 32  # to calibrate with, and as many to judge with
RAPIDOCR = "rapidocr==3.10.0"


def example(name: str) -> Any:
    """A module of examples/."""
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return import_module(name)


def saved(folder: Path, calibration: Sequence[np.ndarray], evaluation: Sequence[np.ndarray]) -> Any:
    """The arrays, one for each input, as files."""
    files: list[list[Path]] = []
    for stem, arrays in (("given0", calibration), ("given1", evaluation)):
        files.append([folder / f"{stem}_{i}.npy" for i in range(len(arrays))])
        for path, array in zip(files[-1], arrays, strict=True):
            np.save(path, array)
    return files


def halves(folder: Path, samples: np.ndarray) -> Any:
    return saved(folder, [samples[::2]], [samples[1::2]])


def exported(path: Path, module: Any, inputs: tuple[Any, ...]) -> Path:
    """The module as ONNX, once."""
    if not path.exists():
        import torch

        program = torch.onnx.export(module.eval(), inputs, dynamo=True, verbose=False)
        assert program is not None, "the dynamo exporter always returns the program"
        part = path.with_suffix(".part")
        program.save(str(part))
        part.rename(path)
    return path


def efficientnet_lite0(models: Path, folder: Path) -> Made:
    pictures = example("pictures")
    files = saved(folder, [pictures.calibration_pictures(SAMPLES)], [pictures.held_out_pictures(SAMPLES)])
    return efficientnet(models), *files


def ppocr_det(models: Path, folder: Path) -> Made:
    """Pages of 320 x 320, in the upper left corner of white ones."""
    pages, packages = example("text_pages"), example("packages")
    samples = []
    for seed in range(2 * SAMPLES):
        small = pages.pixels(pages.page(seed)[0])
        whole = np.full((3, 480, 480), small.max(), np.float32)
        whole[:, : small.shape[1], : small.shape[2]] = small
        samples.append(whole)
    model = packages.model_file(RAPIDOCR, "rapidocr/models/PP-OCRv6_det_small.onnx")
    return model, *halves(folder, np.stack(samples))


def ppocr_rec(models: Path, folder: Path) -> Made:
    model = example("packages").model_file(RAPIDOCR, "rapidocr/models/PP-OCRv6_rec_small.onnx")
    return model, *halves(folder, _lines(2 * SAMPLES)[..., :320])


def ppocr_cls(models: Path, folder: Path) -> Made:
    """Lines, half of them upside down. The file gives height and width one name: here they differ."""
    import onnx

    source = example("packages").model_file(RAPIDOCR, "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx")
    network, model = onnx.load(source), folder / "ppocr_cls.onnx"
    for dim, size in zip(network.graph.input[0].type.tensor_type.shape.dim, (1, 3, 48, 192), strict=True):
        dim.dim_value = size
    del network.graph.value_info[:]
    onnx.save(network, model)
    lines = _lines(2 * SAMPLES)[..., :192]
    lines[::4] = lines[::4, :, ::-1, ::-1]
    return model, *halves(folder, np.ascontiguousarray(lines))


def _lines(count: int) -> np.ndarray:
    """Rendered lines of text [count, 3, 48, at least 320]."""
    lines = example("text_lines")
    samples = [lines.pixels(lines.picture(text, i)) for i, text in enumerate(lines.random_lines(count, 5))]
    stacked = np.stack([sample.reshape(sample.shape[-3:]) for sample in samples])
    return np.pad(stacked, ((0, 0), (0, 0), (0, 0), (0, max(0, 320 - stacked.shape[-1]))), mode="edge")


def minilm(models: Path, folder: Path) -> Made:
    import torch

    network, sentence_set = example("minilm"), example("sentence_set")
    module = network.encoder(network.fetched("config.json"), network.fetched("model.safetensors"))
    pieces = network.vocabulary(network.fetched("tokenizer.json"))
    texts = sentence_set.made_up(8 * SAMPLES, 0)
    # Several sentences in one, to fill more of the 128 tokens.
    joined = [" ".join(texts[i : i + 4]) for i in range(0, len(texts), 4)]
    ids, masks = (
        np.stack(part) for part in zip(*(network.tokens(t, pieces, 128) for t in joined), strict=True)
    )
    inputs = (torch.from_numpy(ids[:1]), torch.from_numpy(masks[:1]))
    model = exported(models / "minilm_l6_128.onnx", module, inputs)
    return model, *saved(folder, [ids[::2], masks[::2]], [ids[1::2], masks[1::2]])


def resnet50(models: Path, folder: Path) -> Made:
    import torch

    torch.manual_seed(0)
    module = _resnet50() if not (models / "resnet50.onnx").exists() else torch.nn.Identity()
    model = exported(models / "resnet50.onnx", module, (torch.zeros(1, 3, 224, 224),))
    noise = np.random.default_rng(7).standard_normal((16, 3, 224, 224), np.float32)
    return model, *halves(folder, noise)


def _resnet50() -> Any:
    """ResNet-50 (He et al., 2015), the stride in the 3x3 convolution, random weights."""
    from torch import nn

    def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
        layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(outputs))

    class Block(nn.Module):
        def __init__(self, inputs: int, width: int, stride: int) -> None:
            super().__init__()
            outputs = 4 * width
            self.body = nn.Sequential(
                conv(inputs, width, 1),
                nn.ReLU(),
                conv(width, width, 3, stride),
                nn.ReLU(),
                conv(width, outputs, 1),
            )
            self.beside = nn.Identity() if inputs == outputs else conv(inputs, outputs, 1, stride)

        def forward(self, x: Any) -> Any:
            return nn.functional.relu(self.body(x) + self.beside(x))

    stages, inputs = [], 64
    for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(depth):
            stages.append(Block(inputs, width, stride if i == 0 else 1))
            inputs = 4 * width
    stem = (conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


NETWORKS: dict[str, Callable[[Path, Path], Made]] = {
    "efficientnet_lite0": efficientnet_lite0,
    "ppocr_det": ppocr_det,
    "ppocr_rec": ppocr_rec,
    "ppocr_cls": ppocr_cls,
    "minilm": minilm,
    "resnet50": resnet50,
}
