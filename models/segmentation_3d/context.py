"""CE-Net's context extractor (Gu et al., IEEE TMI 2019, arXiv:1903.02740), in 2D and 3D.

Two blocks at the coarsest resolution: dense atrous convolution sees at four scales, residual
multi-kernel pooling gathers what lies around at four window sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.segmentation_3d.norm import InstanceNorm3d

__all__ = [
    "LAYERS",
    "DenseAtrousConvolution",
    "Dimensions",
    "Layers",
    "ResidualMultiKernelPooling",
    "enlarged",
]

Dimensions = Literal[2, 3]


@dataclass(frozen=True)
class Layers:
    """The layers of one dimensionality, so that a block is written once.

    Attributes:
        convolution: Plain.
        transposed: That doubles the sides.
        norm: Of the batch in 2D, where a step has many slices; of each volume in 3D.
        pool: Largest value of a window.
        dropout: Of whole channels.
    """

    convolution: type[nn.Conv2d] | type[nn.Conv3d]
    transposed: type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]
    norm: type[nn.BatchNorm2d] | type[InstanceNorm3d]
    pool: type[nn.MaxPool2d] | type[nn.MaxPool3d]
    dropout: type[nn.Dropout2d] | type[nn.Dropout3d]

    def normalised(self, channels: int) -> nn.Module:
        """The norm with learned scale and shift."""
        return self.norm(channels)


LAYERS: dict[Dimensions, Layers] = {
    2: Layers(nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.MaxPool2d, nn.Dropout2d),
    3: Layers(nn.Conv3d, nn.ConvTranspose3d, InstanceNorm3d, nn.MaxPool3d, nn.Dropout3d),
}


class DenseAtrousConvolution(nn.Module):
    """Four cascaded branches that see 3, 7, 9 and 19 pixels wide, added to the input.

    Branches share their convolutions (rates 1, 3, 5 and a 1x1), as in the authors' code.
    """

    def __init__(self, channels: int, dimensions: Dimensions = 2) -> None:
        super().__init__()
        convolution = LAYERS[dimensions].convolution
        self.rate_1 = convolution(channels, channels, 3, padding=1)
        self.rate_3 = convolution(channels, channels, 3, padding=3, dilation=3)
        self.rate_5 = convolution(channels, channels, 3, padding=5, dilation=5)
        self.point = convolution(channels, channels, 1)

    def branches(self, features: Tensor) -> list[Tensor]:
        """Features (N, C, ...) -> what each branch adds, narrowest first, of the same shape."""
        near = self.rate_1(features)
        further = self.rate_3(near)
        return [
            torch.relu(near),
            torch.relu(self.point(self.rate_3(features))),
            torch.relu(self.point(further)),
            torch.relu(self.point(self.rate_5(further))),
        ]

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, ...) -> the same shape."""
        return features + torch.stack(self.branches(features)).sum(dim=0)


class ResidualMultiKernelPooling(nn.Module):
    """The largest values of windows 2, 3, 5 and 6 wide, one channel each, beside the input.

    A map narrower than a window is pooled whole along that side. The one-channel convolution is
    shared, as in the authors' code. The maps come back to the input's sides by constant matrices:
    torch's own resize becomes an ONNX one whose size is computed inside the graph as soon as the
    number of images is free, and that is where engines differ.
    """

    KERNELS = (2, 3, 5, 6)

    def __init__(self, channels: int, dimensions: Dimensions = 2) -> None:
        super().__init__()
        layers = LAYERS[dimensions]
        self.pool = F.max_pool2d if dimensions == 2 else F.max_pool3d
        self.squeeze = layers.convolution(channels, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, ...) -> (N, C + 4, ...)."""
        sides = [int(side) for side in features.shape[2:]]
        gathered = []
        for kernel in self.KERNELS:
            window = [min(kernel, side) for side in sides]
            pooled = self.squeeze(self.pool(features, window, window))
            gathered.append(enlarged(pooled, sides))
        return torch.cat([*gathered, features], dim=1)


def enlarged(features: Tensor, sides: Sequence[int]) -> Tensor:
    """Linear resize (N, C, ...) -> (N, C, *sides), as torch's with align_corners=False."""
    for axis, side in enumerate(sides, start=2):
        matrix = features.new_tensor(_linear(int(features.shape[axis]), side))
        features = (features.movedim(axis, -1) @ matrix).movedim(-1, axis)
    return features


def _linear(before: int, after: int) -> list[list[float]]:
    """Weights (before, after): how much each old value gives to each new one."""
    matrix = [[0.0] * after for _ in range(before)]
    for new in range(after):
        place = min(max((new + 0.5) * before / after - 0.5, 0.0), before - 1.0)
        low = min(int(place), before - 1)
        high = min(low + 1, before - 1)
        matrix[low][new] += 1.0 - (place - low)
        matrix[high][new] += place - low
    return matrix
