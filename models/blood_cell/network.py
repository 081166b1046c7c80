"""A small residual network for single blood cells: 1.7 M parameters, 0.1 G multiply-adds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medserve.errors import ConfigError
from models.blocks import ResidualBlock2d, conv_norm_2d
from models.blood_cell.units import UNITS

__all__ = ["NETWORKS", "BloodCellNet", "CellNet"]

VIEWS = (1, 4, 8)  # numbers of views that make a group: none, quarter turns, mirror images too


class CellNet(nn.Module):
    """What every network of this room does around its layers.

    Only the middle of the frame is looked at: there the instrument puts the cell, and what lies
    around it (neighbours, padding, the frame's own size) says nothing about its kind. The head is a
    linear layer on the mean of the last map over the plane.

    Args:
        units: What the head tells apart, label by label; a label is as probable as its units.
        window: Pixels of the side of the middle square; smaller images are taken whole.
        side: Pixels that the square is enlarged to before the first convolution, which would
            else blur the nucleus' chromatin and the granules away; 0 leaves it as it is.
        views: 1 looks at the cell once; 4 also at its quarter turns, 8 at their mirror images too,
            and takes the mean. A cell has no upright, so the views are as good as new pictures.
    """

    head: nn.Linear

    def __init__(
        self, units: Sequence[Sequence[str]], window: int, side: int, views: int = 1
    ) -> None:
        super().__init__()
        self.window = window
        self.side = side or window
        self.views = views
        self.sizes = [len(each) for each in units]

    def encode(self, square: Tensor) -> list[Tensor]:
        """Squares (N, 3, S, S) in [0, 1] -> maps (N, C, h, w), fine to coarse, from ReLU each."""
        raise NotImplementedError

    def features(self, image: Tensor) -> list[Tensor]:
        """Image (N, 3, H, W) in [0, 1] -> maps of its middle, fine to coarse."""
        return self.maps(self.middle(image))

    def maps(self, square: Tensor) -> list[Tensor]:
        """Squares (N, 3, S, S) in [0, 1], shown whole -> maps, fine to coarse.

        With several views, each map is their mean. They do not lie on one another, but all that is
        asked of a map is its mean over the plane.
        """
        maps = self.encode(turned(square, self.views))  # (V * N, C, h, w)
        if self.views == 1:
            return maps
        return [each.view(self.views, -1, *each.shape[1:]).mean(dim=0) for each in maps]

    def middle(self, image: Tensor) -> Tensor:
        """The middle square of the frame (N, 3, side, side); a smaller image as it is."""
        top = max(0, (image.shape[2] - self.window) // 2)
        left = max(0, (image.shape[3] - self.window) // 2)
        square = image[:, :, top : top + self.window, left : left + self.window]
        if square.shape[2:] != (self.window, self.window) or self.side == self.window:
            return square
        return F.interpolate(square, size=self.side, mode="bilinear", align_corners=False)

    def tell_apart(self, maps: list[Tensor]) -> Tensor:
        """Maps of `features` -> logits of the units (N, U)."""
        return self.head(maps[-1].mean(dim=(2, 3)))

    def classify(self, maps: list[Tensor]) -> Tensor:
        """Maps of `features` -> logits of the labels (N, K)."""
        return self.join(self.tell_apart(maps))

    def join(self, unit_logits: Tensor) -> Tensor:
        """Logits of the units (N, U) -> of the labels (N, K): the probabilities are summed."""
        groups = torch.split(unit_logits, self.sizes, dim=1)
        return torch.stack([each.logsumexp(dim=1) for each in groups], dim=1)

    def forward(self, image: Tensor) -> Tensor:
        """Image (N, 3, H, W) in [0, 1] -> logits of the labels (N, K)."""
        return self.classify(self.features(image))


class BloodCellNet(CellNet):
    """Stem at half resolution, three stages of residual blocks, mean over the plane, linear head.

    Args:
        units: As of `CellNet`.
        width: Channels of the first stage; the second and third have twice and four times as many.
        window: As of `CellNet`.
        side: As of `CellNet`.
        strides: Of the stem and the three stages; a side must be divisible by their product.
        views: As of `CellNet`.
    """

    def __init__(
        self,
        units: Sequence[Sequence[str]] = UNITS,
        width: int = 48,
        window: int = 84,
        side: int = 112,
        strides: Sequence[int] = (2, 2, 2, 2),
        views: int = 1,
    ) -> None:
        super().__init__(units, window, side, views)
        self.stem = conv_norm_2d(3, width // 2, 3, strides[0])
        self.stages = nn.ModuleList(
            nn.Sequential(
                ResidualBlock2d(channels // 2, channels, stride),
                *(ResidualBlock2d(channels, channels) for _ in range(more)),
            )
            for stride, channels, more in zip(
                strides[1:], (width, 2 * width, 4 * width), (1, 2, 1), strict=True
            )
        )
        self.head = nn.Linear(4 * width, sum(map(len, units)))

    def encode(self, square: Tensor) -> list[Tensor]:
        """Squares (N, 3, S, S) in [0, 1] -> one map per stage."""
        maps = [torch.relu(self.stem(2.0 * square - 1.0))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


def turned(image: Tensor, views: int) -> Tensor:
    """Image (N, C, H, H) -> (views * N, C, H, H): by quarter turns, then the mirror image too."""
    if views == 1:
        return image
    pictures = [image, image.flip(3)][: views // 4]
    return torch.cat([each.rot90(turn, (2, 3)) for each in pictures for turn in range(4)])


def _build(in_channels: int, classes: int, width: int = 48) -> BloodCellNet:
    if (in_channels, classes) != (3, len(UNITS)):
        raise ConfigError(
            f"this network tells {len(UNITS)} kinds apart in colour; {classes} labels and "
            f"{in_channels} channels need units of their own (models/blood_cell/units.py)"
        )
    return BloodCellNet(width=width)


NETWORKS = {"blood_cell": _build}
