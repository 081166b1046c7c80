"""A small residual network for 64x64 grey slices: 0.2 M parameters, 17 M multiply-adds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.blocks import ResidualBlock2d, conv_norm_2d

__all__ = ["NETWORKS", "MednistNet"]


class MednistNet(nn.Module):
    """Stem at half resolution, three stages of residual blocks, mean over the plane, linear head.

    Args:
        classes: Number of labels.
        width: Channels of the first stage; the second and third have twice and four times as many.
        in_channels: Of the image.
    """

    def __init__(self, classes: int = 6, width: int = 16, in_channels: int = 1) -> None:
        super().__init__()
        self.stem = conv_norm_2d(in_channels, width, 3, stride=2)
        self.stages = nn.ModuleList(
            [
                nn.Sequential(ResidualBlock2d(width, width)),
                nn.Sequential(
                    ResidualBlock2d(width, 2 * width, stride=2),
                    ResidualBlock2d(2 * width, 2 * width),
                ),
                nn.Sequential(
                    ResidualBlock2d(2 * width, 4 * width, stride=2),
                    ResidualBlock2d(4 * width, 4 * width),
                ),
            ]
        )
        self.head = nn.Linear(4 * width, classes)

    def features(self, image: Tensor) -> list[Tensor]:
        """Image (N, C, H, W) in [0, 1] -> one map per stage, fine to coarse: /2, /4, /8."""
        maps = [torch.relu(self.stem(2.0 * image - 1.0))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def classify(self, maps: list[Tensor]) -> Tensor:
        """Maps of `features` -> logits (N, classes)."""
        return self.head(maps[-1].mean(dim=(2, 3)))

    def forward(self, image: Tensor) -> Tensor:
        """Image (N, C, H, W) in [0, 1] -> logits (N, classes); H and W divisible by 8."""
        return self.classify(self.features(image))


NETWORKS = {"mednist": MednistNet}
