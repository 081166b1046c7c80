"""Cut a volume into planes for a 2D network, and stack its answers to a volume again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume

__all__ = ["Slice", "restack", "slices", "through_plane_axis"]


@dataclass(frozen=True, eq=False)
class Slice:
    """One plane of a volume.

    Attributes:
        array: Intensities (H, W), the two remaining axes of the volume in their order.
        index: Its place along the axis that was cut.
        spacing_mm: Distance between its rows and between its columns; they differ in anisotropic
            volumes, so a square of pixels need not be a square of the body.
    """

    array: npt.NDArray[Any] = field(repr=False)  # pixels belong into no log line
    index: int
    spacing_mm: tuple[float, float]


def through_plane_axis(geometry: Geometry) -> int:
    """The axis with the widest spacing (the last of equal ones): planes across it are sharpest."""
    return max(range(3), key=lambda axis: (round(geometry.spacing_mm[axis], 4), axis))


def slices(volume: Volume, axis: int | None = None) -> Iterator[Slice]:
    """Every plane across `axis` (by default the through-plane axis), first to last; views."""
    across = through_plane_axis(volume.geometry) if axis is None else axis
    rows, columns = (mm for each, mm in enumerate(volume.geometry.spacing_mm) if each != across)
    for index, plane in enumerate(np.moveaxis(volume.array, across, 0)):
        yield Slice(plane, index, (rows, columns))


def restack(
    planes: Iterable[npt.NDArray[Any]], geometry: Geometry, axis: int | None = None
) -> npt.NDArray[Any]:
    """What a 2D network said of each plane -> one array on the volume's grid.

    Args:
        planes: (H, W), or (C, H, W) for scores, one for each plane and in their order; they are
            taken one at a time, so that a generator never holds all of them.
        geometry: The grid of the volume that was cut.
        axis: As it was for `slices`.

    Returns:
        (I, J, K), or (C, I, J, K).

    Raises:
        ValueError: too few or too many planes, or planes of another size.
    """
    across = through_plane_axis(geometry) if axis is None else axis
    count = geometry.shape[across]
    expected = tuple(size for each, size in enumerate(geometry.shape) if each != across)
    full: npt.NDArray[Any] | None = None
    taken = 0
    for index, plane in enumerate(planes):
        if plane.shape[-2:] != expected or index >= count:
            raise ValueError(
                f"expected {count} planes of {expected}, got one of {plane.shape} at {index}"
            )
        if full is None:
            full = np.empty((*plane.shape[:-2], *geometry.shape), dtype=plane.dtype)
        np.moveaxis(full, across - 3, 0)[index] = plane
        taken += 1
    if full is None or taken < count:
        raise ValueError(f"expected {count} planes of {expected}, got {taken}")
    return full
