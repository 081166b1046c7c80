"""Building blocks that several networks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ResidualBlock2d", "conv_norm_2d"]


def conv_norm_2d(in_channels: int, channels: int, kernel_size: int, stride: int = 1) -> nn.Module:
    """Convolution that keeps the centre of the plane, then batch norm (which brings the bias)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size, stride, kernel_size // 2, bias=False),
        nn.BatchNorm2d(channels),
    )


class ResidualBlock2d(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al., CVPR 2016, arXiv:1512.03385).

    With a stride, the shortcut averages before its 1x1 convolution, so that no pixel is thrown
    away (He et al., CVPR 2019, arXiv:1812.01187, tweak D).
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = conv_norm_2d(in_channels, channels, 3, stride)
        self.second = conv_norm_2d(channels, channels, 3)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != channels:
            pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
            self.shortcut = nn.Sequential(pool, conv_norm_2d(in_channels, channels, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, H, W) -> (N, channels, H / stride, W / stride); H and W divisible."""
        residual = self.second(torch.relu(self.first(features)))
        return torch.relu(residual + self.shortcut(features))
