"""Small networks of the families that bitsmith is for.

    module, x = NETS["resnet"]()          a seeded torch module in evaluation mode, and an input
    graph, x, y = imported("resnet")      the same as a Graph with arrays; exported once per session

Each has every building block of its family, at a size that a test can afford. Weights are scaled so that
values keep their size from layer to layer; batch norms have statistics that are not trivial.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.ir import Graph
from torch import nn


def _conv_bn(
    cin: int, cout: int, kernel: int, act: type[nn.Module] | None, stride: int = 1, groups: int = 1
) -> nn.Module:
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), *([act()] if act else []))


class _Basic(nn.Module):
    """ResNet's basic block; a projection where the shape changes."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv_bn(cin, cout, 3, nn.ReLU, stride)
        self.conv2 = _conv_bn(cout, cout, 3, None)
        self.skip = _conv_bn(cin, cout, 1, None, stride) if (cin, stride) != (cout, 1) else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv2(self.conv1(x)) + self.skip(x))


class _SqueezeExcite(nn.Module):
    def __init__(self, channels: int, act: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, max(channels // 4, 4), 1)
        self.act = act()
        self.expand = nn.Conv2d(max(channels // 4, 4), channels, 1)
        self.gate = gate()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True)))))


class _Inverted(nn.Module):
    """Inverted residual: expand, depthwise, squeeze and excite (when `gate` is given), project."""

    def __init__(
        self,
        cin: int,
        cout: int,
        expand: int,
        kernel: int,
        stride: int,
        act: type[nn.Module],
        gate: type[nn.Module] | None = None,
        squeeze_act: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        wide = cin * expand
        parts = [_conv_bn(cin, wide, 1, act)] if expand > 1 else []
        parts.append(_conv_bn(wide, wide, kernel, act, stride, groups=wide))
        if gate is not None:
            parts.append(_SqueezeExcite(wide, squeeze_act, gate))
        parts.append(_conv_bn(wide, cout, 1, None))
        self.body = nn.Sequential(*parts)
        self.residual = stride == 1 and cin == cout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class _Head(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.pool(x), 1))


class _Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(40, 64), nn.Linear(64, 48), nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc3(torch.nn.functional.gelu(self.fc2(torch.relu(self.fc1(x)))))


def _seed(module: nn.Module, seed: int) -> nn.Module:
    """Random weights of unit gain, random batch-norm statistics; evaluation mode."""
    random = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            fan = part.weight[0].numel()
            part.weight.data = torch.randn(part.weight.shape, generator=random) * math.sqrt(2 / fan)
            if part.bias is not None:
                part.bias.data = torch.randn(part.bias.shape, generator=random) * 0.1
        elif isinstance(part, nn.BatchNorm2d):
            for name in ("weight", "running_var"):
                getattr(part, name).data = torch.rand(part.num_features, generator=random) + 0.5
            for name in ("bias", "running_mean"):
                getattr(part, name).data = torch.randn(part.num_features, generator=random) * 0.2
    return module.eval()


def _image(seed: int, size: int = 32) -> torch.Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed + 1000))


def mlp(seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """Three linear layers, ReLU and GELU; input [2, 40], output [2, 10]."""
    return _seed(_Perceptron(), seed), torch.randn(
        2, 40, generator=torch.Generator().manual_seed(seed + 1000)
    )


def resnet(seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """7x7 stem, max pool, four basic blocks; input [1, 3, 32, 32], output [1, 10]."""
    stem = nn.Sequential(_conv_bn(3, 16, 7, nn.ReLU, 2), nn.MaxPool2d(3, 2, 1))
    blocks = [_Basic(16, 16, 1), _Basic(16, 32, 2), _Basic(32, 32, 1), _Basic(32, 48, 2)]
    return _seed(nn.Sequential(stem, *blocks, _Head(48, 10)), seed), _image(seed)


def mobilenet_v2(seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """Inverted residuals with ReLU6; input [1, 3, 32, 32], output [1, 10]."""
    blocks = [
        _Inverted(16, 8, 1, 3, 1, nn.ReLU6),
        _Inverted(8, 16, 6, 3, 2, nn.ReLU6),
        _Inverted(16, 16, 6, 3, 1, nn.ReLU6),
        _Inverted(16, 24, 6, 3, 2, nn.ReLU6),
    ]
    net = nn.Sequential(
        _conv_bn(3, 16, 3, nn.ReLU6, 2), *blocks, _conv_bn(24, 64, 1, nn.ReLU6), _Head(64, 10)
    )
    return _seed(net, seed), _image(seed)


def mobilenet_v3(seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """Squeeze and excite with hard sigmoid, hard swish; input [1, 3, 32, 32], output [1, 10]."""
    gate = nn.Hardsigmoid
    blocks = [
        _Inverted(16, 16, 1, 3, 2, nn.ReLU, gate),
        _Inverted(16, 24, 4, 5, 2, nn.Hardswish, gate),
        _Inverted(24, 24, 4, 5, 1, nn.Hardswish, gate),
    ]
    net = nn.Sequential(
        _conv_bn(3, 16, 3, nn.Hardswish, 2), *blocks, _conv_bn(24, 64, 1, nn.Hardswish), _Head(64, 10)
    )
    return _seed(net, seed), _image(seed)


def efficientnet(seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """Squeeze and excite with sigmoid, SiLU; input [1, 3, 32, 32], output [1, 10]."""
    gate, silu = nn.Sigmoid, nn.SiLU
    blocks = [
        _Inverted(16, 16, 1, 3, 1, silu, gate, silu),
        _Inverted(16, 24, 6, 3, 2, silu, gate, silu),
        _Inverted(24, 24, 6, 5, 1, silu, gate, silu),
    ]
    net = nn.Sequential(_conv_bn(3, 16, 3, silu, 2), *blocks, _conv_bn(24, 64, 1, silu), _Head(64, 10))
    return _seed(net, seed), _image(seed)


NETS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "mlp": mlp,
    "resnet": resnet,
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3": mobilenet_v3,
    "efficientnet": efficientnet,
}


@lru_cache
def imported(name: str) -> tuple[Graph, np.ndarray, np.ndarray]:
    """(graph, input, what torch computes from it); an export takes seconds, so it is made once."""
    module, x = NETS[name]()
    with torch.no_grad():
        return load_model(module, inputs=(x,)), x.numpy(), module(x).numpy()
