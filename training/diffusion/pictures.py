"""Pictures of a training: sheets of images and the way from image to noise and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL.PngImagePlugin import PngInfo

from medserve.inference.generation import to_pixels
from medserve.inference.samplers import State
from medserve.inference.schedules import NoiseSchedule
from medserve.results.files.synthetic import NOTICE

__all__ = ["denoising_strip", "noising_strip", "sheet", "write_png"]

_GAP = 2  # pixels between images
_GROUND = 255  # white, so that black borders of slices stay visible

Images = npt.NDArray[np.uint8]


def sheet(images: Images, columns: int = 0) -> Images:
    """Images (N, C, H, W) side by side -> a picture (H', W') or (H', W', 3); square by default."""
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    ground = np.full(
        (rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, channels),
        _GROUND,
        dtype=np.uint8,
    )
    for n, image in enumerate(images):
        top = _GAP + n // columns * (height + _GAP)
        left = _GAP + n % columns * (width + _GAP)
        ground[top : top + height, left : left + width] = np.moveaxis(image, 0, 2)
    return ground[..., 0] if channels == 1 else ground


def noising_strip(
    image: Images, schedule: NoiseSchedule, draws: np.random.Generator, count: int = 10
) -> Images:
    """An image uint8 (C, H, W) on its way to pure noise, evenly over the process."""
    clean = image.astype(np.float32) / 127.5 - 1.0
    epsilon = draws.standard_normal(clean.shape, dtype=np.float32)
    steps = np.linspace(-1, schedule.steps - 1, count).round().astype(int)
    parts = [schedule.signal(step) * clean + schedule.noise(step) * epsilon for step in steps]
    return sheet(np.stack([to_pixels(part.astype(np.float32)) for part in parts]), columns=count)


def denoising_strip(states: Sequence[State], count: int = 10) -> Images:
    """A walk from noise to an image: above where it stands, below what the network sees in it."""
    places = np.linspace(0, len(states) - 1, min(count, len(states))).round().astype(int)
    rows = [
        to_pixels(np.stack([getattr(states[place], name) for place in places]))
        for name in ("noisy", "clean")
    ]
    return sheet(np.concatenate(rows), columns=len(places))


def write_png(path: Path, picture: Images, scale: int = 1, synthetic: bool = False) -> None:
    """Write a picture, each pixel as `scale` x `scale`; `synthetic` marks it as such."""
    path.parent.mkdir(parents=True, exist_ok=True)
    enlarged = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    texts = PngInfo()
    if synthetic:
        texts.add_itxt("Synthetic", NOTICE)
    PillowImage.fromarray(enlarged).save(path, optimize=True, pnginfo=texts)
