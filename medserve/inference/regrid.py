"""Bring a volume to the network's grid, and scores back, by the rule of a model's training.

`medserve.inference.resample` is the rule of the models that ship; `SplineGrid` is that of nnU-Net
v2, whose networks it lets answer as nnU-Net does, voxel for voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medserve.imaging.geometry import Geometry, Shape
from medserve.inference import resample
from medserve.spec.volumes import ResamplingKind, ResamplingSpec, ThickSlices

__all__ = ["FixedGrid", "Grid", "LinearGrid", "SplineGrid", "grid_of"]

_Array = npt.NDArray[np.float32]
_THICK = 3.0  # times the other spacing, from which nnU-Net resamples slices one by one


class Grid(Protocol):
    """One rule for both ways; `region` is the grid of what the network sees, before resampling."""

    def shape(self, region: Geometry) -> Shape:
        """Voxels (i, j, k) that the network sees of a region."""

    def image(self, array: npt.NDArray[Any], region: Geometry) -> _Array:
        """Intensities on the region's grid -> float32 on the network's."""

    def scores(self, channel: npt.NDArray[Any], region: Geometry) -> _Array:
        """One channel of scores on the network's grid -> float32 on the region's."""


def grid_of(spec: ResamplingSpec, spacing_mm: Sequence[float], size: Sequence[int]) -> Grid:
    """Return the rule that a model's description names."""
    match spec.kind:
        case ResamplingKind.LINEAR:
            return LinearGrid(spacing_mm)
        case ResamplingKind.SPLINE:
            return SplineGrid(spec, spacing_mm)
        case ResamplingKind.FIXED:
            return FixedGrid(spec, size)


class LinearGrid:
    """The rule of `medserve.inference.resample`."""

    def __init__(self, spacing_mm: Sequence[float]) -> None:
        self._spacing_mm = spacing_mm

    def shape(self, region: Geometry) -> Shape:
        """Return as many voxels of about the spacing as fill the region."""
        return resample.spaced_shape(region, _wanted(self._spacing_mm, region))

    def image(self, array: npt.NDArray[Any], region: Geometry) -> _Array:
        """Interpolate linearly, widened where it shrinks."""
        return resample.linear(array, self.shape(region))

    def scores(self, channel: npt.NDArray[Any], region: Geometry) -> _Array:
        """Interpolate linearly, widened where it shrinks."""
        return resample.linear(channel, region.shape)


