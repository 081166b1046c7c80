"""V-Net (Milletari, Navab, Ahmadi, 3DV 2016, arXiv:1606.04797)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.segmentation_3d.norm import InstanceNorm3d

__all__ = ["VNet"]

_DOWN = (2, 3, 3, 3)  # convolutions of each stage on the way down, after the first one's single
_UP = (1, 2, 3, 3)  # and on the way up, fine to coarse


class _Stage(nn.Module):
    """n convolutions, and the stage's input added before the last activation."""

    def __init__(self, channels: int, convolutions: int, kernel_size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(convolutions):
            self.layers.append(
                nn.Sequential(
                    nn.Conv3d(channels, channels, kernel_size, padding=kernel_size // 2),
                    InstanceNorm3d(channels),
                )
            )
        self.activations = nn.ModuleList(nn.PReLU(channels) for _ in range(convolutions))

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, I, J, K) -> the same shape."""
        residual = features
        for n, (layer, activation) in enumerate(zip(self.layers, self.activations, strict=True)):
            residual = layer(residual)
            if n == len(self.layers) - 1:
                residual = residual + features
            residual = activation(residual)
        return residual


class VNet(nn.Module):
    """Five resolutions of residual stages; halved and doubled by 2x2x2 convolutions.

    As published, but for an instance norm after each convolution (the paper has none; with it
    the learning rate of the other networks serves this one too). Sides must divide by 16.

    Args:
        in_channels: Channels of the image.
        classes: Labels, the background included.
        width: Channels at full resolution; the paper has 16.
        kernel_size: Of the stages' convolutions; the paper has 5.
        dropout: Share of whole channels that training drops after each stage but the first.
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 2,
        width: int = 16,
        kernel_size: int = 5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(in_channels, width, kernel_size, padding=kernel_size // 2),
            InstanceNorm3d(width),
        )
        # One channel is added to all of the stem's, as published; of several, a mixture.
        several = in_channels > 1
        self.widen = nn.Conv3d(in_channels, width, 1) if several else nn.Identity()
        self.stem_activation = nn.PReLU(width)
        self.downs, self.down_stages = nn.ModuleList(), nn.ModuleList()
        self.ups, self.up_stages = nn.ModuleList(), nn.ModuleList()
        inputs = [width * 2 ** (level + 1) for level in range(len(_UP))]
        # The way up ends each level with twice the skip's channels: the lowest has them anyhow.
        inputs = [2 * each for each in inputs[:-1]] + inputs[-1:]
        for level, (down, up) in enumerate(zip(_DOWN, _UP, strict=True)):
            fine, coarse = width * 2**level, width * 2 ** (level + 1)
            self.downs.append(_resized(nn.Conv3d(fine, coarse, 2, 2), coarse))
            self.down_stages.append(_Stage(coarse, down, kernel_size))
            self.ups.append(_resized(nn.ConvTranspose3d(inputs[level], fine, 2, 2), fine))
            self.up_stages.append(_Stage(2 * fine, up, kernel_size))
        self.dropout = nn.Dropout3d(dropout)
        self.head = nn.Conv3d(2 * width, classes, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        """Image (N, C, I, J, K) -> logits (N, classes, I, J, K); sides divide by 16."""
        maps = [self.stem_activation(self.stem(image) + self.widen(image))]
        for down, stage in zip(self.downs, self.down_stages, strict=True):
            maps.append(self.dropout(stage(down(maps[-1]))))
        features = maps[-1]
        for up, stage, skip in zip(
            reversed(self.ups), reversed(self.up_stages), reversed(maps[:-1]), strict=True
        ):
            features = self.dropout(stage(torch.cat([up(features), skip], dim=1)))
        return self.head(features)


def _resized(convolution: nn.Module, channels: int) -> nn.Module:
    return nn.Sequential(convolution, InstanceNorm3d(channels), nn.PReLU(channels))
