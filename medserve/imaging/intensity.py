"""From stored numbers to intensities in [0, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from medserve.errors import InvalidImageError

__all__ = ["clipped", "full_range", "percentile_window", "without_background"]

_LOW, _HIGH = 0.5, 99.5  # percentiles; a few dead or burnt-out pixels must not set the contrast


def full_range(values: npt.NDArray[Any], largest: int) -> npt.NDArray[np.float32]:
    """Display values 0..`largest` (255 for 8 bits) -> float32, value / largest exactly."""
    return np.asarray(np.divide(values, np.float32(largest), dtype=np.float32))


def percentile_window(
    values: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.float32]:
    """Measurements in an unknown unit -> float32 in [0, 1], by the range that they use.

    The 0.5th percentile becomes black, the 99.5th white, and what lies beyond is clipped. Where
    the two coincide (a small object on an even ground) minimum and maximum take their place; a
    constant image is black, for it has no contrast to show.

    Args:
        values: Finite numbers of any kind and shape.
        valid: True where a pixel counts for the range; all do when it is left out.
    """
    counted = values if valid is None else values[valid]
    if counted.size == 0:
        return np.zeros(values.shape, dtype=np.float32)
    low, high = (float(edge) for edge in np.percentile(counted, (_LOW, _HIGH)))
    if high <= low:
        low, high = float(counted.min()), float(counted.max())
    if high <= low:
        return np.zeros(values.shape, dtype=np.float32)
    # float32 holds 16 bits exactly; of wider numbers it would drop digits before the subtraction
    numbers: npt.NDArray[Any] = values.astype("f4" if values.dtype.itemsize <= 2 else "f8")
    return clipped((numbers - low) / (high - low))


def clipped(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Numbers around [0, 1] -> float32 in [0, 1]."""
    return np.asarray(np.clip(values, 0.0, 1.0), dtype=np.float32)


def without_background(
    values: npt.NDArray[Any], background: npt.NDArray[np.bool_] | None
) -> npt.NDArray[Any]:
    """The same array, its background set to the smallest value that is none, in place.

    Background is padding and what is not finite. It must not set the contrast, and a network knows
    it as the darkest ground.

    Raises:
        InvalidImageError: nothing but background.
    """
    if background is None:
        return values
    if background.all():
        raise InvalidImageError(
            "expected finite intensities, got padding, NaN or infinity all over; send the original "
            "image"
        )
    is_float = values.dtype.kind == "f"
    most = np.inf if is_float else np.iinfo(values.dtype).max
    values[background] = np.min(values, where=~background, initial=most)
    return values
