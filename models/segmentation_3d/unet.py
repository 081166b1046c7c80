"""Residual 3D U-Net: the shape of Cicek et al. with the blocks of a residual network."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from models.segmentation_3d.norm import InstanceNorm3d

__all__ = ["ResidualBlock3d", "Unet3d"]

_SLOPE = 0.01  # of the leaky ReLU, as nnU-Net has it


class ResidualBlock3d(nn.Module):
    """Two 3x3x3 convolutions around a shortcut (He et al., CVPR 2016, arXiv:1512.03385).

    Instance norm, since a step sees two or three volumes only. With a stride the shortcut averages
    before its 1x1x1 convolution, so that no voxel is thrown away (arXiv:1812.01187, tweak D).
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv3d(in_channels, channels, 3, stride, 1, bias=False),
            InstanceNorm3d(channels),
            nn.LeakyReLU(_SLOPE, inplace=True),
            nn.Dropout3d(dropout),
            nn.Conv3d(channels, channels, 3, padding=1, bias=False),
            InstanceNorm3d(channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.AvgPool3d(stride) if stride > 1 else nn.Identity(),
                nn.Conv3d(in_channels, channels, 1, bias=False),
                InstanceNorm3d(channels),
            )
        self.activation = nn.LeakyReLU(_SLOPE, inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, I, J, K) -> (N, channels, I / stride, J / stride, K / stride)."""
        return self.activation(self.residual(features) + self.shortcut(features))


class Unet3d(nn.Module):
    """Encoder and decoder with a skip at every level (MICCAI 2016, arXiv:1606.06650).

    Halved by strided convolutions and doubled by transposed ones, so that nothing is resized by
    interpolation and every engine computes the same.

    Args:
        in_channels: Channels of the image.
        classes: Labels, the background included.
        width: Channels at full resolution; each level down has twice as many. Multiples of 16
            fill the registers of a CPU: 24 takes as long as 32.
        levels: Resolutions; sides must divide by 2 ** (levels - 1).
        dropout: Share of whole channels that training drops inside each block.
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 2,
        width: int = 16,
        levels: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels = [width * 2**level for level in range(levels)]
        self.encoder = nn.ModuleList([ResidualBlock3d(in_channels, width, 1, dropout)])
        self.ups = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for fine, coarse in itertools.pairwise(channels):
            self.encoder.append(ResidualBlock3d(fine, coarse, 2, dropout))
            self.ups.append(nn.ConvTranspose3d(coarse, fine, kernel_size=2, stride=2))
            self.decoder.append(ResidualBlock3d(2 * fine, fine, 1, dropout))
        self.head = nn.Conv3d(width, classes, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        """Image (N, C, I, J, K) -> logits (N, classes, I, J, K)."""
        maps = [self.encoder[0](image)]
        for block in self.encoder[1:]:
            maps.append(block(maps[-1]))
        features = maps[-1]
        for up, block, skip in zip(
            reversed(self.ups), reversed(self.decoder), reversed(maps[:-1]), strict=True
        ):
            features = block(torch.cat([up(features), skip], dim=1))
        return self.head(features)
