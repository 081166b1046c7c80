"""Bring an image of any size to the plane that a network sees: one source for both sides."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from medserve.imaging import Image

__all__ = ["fit_grey"]


def fit_grey(image: Image, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Grey plane float32 (1, H, W) in [0, 1]: aspect ratio kept, black padding, centred.

    Shrinking is antialiased (Pillow's bilinear filter widens with the scale); an image that has
    the size already passes through unchanged to the last bit.
    """
    grey = image.grey()
    if grey.shape == size:
        return grey[np.newaxis]
    scale = min(size[0] / image.height, size[1] / image.width)
    height = min(size[0], max(1, round(image.height * scale)))
    width = min(size[1], max(1, round(image.width * scale)))
    resized = PillowImage.fromarray(grey).resize((width, height), PillowImage.Resampling.BILINEAR)
    plane = np.zeros(size, dtype=np.float32)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    plane[top : top + height, left : left + width] = np.asarray(resized, dtype=np.float32)
    return plane[np.newaxis]
