"""Random changes of a frame and its mask together: what another patient, probe or gain looks like.

Places move for both, intensities change for the frame alone. Every change can be looked at:
`python -m training.trus_prostate sheets` draws each on its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Augmentation", "move"]


@dataclass(frozen=True)
class Augmentation:
    """How far each change goes; 0 leaves it out. `__call__` draws anew for every frame.

    Attributes:
        flip: Probability of the mirror image; a prostate has a left and a right half alike.
        rotation_degrees: To both sides.
        scale: By a factor from 1 / (1 + scale) to 1 + scale.
        shift: Share of the side.
        gain: Added to all intensities, up to so much.
        gamma: Exponent from 1 / (1 + gamma) to 1 + gamma.
        depth_gain: Brightness that grows or falls from top to bottom, as a wrong time-gain curve.
        speckle: Deviation of noise that multiplies.
        blur: Probability of a blur by a 3 x 3 binomial.
        shadow: Probability of a dark sector from top to bottom, as below a stone or gas.
        cutmix: Probability that a rectangle comes from another frame of the batch, with its mask
            (CutMix, Yun et al., ICCV 2019, arXiv:1905.04899): what lies around a structure must
            not tell where it is. For small sets; a gland has one place, a lesion has not.
    """

    flip: float = 0.5
    rotation_degrees: float = 12.0
    scale: float = 0.25
    shift: float = 0.08
    gain: float = 0.1
    gamma: float = 0.4
    depth_gain: float = 0.25
    speckle: float = 0.15
    blur: float = 0.3
    shadow: float = 0.2
    cutmix: float = 0.0

    def __call__(
        self, images: Tensor, masks: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Images float32 (N, 1, H, W) in [0, 1], masks (N, 1, H, W) -> both changed alike."""
        images, masks = move(images, masks, self._motions(images, generator))
        # What is black is outside of the scan or padding, and stays so.
        images = self._intensities(images, generator) * (images > 0)
        if self.cutmix:
            images, masks = _mixed(images, masks, self.cutmix, generator)
        return images, masks

    def _motions(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Affine matrices (N, 2, 3) in pixels, from a place of the result to one of the source."""
        count = len(images)
        angle = _between(count, self.rotation_degrees, generator) * (math.pi / 180.0)
        factor = _factors(count, self.scale, generator)
        mirrored = torch.rand(count, generator=generator) < self.flip
        sign = torch.where(mirrored, -1.0, 1.0)
        cosine, sine = torch.cos(angle) / factor, torch.sin(angle) / factor
        height, width = images.shape[2:]
        along_x = _between(count, self.shift * width, generator)
        along_y = _between(count, self.shift * height, generator)
        rows = [
            torch.stack([sign * cosine, -sine, along_x], dim=1),
            torch.stack([sign * sine, cosine, along_y], dim=1),
        ]
        return torch.stack(rows, dim=1)

    def _intensities(self, images: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, _ = images.shape

        def each(values: Tensor) -> Tensor:
            return values[:, None, None, None]

        images = images.clamp(min=0.0) ** each(_factors(count, self.gamma, generator))
        depth = torch.linspace(-1.0, 1.0, height)[None, None, :, None]
        images = images * (1.0 + each(_between(count, self.depth_gain, generator)) * depth)
        if self.speckle:
            noise = torch.randn(images.shape, generator=generator)
            deviation = each(torch.rand(count, generator=generator) * self.speckle)
            images = images * (1.0 + deviation * noise)
        blurred = torch.rand(count, generator=generator) < self.blur
        if blurred.any():
            images = torch.where(each(blurred), _binomial(images), images)
        images = images + each(_between(count, self.gain, generator))
        shadowed = torch.rand(count, generator=generator) < self.shadow
        if shadowed.any():
            images = torch.where(each(shadowed), _shadow(images, generator), images)
        return images.clamp(0.0, 1.0)


def _mixed(
    images: Tensor, masks: Tensor, probability: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Some frames with a rectangle of another one: a tenth to a half of the area."""
    count, _, height, width = images.shape
    share = 0.1 + 0.4 * torch.rand(count, generator=generator)
    tall = torch.exp(_between(count, 0.4, generator))  # sides from 2 : 3 to 3 : 2
    is_mixed = torch.rand(count, generator=generator) < probability
    middle_y, middle_x = torch.rand(2, count, generator=generator)
    half_y = 0.5 * torch.sqrt(share * tall)
    half_x = 0.5 * torch.sqrt(share / tall)
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    in_rows = (rows - middle_y[:, None]).abs() <= half_y[:, None]  # (N, H)
    in_columns = (columns - middle_x[:, None]).abs() <= half_x[:, None]
    taken = (in_rows[:, :, None] & in_columns[:, None, :] & is_mixed[:, None, None])[:, None]
    return (
        torch.where(taken, images.roll(1, dims=0), images),
        torch.where(taken, masks.roll(1, dims=0), masks),
    )


def move(images: Tensor, masks: Tensor, motions: Tensor) -> tuple[Tensor, Tensor]:
    """Resample frames bilinearly and masks by the nearest pixel, zeros from outside.

    Args:
        images: (N, 1, H, W).
        masks: (N, 1, H, W) of any type.
        motions: Affine matrices (N, 2, 3) around the centre, in pixels (x, y), from a place of
            the result to the place of the source that it shows.
    """
    height, width = images.shape[2:]
    # grid_sample wants both axes from -1 to 1: on a frame that is not square, rotation is not one.
    half = torch.tensor([width / 2.0, height / 2.0])
    theta = motions.clone()
    theta[:, :, :2] = motions[:, :, :2] * half[None, None, :] / half[None, :, None]
    theta[:, :, 2] = motions[:, :, 2] / half
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", align_corners=False)
    labels = F.grid_sample(masks.float(), grid, mode="nearest", align_corners=False)
    return moved, labels.to(masks.dtype)


def _between(count: int, limit: float, generator: torch.Generator) -> Tensor:
    """Uniform from -limit to limit (N,)."""
    return (2.0 * torch.rand(count, generator=generator) - 1.0) * limit


def _factors(count: int, spread: float, generator: torch.Generator) -> Tensor:
    """From 1 / (1 + spread) to 1 + spread, as often above 1 as below (N,)."""
    return torch.exp(_between(count, math.log1p(spread), generator))


def _binomial(images: Tensor) -> Tensor:
    row = torch.tensor([0.25, 0.5, 0.25])
    kernel = (row[:, None] * row[None, :])[None, None]
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel)


def _shadow(images: Tensor, generator: torch.Generator) -> Tensor:
    """A soft dark stripe below a random depth."""
    count, _, height, width = images.shape
    draw = torch.rand(4, count, 1, 1, 1, generator=generator)
    centre, breadth = draw[0] * width, (0.02 + 0.06 * draw[1]) * width
    start, strength = draw[2] * 0.7 * height, 0.5 + 0.4 * draw[3]
    column = torch.arange(width)[None, None, None, :]
    row = torch.arange(height)[None, None, :, None]
    across = torch.exp(-0.5 * ((column - centre) / breadth) ** 2)
    below = torch.sigmoid((row - start) / (0.01 * height))
    return images * (1.0 - strength * across * below)
