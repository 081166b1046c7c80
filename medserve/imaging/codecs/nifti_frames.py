"""NIfTI stacks -> FrameStack: which axis counts the frames, and which way up they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from medserve.imaging.codecs import nifti
from medserve.imaging.codecs.nifti_space import NiftiSpace
from medserve.imaging.codecs.payload import Payload, check_size
from medserve.imaging.frames import FrameGrid, FrameLimits, FrameStack
from medserve.imaging.geometry import AxisOrder, Geometry
from medserve.imaging.image import Image
from medserve.imaging.intensity import clipped, full_range
from medserve.imaging.packed_masks import PackedMasks
from medserve.imaging.volume import Volume, VolumeLimits
from medserve.spec import InputKind
from medserve.tasks.frames import View

__all__ = ["NiftiFrames", "View", "decode", "frame_order"]

_SAMPLED_FRAMES = 16  # whose intensities set the range of a whole stack
_LOW, _HIGH = 0.5, 99.5  # percentiles, as for a still picture


# Codes to turn the volume to, and its axes then: rows, columns, frames.
_BY_AFFINE: dict[View, tuple[str, tuple[int, int, int]]] = {
    View.AXIAL: ("LPS", (1, 0, 2)),
    View.CORONAL: ("LIP", (1, 0, 2)),
    View.SAGITTAL: ("PIL", (1, 0, 2)),
}
_AS_STORED: dict[View, tuple[int, int, int]] = {View.STORED: (1, 0, 2), View.SWAPPED: (0, 1, 2)}


class NiftiFrames(FrameStack):
    """The planes of a volume, on its own grid."""

    kind = InputKind.NIFTI
    is_stack = True

    def __init__(self, volume: nifti.NiftiVolume, view: View) -> None:
        self._volume = volume
        self.view = view
        self._order = frame_order(volume, view)
        self._planes = self._order.apply(volume.array)  # (H, W, K), a view
        rows, columns, count = self._planes.shape
        spacing = volume.geometry.reordered(self._order).spacing_mm
        known = _states_lengths(volume.space)
        self.grid = FrameGrid(
            (rows, columns),
            count,
            (spacing[0], spacing[1]) if known else None,
            spacing[2] if known and count > 1 and not _is_loop(volume.space) else None,
        )
        self._range = _range(self._planes)

    def read(self, index: int) -> Image:
        """One plane, on the scale of the whole stack."""
        plane = np.ascontiguousarray(self._planes[..., index])
        if plane.dtype == np.uint8:
            return Image(full_range(plane, 255))
        low, high = self._range
        if high <= low:
            return Image(np.zeros(plane.shape, dtype=np.float32))
        return Image(clipped((plane.astype(np.float64) - low) / (high - low)))

    @property
    def space(self) -> NiftiSpace:
        """The file's own header fields."""
        return self._volume.space

    @property
    def geometry(self) -> Geometry:
        """The file's own grid."""
        return self._volume.geometry

    def nifti_mask(self, masks: PackedMasks) -> bytes:
        """The masks on the file's own grid, axes and header as they were stored."""
        if self.view is View.STORED:
            return super().nifti_mask(masks)
        return nifti.encode(Volume(self.on_grid(masks), self.geometry), self.space)

    def on_grid(self, masks: PackedMasks) -> npt.NDArray[np.uint8]:
        """The masks as one array, axes as they were stored."""
        return self._order.undo(masks.array.transpose(1, 2, 0))


def decode(payload: Payload, limits: FrameLimits, view: View = View.STORED) -> NiftiFrames:
    """The planes of a NIfTI file; the header is checked before voxels are read.

    Raises:
        InvalidImageError: no NIfTI, damaged, colour, or planes that are too small.
        PayloadTooLargeError: more frames or pixels than `limits` allow.
    """
    volume = nifti.decode(payload, _volume_limits(limits), loop=True)
    frames = NiftiFrames(volume, view)
    check_size(*frames.grid.size, limits.plane)
    limits.check_count(frames.grid.count)
    return frames


def _volume_limits(limits: FrameLimits) -> VolumeLimits:
    voxels = min(VolumeLimits.max_voxels, limits.plane.max_pixels * limits.max_frames)
    return VolumeLimits(max_voxels=voxels)


def frame_order(volume: Volume, view: View) -> AxisOrder:
    """From the stored axes to rows, columns, frames."""
    if view in _AS_STORED:
        return AxisOrder(_AS_STORED[view], (False, False, False))
    codes, axes = _BY_AFFINE[view]
    turned = volume.geometry.axis_order(codes)
    a, b, c = (turned.axes[axis] for axis in axes)
    d, e, f = (turned.flips[axis] for axis in axes)
    return AxisOrder((a, b, c), (d, e, f))


def _states_lengths(space: NiftiSpace) -> bool:
    """Whether the header means its distances: a form that is used, or a unit."""
    return space.sform_code > 0 or space.qform_code > 0 or space.xyzt_units & 7 != 0


def _is_loop(space: NiftiSpace) -> bool:
    """Whether frames are moments along a fourth axis, not places along the third."""
    return len(space.stored_shape) == 4 and space.stored_shape[2] == 1 < space.stored_shape[3]


def _range(planes: npt.NDArray[Any]) -> tuple[float, float]:
    """What becomes black and what white, from frames spread over the stack."""
    count = planes.shape[-1]
    chosen = np.unique(np.linspace(0, count - 1, min(count, _SAMPLED_FRAMES)).round().astype(int))
    sample = planes[..., chosen]
    low, high = (float(edge) for edge in np.percentile(sample, (_LOW, _HIGH)))
    return (low, high) if high > low else (float(sample.min()), float(sample.max()))
