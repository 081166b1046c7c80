"""Pictures of a training: sheets of images and the way from image to noise and back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

__all__ = ["sheet", "write_png"]

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


def write_png(path: Path, picture: Images, scale: int = 1) -> None:
    """Write a picture, each pixel as `scale` x `scale`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    enlarged = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    PillowImage.fromarray(enlarged).save(path, optimize=True)
