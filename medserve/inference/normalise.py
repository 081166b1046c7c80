"""Intensities of any scanner -> what a network was trained on: one source for both sides.

All three kinds take integers as well as floats, compute in float32 or better, leave their input
as it is, and give zeros for a constant image, which has no contrast to show.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medserve.errors import ConfigError

__all__ = ["Normalisation", "NormalisationKind", "percentile", "window", "z_score"]

_Array = npt.NDArray[Any]
_Mask = npt.NDArray[np.bool_]

_TINY = float(np.finfo(np.float32).tiny)  # a contrast below it cannot be divided by


class NormalisationKind(enum.StrEnum):
    """What the scale is taken from."""

    PERCENTILE = "percentile"  # of the volume itself: MR and ultrasound, which have no unit
    WINDOW = "window"  # fixed values: CT, whose unit is the Hounsfield
    Z_SCORE = "z_score"  # mean and standard deviation of the volume itself


@dataclass(frozen=True)
class Normalisation:
    """A choice among the kinds, as a model's configuration states it.

    Attributes:
        kind: What the scale is taken from.
        low: Percentile (0 to 100) or value that becomes 0; unused by the z-score.
        high: Percentile or value that becomes 1.
        foreground_only: Take percentiles, mean and deviation from the voxels above the volume's
            minimum: an image that was cut out of its surroundings is mostly padding.
    """

    kind: NormalisationKind = NormalisationKind.PERCENTILE
    low: float = 0.5
    high: float = 99.5
    foreground_only: bool = False

    def __post_init__(self) -> None:
        if self.kind is not NormalisationKind.Z_SCORE and not self.low < self.high:
            raise ConfigError(f"normalisation: expected low < high, got {self.low}, {self.high}")
        if self.kind is NormalisationKind.PERCENTILE and (self.low < 0 or self.high > 100):
            raise ConfigError(
                f"normalisation: expected percentiles from 0 to 100, got {self.low}, {self.high}"
            )

    def __call__(self, array: _Array) -> npt.NDArray[np.float32]:
        """Any shape -> float32 of the same shape."""
        counted = array > array.min() if self.foreground_only else None
        if self.kind is NormalisationKind.WINDOW:
            return window(array, self.low, self.high)
        if self.kind is NormalisationKind.Z_SCORE:
            return z_score(array, counted)
        return percentile(array, self.low, self.high, counted)


def window(array: _Array, low: float, high: float) -> npt.NDArray[np.float32]:
    """Values from `low` to `high` -> [0, 1]; what lies beyond is clipped."""
    if not high > low:
        raise ValueError(f"expected low < high, got {low} and {high}")
    scaled = _scaled(array, low, high - low)
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def percentile(
    array: _Array, low: float = 0.5, high: float = 99.5, counted: _Mask | None = None
) -> npt.NDArray[np.float32]:
    """The low-th to the high-th percentile -> [0, 1]; what lies beyond is clipped.

    Where the two coincide (a small object on even ground) minimum and maximum take their place.

    Args:
        array: Finite values of any shape.
        low: Percentile that becomes 0.
        high: Percentile that becomes 1.
        counted: True where a voxel counts for the percentiles; all do when it is left out.
    """
    values = _values(array, counted)
    dark, bright = (float(edge) for edge in np.percentile(values, (low, high)))
    if bright <= dark:
        dark, bright = float(values.min()), float(values.max())
    if bright - dark < _TINY:
        return np.zeros(array.shape, dtype=np.float32)
    scaled = _scaled(array, dark, bright - dark)
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def z_score(array: _Array, counted: _Mask | None = None) -> npt.NDArray[np.float32]:
    """Zero mean and unit variance over the voxels that count (all by default)."""
    values = _values(array, counted)
    mean = float(values.mean(dtype=np.float64))
    deviation = float(values.std(dtype=np.float64))
    if deviation <= max(abs(mean) * 1e-7, _TINY):  # rounding of a constant
        return np.zeros(array.shape, dtype=np.float32)
    return _scaled(array, mean, deviation)


def _values(array: _Array, counted: _Mask | None) -> _Array:
    """What the scale is taken from; everything where nothing counts (a constant image)."""
    if counted is None or not counted.any():
        return array
    return array[counted]


def _scaled(array: _Array, offset: float, scale: float) -> npt.NDArray[np.float32]:
    """(array - offset) / scale, in float64 where a large offset would eat the contrast."""
    is_wide = array.dtype.itemsize > 4 or (array.dtype.kind in "iu" and array.dtype.itemsize > 2)
    exact = np.dtype(np.float64 if is_wide else np.float32)
    values: npt.NDArray[np.floating[Any]] = array.astype(exact)  # a copy; integers never wrap
    values -= offset
    values /= scale
    return values.astype(np.float32, copy=False)
