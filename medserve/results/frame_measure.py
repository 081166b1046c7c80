"""How large a structure is in one frame, and in the stack that the frames make.

Two volumes are given, for they answer different questions: the sum of all areas times the step
(planimetry) and the ellipsoid of three diameters, pi / 6 x width x height x length, which is how
prostates are measured by hand. Lengths that nobody stated are None, and so is what needs them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from medserve.imaging.frames import FrameGrid
from medserve.imaging.geometry import Geometry
from medserve.imaging.packed_masks import PackedMasks
from medserve.tasks.frames import FrameMeasure, StackMeasure, Structure
from medserve.tasks.volumes import LabelMeasure

__all__ = [
    "ellipsoid_ml",
    "measure_frame",
    "measure_label",
    "measure_stack",
    "measure_structures",
]


def ellipsoid_ml(width_mm: float, height_mm: float, length_mm: float) -> float:
    """Volume of an ellipsoid with these three diameters."""
    return math.pi / 6.0 * width_mm * height_mm * length_mm / 1000.0


def measure_frame(
    mask: npt.NDArray[np.integer], grid: FrameGrid, seen: tuple[int, int, int, int] | None = None
) -> FrameMeasure:
    """Size and place of what is marked.

    Args:
        mask: (H, W), not 0 where the structure is.
        grid: The stack's.
        seen: Top, left, bottom, right of what the model saw; by default all of the frame.
    """
    pixels = int(np.count_nonzero(mask))
    if pixels == 0:
        area = None if grid.pixel_cm2 is None else 0.0
        return FrameMeasure(0, area, None, None, None, None, None, touches_border=False)
    down = np.count_nonzero(mask, axis=1).astype(np.int64)  # counts hold all that is needed
    across = np.count_nonzero(mask, axis=0).astype(np.int64)
    rows, columns = np.flatnonzero(down), np.flatnonzero(across)
    start = (int(rows[0]), int(columns[0]))
    stop = (int(rows[-1]) + 1, int(columns[-1]) + 1)
    top, left, bottom, right = seen or (0, 0, *grid.size)
    height_mm = width_mm = area = None
    if grid.spacing_mm is not None and grid.pixel_cm2 is not None and grid.covers(mask):
        height_mm = (stop[0] - start[0]) * grid.spacing_mm[0]
        width_mm = (stop[1] - start[1]) * grid.spacing_mm[1]
        area = pixels * grid.pixel_cm2
    return FrameMeasure(
        pixels,
        area,
        width_mm,
        height_mm,
        (
            float(down @ np.arange(down.size)) / pixels,
            float(across @ np.arange(across.size)) / pixels,
        ),
        start,
        stop,
        touches_border=(
            start[0] <= top or start[1] <= left or stop[0] >= bottom or stop[1] >= right
        ),
    )


def measure_structures(
    masks: PackedMasks,
    frames: Sequence[FrameMeasure | None],
    grid: FrameGrid,
    labels: Sequence[str],
    seen: Sequence[tuple[int, int, int, int] | None],
    length_mm: float | None = None,
) -> tuple[Structure, ...]:
    """Measure each of several structures by itself; of one structure there is nothing to tell.

    Args:
        masks: Of all frames.
        frames: What was measured of their union; None for a frame without an answer.
        grid: The stack's.
        labels: Names by id, the background's first.
        seen: Top, left, bottom, right of what the model saw of each frame.
        length_mm: The third diameter, where the caller stated it.
    """
    if len(labels) == 2:
        return ()
    own: list[list[FrameMeasure | None]] = [[] for _ in labels[1:]]
    for mask, frame, box in zip(masks, frames, seen, strict=True):
        for label_id, measures in enumerate(own, start=1):
            found = None if frame is None else measure_frame(mask == label_id, grid, box)
            measures.append(found)
    return tuple(
        Structure(labels[label_id], label_id, measure_stack(each, grid, length_mm), tuple(each))
        for label_id, each in enumerate(own, start=1)
    )


def measure_stack(
    frames: Sequence[FrameMeasure | None], grid: FrameGrid, length_mm: float | None = None
) -> StackMeasure:
    """All frames together.

    Args:
        frames: In order; None for a frame without an answer.
        grid: The stack's.
        length_mm: The third diameter as somebody measured it, for instance in a sagittal frame.
    """
    found = [(n, each) for n, each in enumerate(frames) if each is not None and each.pixels]
    if not found:
        return StackMeasure(0, None, None, None, None, None, _volume(frames, grid), None)
    largest, widest = max(found, key=lambda pair: pair[1].pixels)
    if length_mm is None and grid.step_mm is not None:
        length_mm = (found[-1][0] - found[0][0] + 1) * grid.step_mm
    diameters = (widest.width_mm, widest.height_mm, length_mm)
    return StackMeasure(
        len(found),
        largest,
        widest.area_cm2,
        *diameters,
        volume_ml=_volume(frames, grid),
        ellipsoid_ml=None if None in diameters else ellipsoid_ml(*_all(diameters)),
    )


def measure_label(
    frames: Sequence[FrameMeasure | None], geometry: Geometry, label: str, label_id: int = 1
) -> LabelMeasure:
    """The structure as one of a volume, from what was measured in its planes.

    Args:
        frames: In the order of axis k; None for a frame without an answer.
        geometry: Of columns, rows, frames.
        label: The structure's name.
        label_id: Its id in the masks.
    """
    found = [(k, each) for k, each in enumerate(frames) if each is not None and each.pixels]
    voxels = sum(each.pixels for _, each in found)
    if not voxels:
        return LabelMeasure(label, label_id, 0, 0.0, None, None, None, touches_border=False)
    mean = np.zeros(3)
    for k, each in found:
        assert each.centroid is not None  # there are pixels
        mean += np.array((each.centroid[1], each.centroid[0], k)) * each.pixels / voxels
    boxes = [(each.box_start, each.box_stop) for _, each in found]
    starts, stops = np.array(boxes, dtype=np.int64)[:, 0], np.array(boxes, dtype=np.int64)[:, 1]
    start = (int(starts[:, 1].min()), int(starts[:, 0].min()), found[0][0])
    stop = (int(stops[:, 1].max()), int(stops[:, 0].max()), found[-1][0] + 1)
    x, y, z = (float(mm) for mm in geometry.to_world(mean))
    return LabelMeasure(
        label,
        label_id,
        voxels,
        voxels * geometry.voxel_volume_ml,
        (x, y, z),
        start,
        stop,
        touches_border=min(start) == 0
        or any(end == size for end, size in zip(stop, geometry.shape, strict=True)),
    )


def _volume(frames: Sequence[FrameMeasure | None], grid: FrameGrid) -> float | None:
    """None where a frame failed, for it may have held a part, or has no area in centimetres."""
    if grid.voxel_ml is None:
        return None
    measured = [each for each in frames if each is not None and each.area_cm2 is not None]
    if len(measured) < len(frames):
        return None
    return sum(each.pixels for each in measured) * grid.voxel_ml


def _all(values: Iterable[float | None]) -> tuple[float, float, float]:
    width, height, length = (each for each in values if each is not None)
    return width, height, length
