"""Bring a volume to the network's grid, and scores back, by the rule of a model's training.

`medserve.inference.resample` is the rule of the models that ship; `SplineGrid` is that of nnU-Net
v2 and `CentreGrid` that of MONAI, whose networks they let answer as those tools do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import scipy.sparse
from scipy import ndimage

from medserve.imaging.geometry import Geometry, Shape
from medserve.inference import resample
from medserve.spec.volumes import ResamplingKind, ResamplingSpec, ThickSlices

__all__ = ["CentreGrid", "FixedGrid", "Grid", "LinearGrid", "SplineGrid", "grid_of"]

_Array = npt.NDArray[np.float32]
_THICK = 3.0  # times the other spacing, from which nnU-Net resamples slices one by one
_SAME_MM = 1e-3  # two affines or spacings count as one below it: MONAI's AFFINE_TOL
_CORNER = 1e-8  # voxels by which a corner may fail to be the smallest one
_ALIGNED = 1e-5  # voxels, over a whole grid, below which one axis does not depend on another


class Grid(Protocol):
    """One rule for both ways; `region` is the grid of what the network sees, before resampling."""

    def shape(self, region: Geometry) -> Shape:
        """Voxels (i, j, k) that the network sees of a region."""

    def image(self, array: npt.NDArray[Any], region: Geometry) -> _Array:
        """Intensities on the region's grid -> float32 on the network's."""

    def scores(self, channel: npt.NDArray[Any], region: Geometry) -> _Array:
        """One channel of scores, or labels, on the network's grid -> float32 on the region's."""


def grid_of(spec: ResamplingSpec, spacing_mm: Sequence[float], size: Sequence[int]) -> Grid:
    """Return the rule that a model's description names."""
    match spec.kind:
        case ResamplingKind.LINEAR:
            return LinearGrid(spacing_mm)
        case ResamplingKind.SPLINE:
            return SplineGrid(spec, spacing_mm)
        case ResamplingKind.FIXED:
            return FixedGrid(spec, size)
        case ResamplingKind.CENTRES:
            return CentreGrid(spec, spacing_mm)


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


@dataclass(frozen=True, eq=False)
class _Mapping:
    """Old voxel index = matrix @ new voxel index + offset, for a new grid of `shape`."""

    shape: Shape
    matrix: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]

    @property
    def is_aligned(self) -> bool:
        """Whether each axis can be resampled on its own."""
        apart = np.abs(self.matrix - np.diag(np.diag(self.matrix))) * np.array(self.shape)
        return bool(apart.max() < _ALIGNED)


class CentreGrid:
    """The rule of MONAI's `Spacing` (MONAI 1.6.1, Apache-2.0) and of its inverse.

    The centre of the first voxel stays where it is, whatever the spacing becomes, unless no corner
    of the new grid is the smallest along all its axes, as happens for oblique grids whose axes
    are perpendicular only up to rounding: then the middles of both grids coincide. The new axes
    are perpendicular. Interpolation is never widened, and what lies outside repeats the edge.
    """

    def __init__(self, spec: ResamplingSpec, spacing_mm: Sequence[float]) -> None:
        self._spec, self._spacing_mm = spec, spacing_mm

    def shape(self, region: Geometry) -> Shape:
        """Return as many voxels as have their centres between the first and the last one."""
        return self._there(region).shape

    def image(self, array: npt.NDArray[Any], region: Geometry) -> _Array:
        """Interpolate intensities at the new centres."""
        return _interpolated(array, self._there(region), self._spec.order)

    def scores(self, channel: npt.NDArray[Any], region: Geometry) -> _Array:
        """Interpolate scores at the old centres."""
        there = self._there(region)
        back = np.linalg.inv(there.matrix).astype(np.float64)
        mapping = _Mapping(region.shape, back, -back @ there.offset)
        return _interpolated(channel, mapping, self._spec.inverse_order)

    def _there(self, region: Geometry) -> _Mapping:
        columns = region.affine[:3, :3]
        sides = np.array(region.shape, dtype=np.float64)
        new = _perpendicular(columns, self._kept_spacing(region))
        matrix = np.linalg.solve(columns, new).astype(np.float64)
        corners = np.stack(np.meshgrid(*((0.0, side - 1) for side in sides), indexing="ij"))
        corners = corners.reshape(3, -1)
        seen = np.linalg.solve(new, columns) @ corners
        i, j, k = (max(1, int(side)) for side in np.round(np.ptp(seen, axis=1) + 1.0))
        offset = sides / 2 - matrix @ (np.array([i, j, k]) / 2)
        for corner, place in zip(corners.T, seen.T, strict=True):
            if np.abs((seen - place[:, np.newaxis]).min(axis=1)).max() <= _CORNER:
                offset = corner
                break
        if (i, j, k) == region.shape and _is_same(columns, new, matrix, offset):
            return _Mapping(region.shape, np.eye(3), np.zeros(3))
        return _Mapping((i, j, k), matrix, offset)

    def _kept_spacing(self, region: Geometry) -> list[float]:
        """Return the new spacing; what differs from the region's by next to nothing is kept."""
        wanted = _wanted(self._spacing_mm, region)
        return [
            old if abs(old - new) <= _SAME_MM else new
            for old, new in zip(region.spacing_mm, wanted, strict=True)
        ]


