"""A region of interest: the box around what is brighter than a threshold, kept for the way back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medserve.imaging.geometry import Shape
from medserve.imaging.volume import Volume
from medserve.inference.components import largest_component

__all__ = ["Box", "crop", "mask_box", "nonzero_body", "otsu_threshold", "threshold_box"]

_BINS = 256


@dataclass(frozen=True)
class Box:
    """A block of voxels: `start` is the first of each axis, `stop` lies behind the last."""

    start: Shape
    stop: Shape

    def __post_init__(self) -> None:
        if any(not 0 <= a < b for a, b in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"expected 0 <= start < stop, got {self.start} and {self.stop}")

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """All voxels of a grid."""
        return cls((0, 0, 0), (shape[0], shape[1], shape[2]))

    @property
    def shape(self) -> Shape:
        """Voxels along each axis."""
        i, j, k = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return i, j, k

    def cut(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The block of (..., I, J, K); a view, nothing is copied."""
        return np.asarray(array[self._slices()])

    def paste(
        self, part: npt.NDArray[Any], shape: Sequence[int], fill: float = 0
    ) -> npt.NDArray[Any]:
        """Put (..., i, j, k) back where it was cut from, into (..., I, J, K) of `fill`."""
        if part.shape[-3:] != self.shape:
            raise ValueError(f"expected a part of shape {self.shape}, got {part.shape}")
        full = np.full((*part.shape[:-3], *shape), fill, dtype=part.dtype)
        if any(end > size for end, size in zip(self.stop, shape, strict=True)):
            raise ValueError(f"the box ends at {self.stop}, outside of a grid of {tuple(shape)}")
        full[self._slices()] = part
        return full

    def _slices(self) -> Any:
        return (..., *(slice(a, b) for a, b in zip(self.start, self.stop, strict=True)))


def crop(volume: Volume, box: Box) -> Volume:
    """The part of a volume inside the box, at its own place in the world."""
    return Volume(box.cut(volume.array), volume.geometry.crop(box.start, box.shape))


def otsu_threshold(array: npt.NDArray[Any]) -> float:
    """The value that best divides intensities into two classes (Otsu, IEEE SMC 9, 1979).

    From a histogram of 256 bins between minimum and maximum; voxels above the value belong to the
    brighter class. Where many values divide equally well (nothing lies between the classes) it is
    the middle one. A constant image has no second class: its own value.
    """
    low, high = float(array.min()), float(array.max())
    if high <= low:
        return low
    counts, edges = np.histogram(array, bins=_BINS, range=(low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = array.size - below
    sums = np.cumsum(counts * centres)
    mean_below = sums[:-1] / below  # the first bin holds the minimum, the last the maximum
    mean_above = (sums[-1] - sums[:-1]) / above
    between = below * above * (mean_below - mean_above) ** 2
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))
    return float(edges[best[best.size // 2] + 1])  # between two bins, never inside one


def threshold_box(
    volume: Volume,
    threshold: float | None = None,
    margin_mm: float = 0.0,
    *,
    largest_only: bool = False,
) -> Box:
    """The smallest box around everything brighter than a threshold, and a margin.

    Args:
        volume: Intensities in any unit.
        threshold: In that unit; Otsu's by default.
        margin_mm: Added on every side, as far as the grid reaches.
        largest_only: Look at the largest connected piece alone, so that a bright speck far away
            does not widen the box.

    Returns:
        The box; the whole grid where nothing is brighter.
    """
    limit = otsu_threshold(volume.array) if threshold is None else threshold
    bright = volume.array > limit
    if largest_only:
        bright = largest_component(bright.astype(np.uint8)).astype(np.bool_)
    start, stop = [], []
    for axis, (size, spacing) in enumerate(
        zip(volume.geometry.shape, volume.geometry.spacing_mm, strict=True)
    ):
        found = np.flatnonzero(bright.any(axis=tuple({0, 1, 2} - {axis})))
        if found.size == 0:
            return Box.whole(volume.geometry.shape)
        margin = math.ceil(margin_mm / spacing - 1e-9)
        start.append(max(0, int(found[0]) - margin))
        stop.append(min(size, int(found[-1]) + 1 + margin))
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def nonzero_body(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
    """Return what is not 0 in some channel (I, J, K), with the holes that it encloses."""
    found = np.logical_or.reduce([array != 0 for array in arrays])
    return np.asarray(ndimage.binary_fill_holes(found), dtype=np.bool_)


def mask_box(mask: npt.NDArray[np.bool_]) -> Box:
    """Return the tight box around a mask; the whole grid where it is empty."""
    found = ndimage.find_objects(mask.view(np.uint8))
    if not found:
        return Box.whole(mask.shape)
    i, j, k = found[0]
    return Box((i.start, j.start, k.start), (i.stop, j.stop, k.stop))
