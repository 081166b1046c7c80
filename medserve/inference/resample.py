"""Bring a volume to another spacing, and what a network said about it back to the source's grid.

One rule for both ways (the half-voxel rule): the new grid fills the same block of space, outer
face to outer face, so new index n lies at old index (n + 0.5) * old / new - 0.5. The number of
voxels is rounded; the spacing that results differs from the one asked for by less than half a
voxel over the whole length, and is stated by the new geometry. The way back has the source's
shape as its target and therefore ends exactly on the source's grid, affine included.

Interpolation is linear and separable. Where it shrinks, the triangle is widened to the new voxel
(as in Pillow's bilinear filter and `fit_grey`), so that no structure is skipped over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from medserve.imaging.geometry import Geometry, Shape
from medserve.imaging.volume import Volume
from medserve.inference.argmax import argmax_channels

__all__ = ["linear", "nearest", "resample", "resample_labels", "restore", "restore_labels",
           "spaced_shape"]  # fmt: skip

_Array = npt.NDArray[np.float32]


def spaced_shape(geometry: Geometry, spacing_mm: Sequence[float]) -> Shape:
    """How many voxels of about `spacing_mm` fill the grid; at least one along each axis."""
    i, j, k = (
        max(1, round(size * old / new))
        for size, old, new in zip(geometry.shape, geometry.spacing_mm, spacing_mm, strict=True)
    )
    return i, j, k


def resample(volume: Volume, spacing_mm: Sequence[float]) -> Volume:
    """The volume as float32 on a grid of about `spacing_mm`."""
    geometry = volume.geometry.with_shape(spaced_shape(volume.geometry, spacing_mm))
    return Volume(linear(volume.array, geometry.shape), geometry)


def resample_labels(
    mask: npt.NDArray[np.uint8], geometry: Geometry, spacing_mm: Sequence[float]
) -> tuple[npt.NDArray[np.uint8], Geometry]:
    """A mask (I, J, K) on a grid of about `spacing_mm`, for training.

    Each label is interpolated on its own and the largest wins, so that edges stay smooth and no
    label appears that was not there.
    """
    target = geometry.with_shape(spaced_shape(geometry, spacing_mm))
    present = [int(label) for label in np.unique(mask)]
    winner = argmax_channels(linear(mask == label, target.shape) for label in present)
    return np.array(present, dtype=np.uint8)[winner], target


def restore(scores: npt.NDArray[Any], source: Geometry) -> _Array:
    """Scores (C, i, j, k) of a resampled volume -> (C, I, J, K) on the grid it came from."""
    return np.stack([linear(channel, source.shape) for channel in scores])


def restore_labels(scores: npt.NDArray[Any], source: Geometry) -> npt.NDArray[np.uint8]:
    """Scores (C, i, j, k) -> the label of the largest, uint8 (I, J, K), on the source's grid.

    Interpolated before the largest is taken; one channel at a time, so that memory does not grow
    with the number of labels. Of equal scores the first label wins, as in `argmax`.
    """
    return argmax_channels(linear(channel, source.shape) for channel in scores)


def linear(array: npt.NDArray[Any], shape: Sequence[int]) -> _Array:
    """(I, J, K) -> float32 of another shape over the same block of space."""
    values = np.asarray(array, dtype=np.float32)
    # The axis that shrinks most goes first: the others then have less to do.
    order = sorted(range(3), key=lambda axis: shape[axis] / array.shape[axis])
    for axis in order:
        if values.shape[axis] != shape[axis]:
            values = _along(values, axis, shape[axis])
    return values


def nearest(mask: npt.NDArray[Any], shape: Sequence[int]) -> npt.NDArray[Any]:
    """(I, J, K) -> the nearest old voxel for each new one; labels are never mixed."""
    index = [
        np.clip(np.floor(_old_positions(old, new) + 0.5).astype(np.intp), 0, old - 1)
        for old, new in zip(mask.shape, shape, strict=True)
    ]
    return np.asarray(mask[np.ix_(*index)])


def _along(values: _Array, axis: int, new: int) -> _Array:
    """Interpolate one axis by a sparse matrix (new, old) of weights."""
    moved = np.moveaxis(values, axis, 0)
    flat = np.ascontiguousarray(moved).reshape(moved.shape[0], -1)
    mixed = _weights(moved.shape[0], new) @ flat
    return np.moveaxis(mixed.reshape(new, *moved.shape[1:]), 0, axis)


def _weights(old: int, new: int) -> Any:
    """Triangle weights, each row summing to one; the edge repeats no voxel, it re-weights."""
    positions = _old_positions(old, new)
    reach = max(1.0, old / new)
    first = np.ceil(positions - reach).astype(np.intp)
    columns = first[:, np.newaxis] + np.arange(int(2 * reach) + 2)  # (new, taps)
    weights = np.maximum(0.0, 1.0 - np.abs(columns - positions[:, np.newaxis]) / reach)
    weights[(columns < 0) | (columns >= old)] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    rows = np.broadcast_to(np.arange(new)[:, np.newaxis], columns.shape)
    used = weights > 0
    return scipy.sparse.csr_array(
        (weights[used].astype(np.float32), (rows[used], columns[used])), shape=(new, old)
    )


def _old_positions(old: int, new: int) -> npt.NDArray[np.float64]:
    """Where the centres of the new voxels lie among the old ones."""
    return np.asarray((np.arange(new) + 0.5) * (old / new) - 0.5)
