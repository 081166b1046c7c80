"""Intensities of any scanner -> what a network was trained on: one source for both sides.

All kinds take integers as well as floats, compute in float32 or better and leave their input as it
is; those that measure the image give zeros for a constant one, which has no contrast to show.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medserve.spec.volumes import NormalisationKind, NormalisationSpec

__all__ = ["Normalisation", "NormalisationKind", "normalise", "percentile", "window", "z_score"]

_Array = npt.NDArray[Any]
_Mask = npt.NDArray[np.bool_]

_TINY = float(np.finfo(np.float32).tiny)  # a contrast below it cannot be divided by
_LEAST_DEVIATION = 1e-8  # nnU-Net's own


class Normalisation(NormalisationSpec, frozen=True):
    """The choice that a model's configuration states, as a function of intensities."""

    @classmethod
    def of(cls, spec: NormalisationSpec) -> Normalisation:
        """The function that a configuration describes."""
        return cls(spec.kind, spec.low, spec.high, spec.foreground_only, spec.mean, spec.deviation)

    def __call__(self, array: _Array, body: _Mask | None = None) -> npt.NDArray[np.float32]:
        """Any shape -> float32 of the same shape; `body` is what `z_score_body` counts."""
        match self.kind:
            case NormalisationKind.NONE:
                return array.astype(np.float32)
            case NormalisationKind.STANDARD:
                return _standard(array, self)
            case NormalisationKind.MIN_MAX:
                return _min_max(array)
            case NormalisationKind.Z_SCORE_NONZERO:
                return _z_score_of(array, array != 0)
            case NormalisationKind.Z_SCORE_BODY:
                return _z_score_of(array, np.ones(array.shape, np.bool_) if body is None else body)
        counted = array > array.min() if self.foreground_only else None
        if self.kind is NormalisationKind.WINDOW:
            return window(array, self.low, self.high)
        if self.kind is NormalisationKind.Z_SCORE:
            return z_score(array, counted)
        return percentile(array, self.low, self.high, counted)


def normalise(
    array: _Array, steps: Sequence[NormalisationSpec], body: _Mask | None = None
) -> npt.NDArray[np.float32]:
    """Apply the steps of one channel in their order; any shape -> float32 of the same shape."""
    values = array
    for step in steps:
        values = Normalisation.of(step)(values, body)
    return values.astype(np.float32, copy=False)


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
    if bright - dark <= _rounding(values.dtype, max(abs(dark), abs(bright))):
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


def _standard(array: _Array, spec: NormalisationSpec) -> npt.NDArray[np.float32]:
    """Clip to fixed limits, then subtract a fixed mean and divide by a fixed deviation."""
    values = array.astype(np.float32)
    np.clip(values, spec.low, spec.high, out=values)
    values -= spec.mean
    values /= max(spec.deviation, _LEAST_DEVIATION)
    return values


def _min_max(array: _Array) -> npt.NDArray[np.float32]:
    """Bring the smallest value to 0 and the largest to 1."""
    low, high = float(array.min()), float(array.max())
    if high - low <= _TINY:
        return np.zeros(array.shape, dtype=np.float32)
    return _scaled(array, low, high - low)


def _z_score_of(array: _Array, counted: _Mask) -> npt.NDArray[np.float32]:
    """Zero mean and unit variance of the voxels that count; the others keep their values."""
    values = array.astype(np.float32)
    inside = values[counted]
    if inside.size:  # sums in float32, as those do whose answers are to be met
        values[counted] = (inside - inside.mean()) / max(inside.std(), _LEAST_DEVIATION)
    return values


def _rounding(dtype: np.dtype[Any], largest: float) -> float:
    """A contrast that rounding alone makes, for instance when a constant is resampled."""
    precision = float(np.finfo(dtype).eps) if dtype.kind == "f" else 0.0
    return max(8 * precision * largest, _TINY)


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
