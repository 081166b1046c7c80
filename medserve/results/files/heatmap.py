"""A heat map as a picture that can be laid over an image, and read back as numbers."""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt
from PIL import Image as pillow

__all__ = ["FULL_AT_LEAST", "encode", "full_colour"]

# Okabe and Ito's vermilion and blue (2008), told apart by colour-blind readers too.
_FOR, _AGAINST = (213, 94, 0), (0, 114, 178)
_OPAQUE = 200  # of 255, at full colour: the image stays visible below it
_MIDDLE, _STEPS = 128, 127

FULL_AT_LEAST = math.log(2)  # weaker evidence never reaches full colour: half the odds


def full_colour(values: npt.NDArray[np.floating]) -> float:
    """The value that gets full colour: the strongest, or `FULL_AT_LEAST` where all are weak."""
    return max(float(np.abs(values).max(initial=0.0)), FULL_AT_LEAST)


def encode(
    values: npt.NDArray[np.floating],
    size: tuple[int, int],
    region: tuple[float, float, float, float] | None = None,
) -> bytes:
    """Values (H, W) of any resolution -> PNG of that size (H, W), in 8-bit palette colours.

    They cover the picture, or the region of it (left, top, right, bottom).

    Vermilion speaks for the class, blue against it, and the more opaque the more; where nothing
    speaks the picture is clear. A pixel of palette index i stands for the value
    `(i - 128) / 127 * full_colour(values)`.
    """
    levels = _MIDDLE + np.rint(_STEPS * values / full_colour(values)).astype(np.int16)
    small = pillow.fromarray(levels.astype(np.uint8))
    left, top, right, bottom = region or (0, 0, size[1], size[0])
    place = round(left), round(top)
    covered = max(1, round(right) - place[0]), max(1, round(bottom) - place[1])
    picture = pillow.new("L", (size[1], size[0]), _MIDDLE)
    picture.paste(small.resize(covered, pillow.Resampling.BILINEAR), place)
    picture.putpalette(bytes(_palette().ravel()))
    stream = io.BytesIO()
    picture.save(stream, format="PNG", transparency=bytes(_alphas()))
    return stream.getvalue()


def _palette() -> npt.NDArray[np.uint8]:
    """(256, 3)."""
    return np.array([_AGAINST] * _MIDDLE + [_FOR] * (256 - _MIDDLE), dtype=np.uint8)


def _alphas() -> npt.NDArray[np.uint8]:
    weights = np.abs(np.arange(256) - _MIDDLE) / _STEPS
    return np.asarray(np.rint(_OPAQUE * np.minimum(weights, 1.0)), dtype=np.uint8)
