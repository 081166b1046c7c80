"""Where the voxels of a volume lie in the patient: voxel index to world, RAS+ millimetres.

World axes are those of NIfTI-1: +x to the patient's Right, +y Anterior, +z Superior. An index
names the centre of a voxel, so a grid of n voxels reaches from -0.5 to n - 0.5 along its axis.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medserve.errors import InvalidImageError

__all__ = ["AxisOrder", "Geometry", "Shape"]

Shape = tuple[int, int, int]

_MIN_SPACING_MM, _MAX_SPACING_MM = 1e-5, 1e4  # 10 nanometres (microscopy); 10 metres
_MIN_DETERMINANT = 1e-3  # of the unit axes: 1 where they are perpendicular, 0 where they coincide
_ALIGNED_COSINE = 1.0 - 1e-6  # about 0.08 degrees, above what float32 headers round away
_POSITIVE, _NEGATIVE = "RAS", "LPI"


@dataclass(frozen=True)
class AxisOrder:
    """A permutation and mirroring of array axes, and the way back.

    Attributes:
        axes: For each new axis, the old axis that it is made of.
        flips: For each new axis, whether it runs against the old one.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def apply(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Old order -> new order, on the last three axes; a view, nothing is copied."""
        lead = array.ndim - 3
        moved = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        return np.asarray(moved[self._steps()])

    def undo(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """New order -> old order, on the last three axes; a view, nothing is copied."""
        lead = array.ndim - 3
        back = np.argsort(self.axes)
        straight = np.asarray(array[self._steps()])
        return straight.transpose(*range(lead), *(lead + int(axis) for axis in back))

    def _steps(self) -> Any:
        return (..., *(slice(None, None, -1 if flip else 1) for flip in self.flips))


@dataclass(frozen=True, eq=False)
class Geometry:
    """A voxel grid: its shape (I, J, K) and the affine that maps (i, j, k, 1) to world mm.

    Equality is exact, to the last bit of the affine; `matches` compares with a tolerance.

    Raises:
        InvalidImageError: not three positive axes, an affine that is not a finite 4 x 4 matrix
            with last row 0 0 0 1, a spacing of zero, or axes that do not span space.
    """

    shape: Shape
    affine: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise InvalidImageError(f"expected 3 axes of at least 1 voxel, got shape {shape}")
        affine = np.array(self.affine, dtype=np.float64)  # a copy: nobody else can change it
        _check_affine(affine)
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def from_spacing(cls, shape: Sequence[int], spacing_mm: Sequence[float]) -> Geometry:
        """A grid along the world axes with its first voxel at the origin."""
        if len(shape) != 3 or len(spacing_mm) != 3:
            raise InvalidImageError(
                f"expected 3 axes with 3 spacings, got {len(shape)} and {len(spacing_mm)}"
            )
        return cls((shape[0], shape[1], shape[2]), np.diag([*spacing_mm, 1.0]))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Geometry):
            return NotImplemented
        return self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, (self.affine + 0.0).tobytes()))  # + 0.0 turns -0 into 0

    def matches(self, other: Geometry, tolerance_mm: float = 1e-3) -> bool:
        """Whether both grids have one shape and no voxel lies farther apart than the tolerance."""
        if self.shape != other.shape:
            return False
        apart = np.linalg.norm(self.corners_mm() - other.corners_mm(), axis=1)
        return bool(apart.max() <= tolerance_mm)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along i, j and k."""
        i, j, k = (float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))
        return i, j, k

    @property
    def directions(self) -> npt.NDArray[np.float64]:
        """(3, 3): unit vectors of the axes i, j and k in the world, as columns."""
        columns = self.affine[:3, :3]
        return np.asarray(columns / np.linalg.norm(columns, axis=0))

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel, also of a sheared one."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def handedness(self) -> int:
        """+1 where i, j, k turn as the world axes do, -1 where the grid is mirrored."""
        return 1 if np.linalg.det(self.affine[:3, :3]) > 0 else -1

    @property
    def is_oblique(self) -> bool:
        """Whether an axis of the grid is inclined to all world axes."""
        return bool(np.abs(self.directions).max(axis=0).min() < _ALIGNED_COSINE)

    @property
    def is_sheared(self) -> bool:
        """Whether the axes of the grid are not perpendicular (gantry tilt)."""
        products = self.directions.T @ self.directions
        return bool(np.abs(products - np.eye(3)).max() > 1e-3)

    @property
    def centre_mm(self) -> npt.NDArray[np.float64]:
        """World position of the middle of the grid."""
        return self.to_world((np.array(self.shape) - 1) / 2)

    @property
    def codes(self) -> str:
        """The anatomical direction nearest to each axis, such as "RAS" or "LPS"."""
        order = self.axis_order("RAS")
        letters = [""] * 3
        for world, (axis, flip) in enumerate(zip(order.axes, order.flips, strict=True)):
            letters[axis] = (_NEGATIVE if flip else _POSITIVE)[world]
        return "".join(letters)

    def to_world(self, index: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Voxel indices (..., 3), fractions included -> world mm (..., 3)."""
        return np.asarray(np.asarray(index) @ self.affine[:3, :3].T + self.affine[:3, 3])

    def to_index(self, world_mm: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """World mm (..., 3) -> voxel indices (..., 3), not rounded."""
        return np.asarray(
            (np.asarray(world_mm) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T
        )

    def corners_mm(self) -> npt.NDArray[np.float64]:
        """(8, 3): world positions of the voxels at the corners of the grid."""
        return self.to_world(list(itertools.product(*((0, n - 1) for n in self.shape))))

    def crop(self, start: Sequence[int], shape: Sequence[int]) -> Geometry:
        """The grid of a block of `shape` voxels that begins at voxel `start` (may be negative)."""
        affine = self.affine.copy()
        affine[:3, 3] = self.to_world(start)
        return Geometry((shape[0], shape[1], shape[2]), affine)

    def with_shape(self, shape: Sequence[int]) -> Geometry:
        """The same block of space cut into other voxels: outer faces stay where they are.

        Centres therefore follow the half-voxel rule: new index n lies at the old index
        (n + 0.5) * old / new - 0.5.
        """
        scale = np.array(self.shape) / np.array(shape)
        affine = self.affine.copy()
        affine[:3, :3] *= scale
        affine[:3, 3] = self.to_world(0.5 * scale - 0.5)
        return Geometry((shape[0], shape[1], shape[2]), affine)

    def axis_order(self, codes: str = "RAS") -> AxisOrder:
        """How to permute and flip the axes so that they run along `codes`, as nearly as possible.

        Of the six permutations the one with the largest sum of cosines is taken; nothing is
        interpolated, so an oblique grid stays oblique. Codes such as "kji" name the grid's own
        axes instead, which are permuted and never flipped.
        """
        if sorted(codes) == ["i", "j", "k"]:
            first, second, third = ("ijk".index(code) for code in codes)
            return AxisOrder((first, second, third), (False, False, False))
        targets = [_world_axis(code) for code in codes]
        if sorted(axis for axis, _ in targets) != [0, 1, 2]:
            raise ValueError(f"expected one letter each of R/L, A/P and S/I, got {codes!r}")
        cosines = np.stack([sign * self.directions[axis] for axis, sign in targets])
        best = max(
            itertools.permutations(range(3)),
            key=lambda axes: sum(abs(float(cosines[new, old])) for new, old in enumerate(axes)),
        )
        i, j, k = (bool(cosines[new, old] < 0) for new, old in enumerate(best))
        return AxisOrder((best[0], best[1], best[2]), (i, j, k))

    def reordered(self, order: AxisOrder) -> Geometry:
        """The grid of an array to which `order` was applied."""
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, list(order.axes)]
        shape = [self.shape[axis] for axis in order.axes]
        for new, flip in enumerate(order.flips):
            if flip:
                affine[:3, 3] += affine[:3, new] * (shape[new] - 1)
                affine[:3, new] *= -1
        return Geometry((shape[0], shape[1], shape[2]), affine)


def _check_affine(affine: npt.NDArray[np.float64]) -> None:
    if affine.shape != (4, 4):
        raise InvalidImageError(f"expected a 4 x 4 affine, got shape {affine.shape}")
    if not np.isfinite(affine).all():
        raise InvalidImageError(
            "expected a finite affine, got NaN or infinity; the header is damaged"
        )
    if not np.array_equal(affine[3], (0.0, 0.0, 0.0, 1.0)):
        raise InvalidImageError(
            f"expected the affine's last row to be 0 0 0 1, got {affine[3].tolist()}"
        )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() < _MIN_SPACING_MM or spacing.max() > _MAX_SPACING_MM:
        listed = ", ".join(f"{length:g}" for length in spacing)
        raise InvalidImageError(
            f"expected spacings between {_MIN_SPACING_MM:g} and {_MAX_SPACING_MM:g} mm, "
            f"got {listed}; correct the header"
        )
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < _MIN_DETERMINANT:
        raise InvalidImageError(
            "expected axes that span space, got a singular affine; correct the header"
        )


def _world_axis(code: str) -> tuple[int, int]:
    """A letter -> world axis and sign."""
    if code in _POSITIVE and code:
        return _POSITIVE.index(code), 1
    if code in _NEGATIVE and code:
        return _NEGATIVE.index(code), -1
    raise ValueError(f"expected one of R, L, A, P, S, I, got {code!r}")
