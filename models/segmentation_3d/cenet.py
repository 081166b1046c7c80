"""CE-Net (Gu et al., IEEE TMI 2019, arXiv:1903.02740): 2D as published, slice-wise, and 3D."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.segmentation_3d.context import (
    LAYERS,
    DenseAtrousConvolution,
    Dimensions,
    Layers,
    ResidualMultiKernelPooling,
)

__all__ = ["CENet", "CENetShape", "SliceWise"]


class _ResidualBlock(nn.Module):
    """ResNet-34's basic block: two convolutions around a shortcut (arXiv:1512.03385)."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, dimensions: Dimensions
    ) -> None:
        super().__init__()
        layers = LAYERS[dimensions]
        self.residual = nn.Sequential(
            layers.convolution(in_channels, channels, 3, stride, 1, bias=False),
            layers.normalised(channels),
            nn.ReLU(inplace=True),
            layers.convolution(channels, channels, 3, padding=1, bias=False),
            layers.normalised(channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                layers.convolution(in_channels, channels, 1, stride, bias=False),
                layers.normalised(channels),
            )

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, ...) -> (N, channels, ... / stride)."""
        return torch.relu(self.residual(features) + self.shortcut(features))


class _DecoderBlock(nn.Module):
    """1x1 convolution to a quarter of the channels, doubled sides, 1x1 convolution."""

    def __init__(self, in_channels: int, channels: int, dimensions: Dimensions) -> None:
        super().__init__()
        layers = LAYERS[dimensions]
        few = max(1, in_channels // 4)
        self.layers = nn.Sequential(
            layers.convolution(in_channels, few, 1),
            layers.normalised(few),
            nn.ReLU(inplace=True),
            layers.transposed(few, few, 3, stride=2, padding=1, output_padding=1),
            layers.normalised(few),
            nn.ReLU(inplace=True),
            layers.convolution(few, channels, 1),
            layers.normalised(channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, ...) -> (N, channels, ... * 2)."""
        return self.layers(features)


@dataclass(frozen=True)
class CENetShape:
    """How wide and deep a CE-Net is; the defaults are the paper's.

    Attributes:
        width: Channels of the first stage.
        blocks: Residual blocks of the four stages, as in ResNet-34.
        dimensions: 2 for planes, 3 for volumes.
        shrinking_stem: Quarter the sides before the first stage, as published.
    """

    width: int = 64
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    dimensions: Dimensions = 2
    shrinking_stem: bool = True

    @property
    def layers(self) -> Layers:
        """Those of its dimensionality."""
        return LAYERS[self.dimensions]

    @property
    def channels(self) -> list[int]:
        """Of each stage, fine to coarse."""
        return [self.width * 2**stage for stage in range(len(self.blocks))]


class CENet(nn.Module):
    """ResNet encoder, context extractor, decoder whose skips are added, not concatenated.

    With the default shape it is the published network (its encoder untrained: ImageNet says
    little about one grey channel). Without the shrinking stem, stem and decoder stay at full
    resolution: a plane of 48 x 64 would otherwise end as 2 x 2 and leave no context to extract.

    Args:
        in_channels: Channels of the image.
        classes: Labels, the background included.
        shape: Width and depth.
        dropout: Share of whole channels that training drops after the context extractor.
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 2,
        shape: CENetShape | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        shape = shape or CENetShape()
        layers, width, deepest = shape.layers, shape.width, shape.channels[-1]
        self.stem = _stem(in_channels, shape)
        self.encoder = _encoder(shape)
        self.context = nn.Sequential(
            DenseAtrousConvolution(deepest, shape.dimensions),
            ResidualMultiKernelPooling(deepest, shape.dimensions),
            layers.dropout(dropout),
        )
        self.decoder = nn.ModuleList()
        before = deepest + len(ResidualMultiKernelPooling.KERNELS)
        for after in reversed(shape.channels[:-1]):
            self.decoder.append(_DecoderBlock(before, after, shape.dimensions))
            before = after
        last = max(1, width // 2)
        self.grow: nn.Module = nn.Identity()
        if shape.shrinking_stem:
            self.grow = nn.Sequential(
                _DecoderBlock(width, width, shape.dimensions),
                layers.transposed(width, last, 4, stride=2, padding=1),
                nn.ReLU(inplace=True),
            )
        self.last = nn.Sequential(
            layers.convolution(last if shape.shrinking_stem else width, last, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.head = layers.convolution(last, classes, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Image (N, C, ...) -> logits (N, classes, ...); sides divide by 8 (by 32 as published)."""
        maps = [self.encoder[0](self.stem(image))]
        for stage in self.encoder[1:]:
            maps.append(stage(maps[-1]))
        features = self.context(maps[-1])
        for block, skip in zip(self.decoder, reversed(maps[:-1]), strict=True):
            features = block(features) + skip
        return self.head(self.last(self.grow(features)))


def _stem(in_channels: int, shape: CENetShape) -> nn.Module:
    """7x7 convolution, and on request a quarter of the sides."""
    layers, shrinks = shape.layers, shape.shrinking_stem
    stride = 2 if shrinks else 1
    return nn.Sequential(
        layers.convolution(in_channels, shape.width, 7, stride, padding=3, bias=False),
        layers.normalised(shape.width),
        nn.ReLU(inplace=True),
        layers.pool(3, stride=2, padding=1) if shrinks else nn.Identity(),
    )


def _encoder(shape: CENetShape) -> nn.ModuleList:
    """Stages of residual blocks; each but the first halves the sides."""
    stages = nn.ModuleList()
    before = shape.width
    for stage, (after, count) in enumerate(zip(shape.channels, shape.blocks, strict=True)):
        first = _ResidualBlock(before, after, 1 if stage == 0 else 2, shape.dimensions)
        rest = [_ResidualBlock(after, after, 1, shape.dimensions) for _ in range(count - 1)]
        stages.append(nn.Sequential(first, *rest))
        before = after
    return stages


class SliceWise(nn.Module):
    """Runs a 2D network on every plane along the last axis of a volume."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Image (N, C, I, J, K) -> logits (N, classes, I, J, K)."""
        channels, i, j, k = (int(side) for side in image.shape[1:])
        planes = image.permute(0, 4, 1, 2, 3).reshape(-1, channels, i, j)  # (N * K, C, I, J)
        logits = self.network(planes)  # (N * K, classes, I, J)
        return logits.reshape(-1, k, logits.shape[1], i, j).permute(0, 2, 3, 4, 1)
