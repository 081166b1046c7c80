"""How large a structure is in one frame, and in the stack that the frames make.

Two volumes are given, for they answer different questions: the sum of all areas times the step
(planimetry) and the ellipsoid of three diameters, pi / 6 x width x height x length, which is how
prostates are measured by hand. Lengths that nobody stated are None, and so is what needs them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from medserve.errors import ServerFailedError
from medserve.imaging.frames import FrameGrid
from medserve.imaging.geometry import Geometry
from medserve.results.measure import LabelMeasure

__all__ = [
    "FrameMeasure",
    "StackMeasure",
    "ellipsoid_ml",
    "measure_frame",
    "measure_label",
    "measure_stack",
]

_Pair = tuple[int, int]


def ellipsoid_ml(width_mm: float, height_mm: float, length_mm: float) -> float:
    """Volume of an ellipsoid with these three diameters."""
    return math.pi / 6.0 * width_mm * height_mm * length_mm / 1000.0


@dataclass(frozen=True)
class FrameMeasure:
    """The structure in one frame.

    Attributes:
        pixels: How many belong to it.
        area_cm2: None where the spacing is unknown.
        width_mm: Extent along the rows, from edge to edge; None where unknown or absent.
        height_mm: Extent along the columns.
        centroid: Mean row and column; None where it is absent.
        box_start: First row and column, with `box_stop`, which lies behind the last.
        box_stop: None with `box_start` where it is absent.
        touches_border: Whether it reaches the edge of what the model saw: a part may be missing.
    """

    pixels: int
    area_cm2: float | None = None
    width_mm: float | None = None
    height_mm: float | None = None
    centroid: tuple[float, float] | None = None
    box_start: _Pair | None = None
    box_stop: _Pair | None = None
    touches_border: bool = False

    def to_json(self) -> dict[str, Any]:
        """The members of a JSON answer for one frame."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FrameMeasure:
        """Read it back; ServerFailedError where it is none."""
        try:
            start, stop, centroid = (
                content[name] for name in ("box_start", "box_stop", "centroid")
            )
            return cls(
                pixels=int(content["pixels"]),
                area_cm2=_number(content["area_cm2"]),
                width_mm=_number(content["width_mm"]),
                height_mm=_number(content["height_mm"]),
                centroid=None if centroid is None else (float(centroid[0]), float(centroid[1])),
                box_start=None if start is None else (int(start[0]), int(start[1])),
                box_stop=None if stop is None else (int(stop[0]), int(stop[1])),
                touches_border=bool(content["touches_border"]),
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ServerFailedError(
                "expected the measurements of a frame from the server, got something else"
            ) from error


@dataclass(frozen=True)
class StackMeasure:
    """The structure in all frames together.

    Attributes:
        frames_found: In how many frames it is.
        largest_frame: The one with its largest area; None where it is in none.
        area_cm2: That area.
        width_mm: Diameters in that frame: along the rows, and with `height_mm` along the columns.
        height_mm: See there.
        length_mm: From the first to the last frame that shows it, or what the caller stated.
        volume_ml: Areas times step; None where a length is unknown or a frame in between failed.
        ellipsoid_ml: By the three diameters.
    """

    frames_found: int
    largest_frame: int | None = None
    area_cm2: float | None = None
    width_mm: float | None = None
    height_mm: float | None = None
    length_mm: float | None = None
    volume_ml: float | None = None
    ellipsoid_ml: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The member `stack` of a JSON answer."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> StackMeasure:
        """Read it back; ServerFailedError where it is none."""
        try:
            largest = content["largest_frame"]
            lengths = [_number(content[each.name]) for each in fields(cls)[2:]]
            found = int(content["frames_found"])
            return cls(found, None if largest is None else int(largest), *lengths)
        except (KeyError, TypeError, ValueError) as error:
            raise ServerFailedError(
                "expected the measurements of a stack from the server, got something else"
            ) from error


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
        return FrameMeasure(0, None if grid.pixel_cm2 is None else 0.0)
    down = np.count_nonzero(mask, axis=1).astype(np.int64)  # counts hold all that is needed
    across = np.count_nonzero(mask, axis=0).astype(np.int64)
    rows, columns = np.flatnonzero(down), np.flatnonzero(across)
    start = (int(rows[0]), int(columns[0]))
    stop = (int(rows[-1]) + 1, int(columns[-1]) + 1)
    top, left, bottom, right = seen or (0, 0, *grid.size)
    height_mm = width_mm = area = None
    if grid.spacing_mm is not None and grid.pixel_cm2 is not None:
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
        return StackMeasure(0, volume_ml=_volume(frames, grid))
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
    frames: Sequence[FrameMeasure | None], geometry: Geometry, label: str
) -> LabelMeasure:
    """The structure as one of a volume, from what was measured in its planes.

    Args:
        frames: In the order of axis k; None for a frame without an answer.
        geometry: Of columns, rows, frames.
        label: The structure's name.
    """
    found = [(k, each) for k, each in enumerate(frames) if each is not None and each.pixels]
    voxels = sum(each.pixels for _, each in found)
    if not voxels:
        return LabelMeasure(label, 1, 0, 0.0, None, None, None, touches_border=False)
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
        1,
        voxels,
        voxels * geometry.voxel_volume_ml,
        (x, y, z),
        start,
        stop,
        touches_border=min(start) == 0
        or any(end == size for end, size in zip(stop, geometry.shape, strict=True)),
    )


def _volume(frames: Sequence[FrameMeasure | None], grid: FrameGrid) -> float | None:
    """A frame that failed may have held a part of it, so there is no sum without it."""
    if grid.voxel_ml is None or None in frames:
        return None
    return sum(each.pixels for each in frames if each is not None) * grid.voxel_ml


def _all(values: Iterable[float | None]) -> tuple[float, float, float]:
    width, height, length = (each for each in values if each is not None)
    return width, height, length


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
