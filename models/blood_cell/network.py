"""A small residual network for single blood cells: 1.7 M parameters, 0.1 G multiply-adds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.blocks import ResidualBlock2d, conv_norm_2d

__all__ = ["UNITS", "BloodCellNet"]

# What the head tells apart, label by label: the stages of maturation that haematologists name look
# different from each other, and learning them apart helps where two labels meet.
UNITS: tuple[tuple[str, ...], ...] = (
    ("basophil",),
    ("eosinophil",),
    ("erythroblast",),
    ("metamyelocyte", "myelocyte", "promyelocyte"),
    ("lymphocyte",),
    ("monocyte",),
    ("band_neutrophil", "segmented_neutrophil"),
    ("platelet",),
)


class BloodCellNet(nn.Module):
    """Stem at half resolution, three stages of residual blocks, mean over the plane, linear head.

    Only the middle of the frame is looked at: there the instrument puts the cell, and what lies
    around it (neighbours, padding, the frame's own size) says nothing about its kind.

    Args:
        units: What the head tells apart, label by label; a label is as probable as its units.
        width: Channels of the first stage; the second and third have twice and four times as many.
        window: Pixels of the side of the middle square; smaller images are taken whole.
        stem_stride: 2 halves the plane before the first stage; 1 is for windows of 28 pixels.
    """

    def __init__(
        self,
        units: Sequence[Sequence[str]] = UNITS,
        width: int = 48,
        window: int = 80,
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        self.window = window
        self.stem = conv_norm_2d(3, width // 2, 3, stem_stride)
        self.stages = nn.ModuleList(
            nn.Sequential(
                ResidualBlock2d(channels // 2, channels, stride=2),
                *(ResidualBlock2d(channels, channels) for _ in range(more)),
            )
            for channels, more in ((width, 1), (2 * width, 2), (4 * width, 1))
        )
        self.head = nn.Linear(4 * width, sum(map(len, units)))
        self.sizes = [len(each) for each in units]

    def features(self, image: Tensor) -> list[Tensor]:
        """Image (N, 3, H, W) in [0, 1] -> one map per stage, fine to coarse."""
        maps = [torch.relu(self.stem(2.0 * self.middle(image) - 1.0))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def middle(self, image: Tensor) -> Tensor:
        """The middle square of the frame (N, 3, window, window); a smaller image as it is."""
        top = max(0, (image.shape[2] - self.window) // 2)
        left = max(0, (image.shape[3] - self.window) // 2)
        return image[:, :, top : top + self.window, left : left + self.window]

    def tell_apart(self, maps: list[Tensor]) -> Tensor:
        """Maps of `features` -> logits of the units (N, U)."""
        return self.head(maps[-1].mean(dim=(2, 3)))

    def classify(self, maps: list[Tensor]) -> Tensor:
        """Maps of `features` -> logits of the labels (N, K)."""
        return self.join(self.tell_apart(maps))

    def join(self, unit_logits: Tensor) -> Tensor:
        """Logits of the units (N, U) -> of the labels (N, K): the probabilities are summed."""
        groups = unit_logits.split(self.sizes, dim=1)
        return torch.stack([each.logsumexp(dim=1) for each in groups], dim=1)

    def forward(self, image: Tensor) -> Tensor:
        """Image (N, 3, H, W) in [0, 1] -> logits of the labels (N, K)."""
        return self.classify(self.features(image))
