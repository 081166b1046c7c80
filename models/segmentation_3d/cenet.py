"""CE-Net (Gu et al., IEEE TMI 2019, arXiv:1903.02740): 2D as published, slice-wise, and 3D."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.segmentation_3d.context import (
    LAYERS,
    DenseAtrousConvolution,
    Dimensions,
    ResidualMultiKernelPooling,
)

__all__ = ["CENet", "SliceWise"]


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


class CENet(nn.Module):
    """ResNet encoder, context extractor, decoder whose skips are added, not concatenated.

    With `shrinking_stem` and 64 channels in 2D it is the published network (its encoder untrained:
    ImageNet says little about one grey channel). Without, stem and decoder stay at full
    resolution: a plane of 48 x 64 would otherwise end as 2 x 2 and leave no context to extract.

    Args:
        in_channels: Channels of the image.
        classes: Labels, the background included.
        width: Channels of the first stage; the paper has 64.
        blocks: Residual blocks of the four stages; ResNet-34 has (3, 4, 6, 3).
        dimensions: 2 for planes, 3 for volumes.
        shrinking_stem: Quarter the sides before the first stage, as published.
        dropout: Share of whole channels that training drops after the context extractor.
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 2,
        width: int = 64,
        blocks: Sequence[int] = (3, 4, 6, 3),
        dimensions: Dimensions = 2,
        *,
        shrinking_stem: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers = LAYERS[dimensions]
        channels = [width * 2**stage for stage in range(len(blocks))]
        self.stem = nn.Sequential(
            layers.convolution(
                in_channels, width, 7, 2 if shrinking_stem else 1, padding=3, bias=False
            ),
            layers.normalised(width),
            nn.ReLU(inplace=True),
            layers.pool(3, stride=2, padding=1) if shrinking_stem else nn.Identity(),
        )
        self.encoder = nn.ModuleList()
        before = width
        for stage, (after, count) in enumerate(zip(channels, blocks, strict=True)):
            first = _ResidualBlock(before, after, 1 if stage == 0 else 2, dimensions)
            rest = [_ResidualBlock(after, after, 1, dimensions) for _ in range(count - 1)]
            self.encoder.append(nn.Sequential(first, *rest))
            before = after
        self.context = nn.Sequential(
            DenseAtrousConvolution(before, dimensions),
            ResidualMultiKernelPooling(before, dimensions),
            layers.dropout(dropout),
        )
        before += len(ResidualMultiKernelPooling.KERNELS)
        self.decoder = nn.ModuleList()
        for after in reversed(channels[:-1]):
            self.decoder.append(_DecoderBlock(before, after, dimensions))
            before = after
        last = max(1, width // 2)
        self.grow: nn.Module = nn.Identity()
        if shrinking_stem:
            self.grow = nn.Sequential(
                _DecoderBlock(width, width, dimensions),
                layers.transposed(width, last, 4, stride=2, padding=1),
                nn.ReLU(inplace=True),
            )
        self.last = nn.Sequential(
            layers.convolution(last if shrinking_stem else width, last, 3, padding=1),
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
