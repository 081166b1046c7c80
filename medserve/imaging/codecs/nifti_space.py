"""Where the voxels of a NIfTI file lie: sform, qform or pixdim, in millimetres.

By nifti1.h, "3D IMAGE (VOLUME) ORIENTATION AND LOCATION IN SPACE":

- sform_code > 0: Method 3, the affine of srow_x, srow_y and srow_z;
- otherwise qform_code > 0: Method 2, the quaternion, pixdim and qoffset;
- otherwise Method 1, pixdim alone. The standard leaves the handedness open; as in nibabel (and as
  Analyze files were meant) the first axis runs to the Left and the origin is the grid's middle.

A form that is chosen and unusable is refused, never replaced by a guess. Where both forms stand
and disagree, the sform counts; but where one mirrors the other both are refused, as FSL does.
Metres and micrometres are converted; an unknown unit is taken for millimetres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from medserve.errors import InvalidImageError
from medserve.imaging.geometry import Geometry, Shape

__all__ = ["NiftiSpace"]

_HEADERS: dict[int, Any] = {1: nibabel.Nifti1Header, 2: nibabel.Nifti2Header}
_LONGEST = 1e-4  # squared, beyond 1: rounding; whole public data sets have 4e-7
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units & 7: unknown, m, mm, um


@dataclass(frozen=True)
class NiftiSpace:
    """The header fields that place a NIfTI file in space, as they were stored."""

    version: int
    stored_shape: tuple[int, ...]  # without channels: (I, J), (I, J, K) or (I, J, K, 1)
    pixdim: tuple[float, float, float, float]  # qfac and three spacings
    xyzt_units: int
    qform_code: int
    quaternion: tuple[float, float, float]
    qoffset: tuple[float, float, float]
    sform_code: int
    srow: tuple[tuple[float, ...], ...]  # (3, 4)

    @classmethod
    def from_header(cls, header: Any, stored_shape: tuple[int, ...]) -> NiftiSpace:
        """Take the fields from nibabel's Nifti1Header or Nifti2Header."""
        q = [float(header[f"quatern_{axis}"]) for axis in "bcd"]
        offset = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
        pixdim = [float(value) for value in header["pixdim"][:4]]
        return cls(
            version=1 if int(header["sizeof_hdr"]) == 348 else 2,
            stored_shape=stored_shape,
            pixdim=(pixdim[0], pixdim[1], pixdim[2], pixdim[3]),
            xyzt_units=int(header["xyzt_units"]),
            qform_code=int(header["qform_code"]),
            quaternion=(q[0], q[1], q[2]),
            qoffset=(offset[0], offset[1], offset[2]),
            sform_code=int(header["sform_code"]),
            srow=tuple(tuple(float(v) for v in header[f"srow_{axis}"]) for axis in "xyz"),
        )

    def geometry(self, shape: Shape) -> Geometry:
        """The grid of a volume of this shape; InvalidImageError where the fields make none."""
        return Geometry(shape, _affine(self, shape))

    def write(self, header: Any, geometry: Geometry) -> None:
        """Repeat the fields, and the stored shape, in nibabel's header.

        Raises:
            ValueError: the fields describe another grid than `geometry`.
        """
        if math.prod(self.stored_shape) != math.prod(geometry.shape) or (
            self.geometry(geometry.shape) != geometry
        ):
            raise ValueError("the NIfTI space describes another grid than the volume's geometry")
        header.set_data_shape(self.stored_shape)
        header["pixdim"][:4] = self.pixdim
        header["xyzt_units"] = self.xyzt_units
        header["qform_code"], header["sform_code"] = self.qform_code, self.sform_code
        for name, value in zip("bcd", self.quaternion, strict=True):
            header[f"quatern_{name}"] = value
        for name, value, row in zip("xyz", self.qoffset, self.srow, strict=True):
            header[f"qoffset_{name}"], header[f"srow_{name}"] = value, row


def _affine(space: NiftiSpace, shape: tuple[int, int, int]) -> npt.NDArray[np.float64]:
    """The affine in millimetres by the rules at the head of this module."""
    affine = np.eye(4)
    if space.sform_code > 0:
        affine[:3] = space.srow
        _refuse_mirrored(space, affine[:3, :3])
    elif space.qform_code > 0:
        affine[:3, :3] = _rotation(space.quaternion, space.version) * space.pixdim[1:]
        if space.pixdim[0] < 0:  # qfac; 0 counts as 1 (nifti1.h, "QUATERNION REPRESENTATION")
            affine[:3, 2] *= -1
        affine[:3, 3] = space.qoffset
    else:
        affine[:3, :3] = np.diag(space.pixdim[1:]) * (-1, 1, 1)
        affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    is_flat = shape[2] == 1 or space.stored_shape[2:3] == (1,)
    if is_flat and not affine[:3, 2].any():  # a flat image needs no thickness
        across = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] = across / max(float(np.linalg.norm(across)), np.finfo(float).tiny)
    unit = _MM_PER_UNIT.get(space.xyzt_units & 7)
    if unit is None:
        raise InvalidImageError(
            f"expected lengths in mm, m or um, got unit code {space.xyzt_units & 7}"
        )
    affine[:3] *= unit
    return affine


def _refuse_mirrored(space: NiftiSpace, sform: npt.NDArray[np.float64]) -> None:
    """Refuse an sform whose left and right are the other way round than those of the qform."""
    size = float(np.linalg.det(sform))
    if space.qform_code > 0 and size != 0.0 and (size < 0) != (space.pixdim[0] < 0):
        raise InvalidImageError(
            "expected an sform and a qform with left and right on the same sides, got one that "
            "mirrors the other; correct the header"
        )


def _rotation(quaternion: tuple[float, float, float], version: int) -> npt.NDArray[np.float64]:
    """Unit quaternion of which b, c and d are stored -> rotation matrix, as nibabel makes it.

    Rounding makes some too long by a hair; as in nifti1_io.c they are divided by their length.
    """
    threshold = abs(float(_HEADERS[version].quaternion_threshold))  # rounding of float32 or 64
    squared = sum(part * part for part in quaternion)
    if not squared <= 1.0 + _LONGEST:  # catches NaN as well
        raise InvalidImageError(
            "expected a unit quaternion in the qform, got a longer one; correct the header"
        )
    unit = np.array(quaternion) / (math.sqrt(squared) if squared > 1.0 + threshold else 1.0)
    complete: Any = nibabel.quaternions.fillpositive
    rotate: Any = nibabel.quaternions.quat2mat
    return np.asarray(rotate(complete(unit, threshold)), dtype=np.float64)