class SplineGrid:
    """The rule of nnU-Net v2: splines, clamped to the range of what is resampled.

    Where voxels are much longer along one axis than along another, planes across that axis are
    resampled each on its own, and then among each other with a lower degree. nnU-Net's
    `resample_data_or_seg_to_shape` is the reference (nnunetv2 2.8.1, Apache-2.0).
    """

    def __init__(self, spec: ResamplingSpec, spacing_mm: Sequence[float]) -> None:
        self._spec, self._spacing_mm = spec, spacing_mm

    def shape(self, region: Geometry) -> Shape:
        """Round as nnU-Net does: the quotient of the spacings first."""
        wanted = _wanted(self._spacing_mm, region)
        i, j, k = (
            max(1, round(old / new * size))
            for size, old, new in zip(region.shape, region.spacing_mm, wanted, strict=True)
        )
        return i, j, k

    def image(self, array: npt.NDArray[Any], region: Geometry) -> _Array:
        """Resample intensities."""
        old, new = region.spacing_mm, _wanted(self._spacing_mm, region)
        degrees = (self._spec.order, self._spec.order_through)
        return self._resampled(array, self.shape(region), (old, new), degrees)

    def scores(self, channel: npt.NDArray[Any], region: Geometry) -> _Array:
        """Resample scores; they keep the rounding of their type, as float16 has it."""
        old, new = _wanted(self._spacing_mm, region), region.spacing_mm
        degrees = (self._spec.inverse_order, self._spec.inverse_order_through)
        back = self._resampled(channel, region.shape, (old, new), degrees)
        return back.astype(channel.dtype).astype(np.float32)

    def _resampled(
        self,
        array: npt.NDArray[Any],
        shape: Shape,
        spacings: tuple[Sequence[float], Sequence[float]],
        degrees: tuple[int, int],
    ) -> _Array:
        if array.shape == shape:
            return array.astype(np.float32, copy=False)
        values = array.astype(np.float64)
        axis = self._thick_axis(*spacings)
        if axis is None:
            return np.asarray(_zoomed(values, shape, degrees[0]), dtype=np.float32)
        planes = np.moveaxis(values, axis, 0)
        target = tuple(side for each, side in enumerate(shape) if each != axis)
        resized = np.stack([_zoomed(plane, target, degrees[0]) for plane in planes])
        if (count := shape[axis]) != len(planes):
            resized = _through(resized, count, degrees[1])
        return np.moveaxis(resized, 0, axis).astype(np.float32)

    def _thick_axis(self, current: Sequence[float], new: Sequence[float]) -> int | None:
        """Return the axis across which planes are resampled one by one, or None."""
        if self._spec.thick_slices is ThickSlices.NEVER:
            return None
        if self._spec.thick_slices is ThickSlices.ALWAYS or max(current) / min(current) > _THICK:
            spacing = current
        elif max(new) / min(new) > _THICK:
            spacing = new
        else:
            return None
        longest = [axis for axis, each in enumerate(spacing) if max(spacing) / each == 1]
        return longest[0] if len(longest) == 1 else None


class FixedGrid:
    """The whole region at one size, whatever its spacing: nearest voxel or linear."""

    def __init__(self, spec: ResamplingSpec, size: Sequence[int]) -> None:
        self._spec, self._size = spec, (size[0], size[1], size[2])

    def shape(self, region: Geometry) -> Shape:
        """Return the size of the network's input."""
        return self._size

    def image(self, array: npt.NDArray[Any], region: Geometry) -> _Array:
        """Resize intensities."""
        return _resized(array, self._size, self._spec.order)

    def scores(self, channel: npt.NDArray[Any], region: Geometry) -> _Array:
        """Resize scores."""
        return _resized(channel, region.shape, self._spec.inverse_order)


def _wanted(spacing_mm: Sequence[float], region: Geometry) -> tuple[float, ...]:
    """Return the spacing of the network's grid; 0 keeps the region's own."""
    return tuple(new or old for new, old in zip(spacing_mm, region.spacing_mm, strict=True))


def _zoomed(values: npt.NDArray[np.float64], shape: Sequence[int], order: int) -> Any:
    """Interpolate by splines, outer face to outer face, within the range of the values."""
    factors = [1 / (old / new) for old, new in zip(values.shape, shape, strict=True)]
    zoomed = ndimage.zoom(values, factors, order=order, mode="nearest", grid_mode=True)
    return np.clip(zoomed, values.min(), values.max(), out=zoomed)


def _through(planes: npt.NDArray[np.float64], count: int, order: int) -> npt.NDArray[np.float64]:
    """Interpolate (K, H, W) along its first axis alone to `count` planes."""
    places = len(planes) / count * (np.arange(count) + 0.5) - 0.5
    if order == 0:
        nearest = np.floor(places + 0.5).astype(np.intp).clip(0, len(planes) - 1)
        return np.asarray(planes[nearest])
    grid = np.meshgrid(
        places, *(np.arange(side, dtype=np.float64) for side in planes.shape[1:]), indexing="ij"
    )
    return np.asarray(ndimage.map_coordinates(planes, grid, order=order, mode="nearest"))


def _resized(array: npt.NDArray[Any], shape: Shape, order: int) -> _Array:
    if order == 0:
        return resample.nearest(array, shape).astype(np.float32)
    return resample.linear(array, shape)
