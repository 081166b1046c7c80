"""What a set of images looks like, without a network that sees: contrast, fine detail, ground.

An extractor says how far synthetic images are from real ones, and not in what. These figures do:
a generator that is short of training draws paler and softer images, on a ground that is not quite
dark.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Appearance", "appearance"]

_CORNER = 8  # of a side: a corner is a square of an eighth of it
_DARK = 3  # grey levels that still look black


@dataclass(frozen=True)
class Appearance:
    """Means over a set of images.

    Attributes:
        contrast: Standard deviation of the pixels of an image, in grey levels.
        detail: Root of the mean power of the frequencies above half of Nyquist's, in grey levels a
            pixel; that of white noise is its standard deviation.
        bright_corners: Share of the pixels in the four corners above 3 grey levels.
    """

    contrast: float
    detail: float
    bright_corners: float

    def to_json(self) -> dict[str, float]:
        """Figures by name."""
        return {
            "contrast": round(self.contrast, 2),
            "detail": round(self.detail, 3),
            "bright_corners": round(self.bright_corners, 4),
        }


def appearance(images: npt.NDArray[np.uint8]) -> Appearance:
    """Measure images uint8 (N, C, H, W); of colours the mean is looked at."""
    grey = images.mean(axis=1, dtype=np.float64)  # (N, H, W)
    return Appearance(
        contrast=float(grey.std(axis=(1, 2)).mean()),
        detail=float(np.sqrt(_fine_power(grey))),
        bright_corners=float((_corners(grey) > _DARK).mean()),
    )


def _fine_power(grey: npt.NDArray[np.float64]) -> float:
    """Mean power of the fine half of the frequencies; by Parseval of a pixel, not of a plane."""
    height, width = grey.shape[1:]
    power = np.abs(np.fft.fft2(grey, norm="ortho")) ** 2
    distance = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    return float(power[:, distance >= 0.25].mean())  # Nyquist's is 0.5 cycles a pixel


def _corners(grey: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The pixels of the four corners, (N, 4, h, w)."""
    height, width = (max(1, side // _CORNER) for side in grey.shape[1:])
    rows, columns = (slice(0, height), slice(-height, None)), (slice(0, width), slice(-width, None))
    return np.stack([grey[:, row, column] for row in rows for column in columns], axis=1)
