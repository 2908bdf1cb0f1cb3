"""Networks that give images and boxes, and attention over images; written from their papers, small."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_zoo_vision import Bottleneck, conv_bn


class DoubleConv(nn.Sequential):
    def __init__(self, cin: int, cout: int) -> None:
        super().__init__(conv_bn(cin, cout, act=nn.ReLU()), conv_bn(cout, cout, act=nn.ReLU()))


class UNet(nn.Module):
    """Ronneberger et al., U-Net: Convolutional Networks for Biomedical Image Segmentation, 2015; it pads."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 32), classes: int = 3) -> None:
        super().__init__()
        self.down = nn.ModuleList(DoubleConv(a, b) for a, b in zip((3, *widths), widths, strict=False))
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in steps)
        self.merge = nn.ModuleList(DoubleConv(2 * b, b) for _, b in steps)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            kept.append(x)
        for up, merge, skip in zip(self.up, self.merge, kept[-2::-1], strict=True):
            x = merge(torch.cat([skip, up(x)], dim=1))
        return self.head(x)


class Pyramid(nn.Module):
    """Lin et al., Feature Pyramid Networks for Object Detection, 2016: top-down, by nearest neighbours."""

    def __init__(self, widths: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in widths)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        found = [lateral(level) for lateral, level in zip(self.lateral, levels, strict=True)]
        for i in range(len(found) - 1, 0, -1):
            found[i - 1] = found[i - 1] + F.interpolate(found[i], scale_factor=2.0, mode="nearest")
        return [smooth(level) for smooth, level in zip(self.smooth, found, strict=True)]


class Detector(nn.Module):
    """One stage, as Tian et al., FCOS, 2019: scores, distances to a box's sides, centredness at every place.

    The heads are shared by all levels; each level scales its distances itself. Returns scores [1, places,
    classes], boxes [1, places, 4] (left, top, right, bottom) and centredness [1, places].
    """

    def __init__(self, classes: int = 5, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 16, 3, 2, act=nn.ReLU()), nn.MaxPool2d(2))
        self.stages = nn.ModuleList(
            [Bottleneck(16, 8, 32, 1), Bottleneck(32, 12, 48, 2), Bottleneck(48, 16, 64, 2)]
        )
        self.pyramid = Pyramid((32, 48, 64), channels)
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(4, channels), nn.ReLU())
            for _ in range(2)
        )
        self.scores = nn.Conv2d(channels, classes, 3, padding=1)
        self.distances = nn.Conv2d(channels, 4, 3, padding=1)
        self.centres = nn.Conv2d(channels, 1, 3, padding=1)
        self.scale = nn.ParameterList(nn.Parameter(torch.tensor(0.2 + 0.1 * i)) for i in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        levels, y = [], self.stem(x)
        for stage in self.stages:
            y = stage(y)
            levels.append(y)
        scores, boxes, centres = [], [], []
        for i, level in enumerate(self.pyramid(levels)):
            kinds, places = (tower(level) for tower in self.towers)
            sides = torch.exp(self.scale[i] * self.distances(places)) * 4 * 2**i
            scores.append(torch.sigmoid(self.scores(kinds)).flatten(2).transpose(1, 2))
            boxes.append(self._corners(sides, 4 * 2**i))
            centres.append(torch.sigmoid(self.centres(places)).flatten(1))
        return torch.cat(scores, 1), torch.cat(boxes, 1), torch.cat(centres, 1)

    @staticmethod
    def _corners(sides: Tensor, stride: int) -> Tensor:
        rows, columns = sides.shape[2:]
        y = (torch.arange(rows) + 0.5)[:, None].expand(rows, columns) * stride
        x = (torch.arange(columns) + 0.5)[None].expand(rows, columns) * stride
        left, top, right, bottom = sides.unbind(1)
        return torch.stack([x - left, y - top, x + right, y + bottom], -1).flatten(1, 2)


class Attention(nn.Module):
    """Vaswani et al., Attention Is All You Need, 2017; `context` gives keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        q, k, v = (self._split(part) for part in (self.query(x), self.key(source), self.value(source)))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        return x.view(n, length, self.heads, width // self.heads).transpose(1, 2)


class PreNormBlock(nn.Module):
    """Norm before attention and before the perceptron; cross-attention where asked for."""

    def __init__(self, width: int, heads: int, ratio: int = 4, cross: bool = False) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm_cross = nn.LayerNorm(width) if cross else None
        self.cross = Attention(width, heads) if cross else None
        self.norm2 = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask=mask)
        if self.cross is not None and self.norm_cross is not None:
            x = x + self.cross(self.norm_cross(x), context)
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class ViT(nn.Module):
    """Dosovitskiy et al., An Image is Worth 16x16 Words, 2020: patches, a class token, learnt positions."""

    def __init__(self, size: int = 32, patch: int = 8, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(PreNormBlock(width, 4) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class SwinBlock(nn.Module):
    """Attention within windows that are shifted by `shift`, with a learnt bias for each distance."""

    def __init__(self, width: int, heads: int, window: int, size: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = at[:, :, None] - at[:, None, :] + window - 1
        self.register_buffer("index", apart[0] * (2 * window - 1) + apart[1])
        area = torch.zeros(1, size, size, 1)
        cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None)) if shift else (slice(None),)
        for i, rows in enumerate(cuts):
            for j, columns in enumerate(cuts):
                area[:, rows, columns] = i * len(cuts) + j
        parts = self._windows(area).squeeze(-1)
        self.register_buffer("mask", (parts[:, None, :] != parts[:, :, None]).float() * -100.0)

    def _windows(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        s = self.window
        return x.view(n, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, c)

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        s = self.window
        y = self._windows(torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2)))
        q, k, v = self.qkv(y).view(-1, s * s, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.bias[self.index].permute(2, 0, 1)[None] + self.mask[:, None]
        scores = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1) + bias
        y = self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, s * s, c))
        y = y.view(n, h // s, w // s, s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.mlp(self.norm2(x))


class Swin(nn.Module):
    """Liu et al., Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, 2021."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.first = nn.Sequential(SwinBlock(width, 2, 4, 8, 0), SwinBlock(width, 2, 4, 8, 2))
        self.merge = nn.Sequential(nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False))
        self.second = SwinBlock(2 * width, 4, 4, 4, 0)
        self.norm, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.patches(x).permute(0, 2, 3, 1))
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        x = self.second(self.merge(torch.cat(corners, -1)))
        return self.head(self.norm(x).mean((1, 2)))
