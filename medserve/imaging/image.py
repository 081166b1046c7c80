"""A two-dimensional image in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medserve.errors import InvalidImageError

__all__ = ["Image", "true_aspect"]

_SQUARE = 1e-3  # relative: headers round, and such pixels are square


@dataclass(frozen=True, eq=False)
class Image:
    """Intensities of one plane: float32 in [0, 1], (H, W) for grey or (H, W, 3) for RGB.

    Attributes:
        array: The intensities.
        aspect: Height of a pixel over its width; 1 exactly where it is square or nobody says it.

    Raises:
        InvalidImageError: any other shape, or values that are not finite.
    """

    array: npt.NDArray[np.float32]
    aspect: float = 1.0

    def __post_init__(self) -> None:
        shape = self.array.shape
        if not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)):
            raise InvalidImageError(
                f"expected one grey (H, W) or RGB (H, W, 3) plane, got shape {shape}"
            )
        if not np.isfinite(self.array).all():
            raise InvalidImageError("expected finite intensities, got NaN or infinity")

    @property
    def height(self) -> int:
        """Rows, in pixels."""
        return int(self.array.shape[0])

    @property
    def width(self) -> int:
        """Columns, in pixels."""
        return int(self.array.shape[1])

    @property
    def is_colour(self) -> bool:
        """Whether the image has three channels."""
        return self.array.ndim == 3

    def grey(self) -> npt.NDArray[np.float32]:
        """Luma (H, W) of an RGB image by ITU-R BT.601-7 section 2.5.1; a grey one as it is."""
        if not self.is_colour:
            return self.array
        weights = np.array([0.299, 0.587, 0.114], dtype=np.float32)
        return np.asarray(self.array @ weights, dtype=np.float32)


def true_aspect(stated: float | None) -> float:
    """Return a stated aspect; 1 exactly where there is none, or only rounding makes it another."""
    return 1.0 if stated is None or abs(stated - 1.0) < _SQUARE else stated
