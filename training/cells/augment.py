"""Changes that leave the kind of a cell as it is: place, stain, light, frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.classification.augment import Augment, around_zero, happens, sample

__all__ = ["CellAugment"]


@dataclass(frozen=True)
class CellAugment(Augment):
    """Strengths for single cells in the middle of a colour frame; shows the middle alone.

    A smear has no up and no left, so every turn and mirror image is another cell. In the archive
    of Barcelona the frame's size and a bluish ground give some labels away: tint, scale and a
    painted frame are drawn apart from the label, so that they tell nothing.
    """

    rotation_degrees: float = 180.0
    log_scale: float = 0.18  # factor 0.84 … 1.20
    log_aspect: float = 0.08
    shift: float = 0.08  # of half the frame: 5 pixels of 128
    log_gamma: float = 0.15
    log_contrast: float = 0.15
    brightness: float = 0.06
    noise: float = 0.03
    noise_probability: float = 0.2
    blur_probability: float = 0.15  # seldom: granules are fine
    erase_side: float = 0.35
    window: int = 84  # pixels of the middle square that is shown
    side: int = 112  # pixels of the result
    tint_probability: float = 0.75
    log_tint: float = 0.14  # of each channel; from cream to bluish, as measured in the archive
    mixing: float = 0.05  # of one channel into another: scanners see the dyes differently
    frame_probability: float = 0.15
    frame_share: float = 0.12  # of the side, from each edge

    def _move(self, image: Tensor, generator: torch.Generator) -> Tensor:
        placements = self._placements(len(image), generator)
        shown = torch.tensor([self.window / image.shape[3], self.window / image.shape[2]])
        turned = placements[:, :, :2] * shown[:, None]
        placements = torch.cat([turned, placements[:, :, 2:]], dim=2)
        return self._painted(sample(image, placements, (self.side, self.side)), generator)

    def _expose(self, image: Tensor, generator: torch.Generator) -> Tensor:
        n = len(image)
        is_tinted = happens(self.tint_probability, n, generator)
        gains = self.log_tint * around_zero(3 * n, generator).view(n, 3)
        gains = torch.exp(gains * is_tinted[:, None])
        mixed = self.mixing * around_zero(9 * n, generator).view(n, 3, 3) * is_tinted[:, None, None]
        # Rows sum to their gain, so that mixing alone leaves grey as it is.
        mixed = mixed - torch.diag_embed(mixed.sum(dim=2)) + torch.eye(3)
        colours = (gains[:, :, None] * mixed).to(image.device)
        tinted = torch.einsum("nij,njhw->nihw", colours, image).clamp(0.0, 1.0)
        return super()._expose(tinted, generator)

    def _painted(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Some images with a frame of one colour, as padding and scanner edges leave it."""
        n, height, width = len(image), image.shape[2], image.shape[3]
        margins = self.frame_share * torch.rand(n, 4, generator=generator)
        margins = margins * happens(self.frame_probability, n, generator)[:, None]
        rows = (torch.arange(height) + 0.5) / height
        columns = (torch.arange(width) + 0.5) / width
        inside_rows = (rows >= margins[:, 0, None]) & (rows <= 1.0 - margins[:, 1, None])
        inside_columns = (columns >= margins[:, 2, None]) & (columns <= 1.0 - margins[:, 3, None])
        inside = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
        colour = torch.rand(n, 3, 1, 1, generator=generator)
        return torch.where(inside.to(image.device), image, colour.to(image.device))
