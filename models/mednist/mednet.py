"""MedNet: two convolutions and three linear layers, every size of them a key of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medserve.errors import ConfigError

__all__ = ["MedNet", "MedNetShape"]


@dataclass(frozen=True)
class MedNetShape:
    """The keys of the architecture.

    Attributes:
        side: Pixels along each side of the image.
        num_convs1: Channels of the first convolution.
        conv_size1: Pixels along each side of its kernel; nothing is padded.
        num_convs2: Channels of the second convolution.
        conv_size2: Pixels along each side of its kernel.
        pool: Largest of pool x pool neighbours after each convolution; 1 keeps them all.
        fc_size1: Units of the first linear layer.
        fc_size2: Units of the second.
    """

    side: int = 64
    num_convs1: int = 8
    conv_size1: int = 5
    num_convs2: int = 16
    conv_size2: int = 5
    pool: int = 2
    fc_size1: int = 128
    fc_size2: int = 64

    @property
    def fc_inputs(self) -> int:
        """Numbers that reach the first linear layer.

        Raises:
            ConfigError: the kernels and the pooling leave nothing of the image.
        """
        side = self.side
        for size in (self.conv_size1, self.conv_size2):
            side = (side - size + 1) // self.pool
        if side < 1:
            raise ConfigError(
                f"expected kernels and pooling that leave something of {self.side} pixels, got "
                f"{self.conv_size1}, {self.conv_size2} and {self.pool}; take smaller ones"
            )
        return self.num_convs2 * side * side


class MedNet(nn.Module):
    """Convolution, pooling, convolution, pooling, then three linear layers."""

    def __init__(self, classes: int = 6, shape: MedNetShape | None = None) -> None:
        super().__init__()
        shape = shape or MedNetShape()
        self.pool = shape.pool
        self.conv1 = nn.Conv2d(1, shape.num_convs1, shape.conv_size1)
        self.conv2 = nn.Conv2d(shape.num_convs1, shape.num_convs2, shape.conv_size2)
        self.fc1 = nn.Linear(shape.fc_inputs, shape.fc_size1)
        self.fc2 = nn.Linear(shape.fc_size1, shape.fc_size2)
        self.head = nn.Linear(shape.fc_size2, classes)

    def features(self, image: Tensor) -> list[Tensor]:
        """Image (N, 1, H, W) in [0, 1] -> the maps after each convolution and its pooling.

        The first in 4 x 4 parts, each a channel of its own (N, 16 C, 1, 1): the means of 24
        channels alone describe an image too poorly to tell what is unlike.
        """
        first = F.max_pool2d(torch.relu(self.conv1(2.0 * image - 1.0)), self.pool)
        parts = F.avg_pool2d(first, max(1, first.shape[-1] // 4)).flatten(1)[:, :, None, None]
        return [parts, F.max_pool2d(torch.relu(self.conv2(first)), self.pool)]

    def classify(self, maps: list[Tensor]) -> Tensor:
        """Maps of `features` -> logits (N, classes)."""
        hidden = torch.relu(self.fc1(maps[-1].flatten(1)))
        return self.head(torch.relu(self.fc2(hidden)))

    def forward(self, image: Tensor) -> Tensor:
        """Image (N, 1, side, side) in [0, 1] -> logits (N, classes)."""
        return self.classify(self.features(image))