def _perpendicular(
    columns: npt.NDArray[np.float64], spacing_mm: Sequence[float]
) -> npt.NDArray[np.float64]:
    """Return axes of another spacing, as columns, without what makes them oblique to each other."""
    upper = np.linalg.cholesky(columns.T @ columns).T
    rotation = columns @ np.linalg.inv(upper)
    return np.asarray(rotation @ np.diag(np.abs(spacing_mm)))


def _is_same(
    old: npt.NDArray[np.float64],
    new: npt.NDArray[np.float64],
    matrix: npt.NDArray[np.float64],
    offset: npt.NDArray[np.float64],
) -> bool:
    """Whether a new grid lies on the old one, in millimetres or in voxels."""
    moved_mm = old @ offset
    in_mm = np.allclose(old, new, atol=_SAME_MM) and np.abs(moved_mm).max() <= _SAME_MM
    in_voxels = np.allclose(matrix, np.eye(3), atol=_SAME_MM) and np.abs(offset).max() <= _SAME_MM
    return bool(in_mm or in_voxels)


def _interpolated(array: npt.NDArray[Any], mapping: _Mapping, order: int) -> _Array:
    """Take values at the places of a new grid: the nearest one (order 0) or linear ones (1)."""
    if np.array_equal(mapping.matrix, np.eye(3)) and not mapping.offset.any():
        return array.astype(np.float32, copy=False)
    if not mapping.is_aligned:
        return np.asarray(
            ndimage.affine_transform(
                array, mapping.matrix, mapping.offset, mapping.shape,
                output=np.float32, order=order, mode="nearest",
            )
        )  # fmt: skip
    places = [
        (mapping.matrix[axis, axis] * np.arange(side) + mapping.offset[axis]).clip(0, old - 1)
        for axis, (side, old) in enumerate(zip(mapping.shape, array.shape, strict=True))
    ]
    if order == 0:
        index = [np.rint(each.round(9)).astype(np.intp) for each in places]  # of halves the even
        return array[np.ix_(*index)].astype(np.float32)
    values = array.astype(np.float32, copy=False)
    for axis in sorted(range(3), key=lambda axis: mapping.shape[axis] / array.shape[axis]):
        values = _along(values, axis, places[axis])
    return values


def _along(values: _Array, axis: int, places: npt.NDArray[np.float64]) -> _Array:
    """Interpolate one axis linearly by a sparse matrix of two weights for each place."""
    moved = np.moveaxis(values, axis, 0)
    flat = np.ascontiguousarray(moved).reshape(len(moved), -1)
    first = np.minimum(places.astype(np.intp), max(0, len(moved) - 2))
    share = places - first
    rows = np.arange(len(places))
    weights = scipy.sparse.csr_array(
        (
            np.concatenate([1 - share, share]).astype(np.float32),
            (np.tile(rows, 2), np.concatenate([first, np.minimum(first + 1, len(moved) - 1)])),
        ),
        shape=(len(places), len(moved)),
    )
    mixed = weights @ flat
    return np.moveaxis(mixed.reshape(len(places), *moved.shape[1:]), 0, axis)


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
