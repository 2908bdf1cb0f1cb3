"""Image networks, written from their papers at a size that a test can afford."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(
    cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: nn.Module | None = None
) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), *([act] if act else []))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1, and a projection where the shape changes."""

    def __init__(self, cin: int, mid: int, cout: int, stride: int) -> None:
        super().__init__()
        self.reduce = conv_bn(cin, mid, 1, act=nn.ReLU())
        self.spatial = conv_bn(mid, mid, 3, stride, act=nn.ReLU())
        self.expand = conv_bn(mid, cout, 1)
        self.skip = conv_bn(cin, cout, 1, stride) if (cin, stride) != (cout, 1) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.expand(self.spatial(self.reduce(x))) + self.skip(x))


class ResNet(nn.Module):
    """He et al., Deep Residual Learning for Image Recognition, 2015: bottlenecks, four stages."""

    def __init__(self, width: int = 8, blocks: tuple[int, ...] = (2, 1, 1, 1), classes: int = 10) -> None:
        super().__init__()
        self.stem = conv_bn(3, width, 7, 2, act=nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        stages, cin = [], width
        for i, depth in enumerate(blocks):
            mid = width * 2**i
            for j in range(depth):
                stages.append(Bottleneck(cin, mid, mid * 4, 2 if i and not j else 1))
                cin = mid * 4
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(cin, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.stages(self.pool(self.stem(x))), 1).flatten(1))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, inner: int, act: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        self.act, self.gate = act, gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


class InvertedResidual(nn.Module):
    """Expand, depthwise, squeeze and excite (where given), project."""

    def __init__(
        self,
        cin: int,
        wide: int,
        cout: int,
        kernel: int,
        stride: int,
        act: nn.Module,
        squeeze: nn.Module | None,
    ) -> None:
        super().__init__()
        parts = [conv_bn(cin, wide, 1, act=act)] if wide != cin else []
        parts.append(conv_bn(wide, wide, kernel, stride, wide, act))
        self.body = nn.Sequential(*parts, *([squeeze] if squeeze else []), conv_bn(wide, cout, 1))
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetV2(nn.Module):
    """Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018."""

    ROWS = ((1, 8, 1, 1), (6, 12, 2, 2), (6, 16, 2, 2), (6, 24, 1, 1))  # expansion, channels, repeats, stride

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers, cin = [conv_bn(3, 16, 3, 2, act=nn.ReLU6())], 16
        for expansion, cout, repeats, stride in self.ROWS:
            for i in range(repeats):
                step = stride if i == 0 else 1
                layers.append(InvertedResidual(cin, cin * expansion, cout, 3, step, nn.ReLU6(), None))
                cin = cout
        layers.append(conv_bn(cin, 80, 1, act=nn.ReLU6()))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(80, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class MobileNetV3(nn.Module):
    """Howard et al., Searching for MobileNetV3, 2019: hard swish, squeeze and excite with a hard sigmoid."""

    ROWS = (  # kernel, expanded, channels, squeeze, hard swish, stride
        (3, 16, 16, True, False, 2),
        (3, 48, 16, False, False, 1),
        (5, 64, 24, True, True, 2),
        (5, 72, 24, True, True, 1),
    )

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers, cin = [conv_bn(3, 16, 3, 2, act=nn.Hardswish())], 16
        for kernel, wide, cout, squeeze, swish, stride in self.ROWS:
            gate = SqueezeExcite(wide, max(8, wide // 4), nn.ReLU(), nn.Hardsigmoid()) if squeeze else None
            act = nn.Hardswish() if swish else nn.ReLU()
            layers.append(InvertedResidual(cin, wide, cout, kernel, stride, act, gate))
            cin = cout
        self.features = nn.Sequential(*layers, conv_bn(cin, 96, 1, act=nn.Hardswish()))
        self.classifier = nn.Sequential(nn.Linear(96, 64), nn.Hardswish(), nn.Linear(64, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


class EfficientNet(nn.Module):
    """Tan, Le, EfficientNet: Rethinking Model Scaling, 2019: SiLU, squeeze and excite."""

    ROWS = ((1, 3, 16, 1, 1), (6, 3, 16, 1, 2), (6, 5, 24, 2, 2), (6, 3, 32, 1, 1))  # expansion, kernel, ...

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers, cin = [conv_bn(3, 16, 3, 2, act=nn.SiLU())], 16
        for expansion, kernel, cout, repeats, stride in self.ROWS:
            for i in range(repeats):
                wide = cin * expansion
                gate = SqueezeExcite(wide, max(1, cin // 4), nn.SiLU(), nn.Sigmoid())
                step = stride if i == 0 else 1
                layers.append(InvertedResidual(cin, wide, cout, kernel, step, nn.SiLU(), gate))
                cin = cout
        self.features = nn.Sequential(*layers, conv_bn(cin, 96, 1, act=nn.SiLU()))
        self.classifier = nn.Linear(96, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.wide, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.spatial(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(F.gelu(self.wide(y)))
        return x + y.permute(0, 3, 1, 2)


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of an image [n, c, h, w]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Liu et al., A ConvNet for the 2020s, 2022."""

    def __init__(self, widths: tuple[int, ...] = (16, 24, 40), classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 4), LayerNorm2d(widths[0], eps=1e-6)]
        for i, width in enumerate(widths):
            if i:
                before = widths[i - 1]
                layers += [LayerNorm2d(before, eps=1e-6), nn.Conv2d(before, width, 2, 2)]
            layers.append(ConvNeXtBlock(width))
        self.features = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.features(x).mean((2, 3))))
