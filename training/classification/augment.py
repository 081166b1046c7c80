"""Changes that leave the kind of a radiograph or slice as it is, on whole batches of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Augment", "around_zero", "happens", "sample"]


@dataclass(frozen=True)
class Augment:
    """Strengths; every value is the far end of a uniform draw unless it says probability.

    There is no inversion and no turn by 90 degrees: the first is another kind of picture, the
    second a fault of the upload that the answer should not hide.
    """

    rotation_degrees: float = 15.0
    log_scale: float = 0.16  # factor 0.85 … 1.17
    log_aspect: float = 0.1
    shear: float = 0.08
    shift: float = 0.10  # of half the side
    flip_probability: float = 0.5  # left-right: laterality says nothing about the kind
    log_gamma: float = 0.3
    log_contrast: float = 0.2
    brightness: float = 0.08
    noise: float = 0.04  # standard deviation
    noise_probability: float = 0.3
    blur_probability: float = 0.25
    erase_probability: float = 0.25
    erase_side: float = 0.4  # of the side of the image

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Image float32 (N, C, H, W) in [0, 1] -> the same, changed."""
        moved = self._move(image, generator)
        shown = self._expose(moved, generator)
        return self._disturb(shown, generator)

    def _move(self, image: Tensor, generator: torch.Generator) -> Tensor:
        return sample(image, self._placements(len(image), generator), image.shape[2:])

    def _placements(self, n: int, generator: torch.Generator) -> Tensor:
        """Affine maps (N, 2, 3) from the result to the image, in `grid_sample`'s coordinates."""
        angle = math.radians(self.rotation_degrees) * around_zero(n, generator)
        scale = torch.exp(self.log_scale * around_zero(n, generator))
        aspect = torch.exp(self.log_aspect * around_zero(n, generator))
        shear = self.shear * around_zero(n, generator)
        flip = 1.0 - 2.0 * happens(self.flip_probability, n, generator)
        cos, sin = torch.cos(angle), torch.sin(angle)
        x = torch.stack([cos * scale * aspect * flip, shear - sin * scale], dim=1)
        y = torch.stack([sin * scale * flip, cos * scale / aspect], dim=1)
        shift = self.shift * around_zero(2 * n, generator).view(n, 2)
        return torch.cat([torch.stack([x, y], dim=1), shift[:, :, None]], dim=2)

    def _expose(self, image: Tensor, generator: torch.Generator) -> Tensor:
        n, device = len(image), image.device
        gamma = torch.exp(self.log_gamma * around_zero(n, generator)).to(device)
        contrast = torch.exp(self.log_contrast * around_zero(n, generator)).to(device)
        brightness = (self.brightness * around_zero(n, generator)).to(device)
        curved = image.clamp(min=1e-4) ** gamma.view(n, 1, 1, 1)
        mean = curved.mean(dim=(1, 2, 3), keepdim=True)
        spread = (curved - mean) * contrast.view(n, 1, 1, 1)
        return (spread + mean + brightness.view(n, 1, 1, 1)).clamp(0.0, 1.0)

    def _disturb(self, image: Tensor, generator: torch.Generator) -> Tensor:
        n, device = len(image), image.device
        blur = happens(self.blur_probability, n, generator).to(device).view(n, 1, 1, 1)
        image = torch.lerp(image, F.avg_pool2d(image, 3, 1, 1, count_include_pad=False), blur)
        strength = happens(self.noise_probability, n, generator) * torch.rand(
            n, generator=generator
        )
        noise = torch.randn(image.shape, generator=generator).to(device)
        image = image + self.noise * strength.to(device).view(n, 1, 1, 1) * noise
        erased, grey = self._rectangles(image, generator)
        return torch.where(erased, grey, image).clamp(0.0, 1.0)

    def _rectangles(self, image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        n, device = len(image), image.device
        sides = self.erase_side * torch.rand(n, 2, generator=generator)
        sides = sides * happens(self.erase_probability, n, generator)[:, None]
        start = torch.rand(n, 2, generator=generator) * (1.0 - sides)
        inside = []
        for axis, size in enumerate(image.shape[2:]):
            place = (torch.arange(size) + 0.5) / size
            low, high = start[:, axis, None], (start + sides)[:, axis, None]
            inside.append((place >= low) & (place < high))  # (N, H) and (N, W)
        erased = inside[0][:, None, :, None] & inside[1][:, None, None, :]  # (N, 1, H, W)
        grey = torch.rand(n, 1, 1, 1, generator=generator)
        return erased.to(device), grey.to(device)


def sample(image: Tensor, placements: Tensor, size: Sequence[int]) -> Tensor:
    """Image (N, C, H, W) seen through affine maps (N, 2, 3) -> (N, C, *size).

    The border is drawn on: black corners would give away what was turned.
    """
    shape = [*image.shape[:2], *size]
    grid = F.affine_grid(placements.to(image.device), shape, align_corners=False)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)


def around_zero(n: int, generator: torch.Generator) -> Tensor:
    """Uniform draws (N,) from -1 to 1."""
    return 2.0 * torch.rand(n, generator=generator) - 1.0


def happens(probability: float, n: int, generator: torch.Generator) -> Tensor:
    """Draws (N,): 1 with that probability, else 0."""
    return (torch.rand(n, generator=generator) < probability).float()
