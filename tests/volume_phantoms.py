"""Computed volumes with known answers: anisotropic, asymmetric and, on request, oblique."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume

SHAPE = (14, 11, 9)  # three different sides, so that a swapped axis cannot go unnoticed
SPACING_MM = (0.8, 1.1, 2.3)


def rotation(angles: Sequence[float]) -> npt.NDArray[np.float64]:
    """Rotation matrix (3, 3) by `angles` (radians) about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[b, a], turn[a, b] = np.sin(angle), -np.sin(angle)
        matrix = turn @ matrix
    return matrix


def oblique(shape: Sequence[int] = SHAPE, spacing_mm: Sequence[float] = SPACING_MM) -> Geometry:
    """A rotated, mirrored, shifted grid: nothing about it is a default."""
    affine = np.eye(4)
    affine[:3, :3] = rotation((0.3, -0.2, 0.5)) @ np.diag((-1, 1, 1)) @ np.diag(spacing_mm)
    affine[:3, 3] = (-31.5, 12.25, 87.0)
    return Geometry((shape[0], shape[1], shape[2]), affine)


def world_grid(geometry: Geometry) -> npt.NDArray[np.float64]:
    """World position of every voxel, (I, J, K, 3)."""
    return geometry.to_world(np.moveaxis(np.indices(geometry.shape), 0, -1))


def ball(geometry: Geometry, centre_mm: npt.ArrayLike, radius_mm: float) -> Volume:
    """float32 1 inside the ball, falling to 0 over one millimetre at its surface, 0 outside."""
    distance = np.linalg.norm(world_grid(geometry) - np.asarray(centre_mm), axis=-1)
    inside = np.clip(radius_mm - distance + 0.5, 0.0, 1.0)
    return Volume(inside.astype(np.float32), geometry)


def ramp(geometry: Geometry, dtype: npt.DTypeLike = np.int16) -> Volume:
    """Every voxel has a value of its own: its position in C order."""
    size = int(np.prod(geometry.shape))
    return Volume(np.arange(size).reshape(geometry.shape).astype(dtype), geometry)


def centre_of_mass_mm(
    array: npt.NDArray[np.generic], geometry: Geometry
) -> npt.NDArray[np.float64]:
    """World position of the weighted mean of all voxels."""
    weights = np.asarray(array, dtype=np.float64)
    return np.asarray(np.tensordot(weights, world_grid(geometry), axes=3) / weights.sum())


@st.composite
def geometries(draw: st.DrawFn, smallest: int = 3, largest: int = 12) -> Geometry:
    """Grids of any axis order, mirroring, rotation, spacing and position."""
    shape = [draw(st.integers(smallest, largest)) for _ in range(3)]
    spacing = [draw(st.floats(0.3, 4.0)) for _ in range(3)]
    angles = [draw(st.floats(-0.4, 0.4)) for _ in range(3)]
    axes = draw(st.sampled_from(list(itertools.permutations(range(3)))))
    signs = [draw(st.sampled_from((-1.0, 1.0))) for _ in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = rotation(angles) @ np.eye(3)[:, axes] @ np.diag(np.multiply(spacing, signs))
    affine[:3, 3] = [draw(st.floats(-200.0, 200.0)) for _ in range(3)]
    return Geometry((shape[0], shape[1], shape[2]), affine)
