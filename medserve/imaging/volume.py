"""A three-dimensional image in memory, and how large one may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medserve.errors import InvalidImageError, PayloadTooLargeError
from medserve.imaging.geometry import AxisOrder, Geometry

__all__ = ["Volume", "VolumeLimits", "check_shape"]


@dataclass(frozen=True)
class VolumeLimits:
    """What a codec refuses before it allocates memory for voxels."""

    max_voxels: int = 256 * 2**20  # 512 x 512 x 1024: a whole-body CT
    max_expanded_bytes: int = 2 * 2**30  # of everything inside a zip, tar or gzip
    max_files: int = 8192  # in one zip or tar
    min_side: int = 1  # voxels along each axis; a 3D model sets more, which refuses flat images


def check_shape(shape: Sequence[int], limits: VolumeLimits) -> None:
    """Refuse grids too flat for the model, and those too large to hold.

    Raises:
        InvalidImageError: an axis is shorter than `limits.min_side`.
        PayloadTooLargeError: more than `limits.max_voxels` voxels.
    """
    listed = " x ".join(str(n) for n in shape)
    if min(shape) < limits.min_side:
        raise InvalidImageError(
            f"expected at least {limits.min_side} voxels along each of 3 axes, got {listed}; "
            "send the whole volume, or use a model for single images"
        )
    if math.prod(shape) > limits.max_voxels:
        raise PayloadTooLargeError(
            f"expected at most {limits.max_voxels} voxels, got {listed} = {math.prod(shape)}; "
            "crop or resample the volume"
        )


@dataclass(frozen=True, eq=False)
class Volume:
    """Intensities (I, J, K) on the grid of `geometry`; array axes follow the affine's columns.

    The array keeps the unit and, where nothing had to be rescaled, the type of its file:
    integers stay integers. Normalisation belongs to `medserve.inference.normalise`.

    Raises:
        InvalidImageError: a shape other than the geometry's, values that are no real numbers,
            or values that are not finite.
    """

    array: npt.NDArray[Any] = field(repr=False)  # pixels belong into no log line
    geometry: Geometry

    def __post_init__(self) -> None:
        if self.array.shape != self.geometry.shape:
            raise InvalidImageError(
                f"expected an array of the geometry's shape {self.geometry.shape}, "
                f"got {self.array.shape}"
            )
        if self.array.dtype.kind not in "biuf":
            raise InvalidImageError(
                f"expected one real number a voxel, got values of type {self.array.dtype}; "
                "convert the volume to grey"
            )
        # Minimum and maximum carry NaN and infinity along, without a second array of the size.
        if not (np.isfinite(self.array.min()) and np.isfinite(self.array.max())):
            bad = 1.0 - float(np.count_nonzero(np.isfinite(self.array))) / self.array.size
            raise InvalidImageError(
                f"expected finite intensities, got NaN or infinity in {bad:.2%} of the voxels; "
                "replace them before sending"
            )

    def reoriented(self, codes: str = "RAS") -> tuple[Volume, AxisOrder]:
        """The volume with axes along `codes`, and the order whose `undo` brings a mask back."""
        order = self.geometry.axis_order(codes)
        return Volume(order.apply(self.array), self.geometry.reordered(order)), order
