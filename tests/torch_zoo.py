"""Architectures that users bring, by name.

    module, feeds = ZOO["unet"].made()      a seeded module in evaluation mode, and sample inputs

Weights are random and scaled so that values keep their size from layer to layer; batch norms have statistics
that are not trivial.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch_zoo_dense as dense
import torch_zoo_text as text
import torch_zoo_vision as vision
from torch import Tensor, nn

WORDS = 97


@dataclass(frozen=True)
class Entry:
    """How to make a module, and one sample of its inputs from a generator."""

    module: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], tuple[Tensor, ...]]

    def made(self, samples: int) -> tuple[nn.Module, list[tuple[Tensor, ...]]]:
        """The seeded module and that many inputs; always the same."""
        random = torch.Generator().manual_seed(11)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            module = self.module().eval()
        randomise(module, torch.Generator().manual_seed(7))
        return module, [self.inputs(random) for _ in range(samples)]


def randomise(module: nn.Module, random: torch.Generator) -> None:
    """Unit gain for convolutions and linears, statistics for batch norms, noise for what starts constant."""
    for part in module.modules():
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Linear):
            gain = math.sqrt(2 / part.weight[0].numel())
            part.weight.data = torch.randn(part.weight.shape, generator=random) * gain
        elif isinstance(part, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            part.weight.data = torch.rand(part.weight.shape, generator=random) + 0.5
            part.bias.data = torch.randn(part.bias.shape, generator=random) * 0.2
        if isinstance(part, nn.BatchNorm2d):
            part.running_var.data = torch.rand(part.num_features, generator=random) + 0.5
            part.running_mean.data = torch.randn(part.num_features, generator=random) * 0.2
        for parameter in part.parameters(recurse=False):
            if parameter.numel() > 1 and not parameter.data.any():
                parameter.data = torch.randn(parameter.shape, generator=random) * 0.3


def image(size: int) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    return lambda random: (torch.randn(1, 3, size, size, generator=random),)


def tokens(random: torch.Generator, length: int = 12) -> Tensor:
    return torch.randint(1, WORDS, (1, length), generator=random)


def masked_text(random: torch.Generator) -> tuple[Tensor, ...]:
    """Tokens and a mask that hides the last of them."""
    shown = int(torch.randint(5, 12, (), generator=random))
    return tokens(random), (torch.arange(12)[None] < shown).long()


def text_and_state(random: torch.Generator) -> tuple[Tensor, ...]:
    return tokens(random), torch.randn(1, 1, 32, generator=random)


def sound_and_text(random: torch.Generator) -> tuple[Tensor, ...]:
    return torch.randn(1, 20, 40, generator=random), tokens(random, 6)


ZOO = {
    "resnet": Entry(vision.ResNet, image(32)),
    "mobilenet_v2": Entry(vision.MobileNetV2, image(32)),
    "mobilenet_v3": Entry(vision.MobileNetV3, image(32)),
    "efficientnet": Entry(vision.EfficientNet, image(32)),
    "convnext": Entry(vision.ConvNeXt, image(32)),
    "unet": Entry(dense.UNet, image(32)),
    "detector": Entry(dense.Detector, image(64)),
    "vit": Entry(dense.ViT, image(32)),
    "swin": Entry(dense.Swin, image(32)),
    "bert": Entry(text.Bert, masked_text),
    "lstm": Entry(text.TextLstm, lambda random: (tokens(random),)),
    "gru": Entry(text.TextGru, text_and_state),
    "whisper": Entry(text.Whisper, sound_and_text),
}
