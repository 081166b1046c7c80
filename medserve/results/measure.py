"""How large each label of a mask is and where it lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from medserve.errors import ServerFailedError
from medserve.imaging.geometry import Geometry

__all__ = ["LabelMeasure", "measure"]

_Triple = tuple[int, int, int]
_T = TypeVar("_T")


@dataclass(frozen=True)
class LabelMeasure:
    """One label of a mask.

    Attributes:
        label: Its name.
        label_id: Its number in the mask.
        voxels: How many carry it.
        volume_ml: Voxels times the volume of one.
        centroid_mm: Mean position in the world (RAS+), None where the label is absent.
        box_start: First voxel of the bounding box, with `box_stop`, which lies behind the last.
        box_stop: None with `box_start` where the label is absent.
        touches_border: Whether it reaches the edge of the grid, so that a part may be missing.
    """

    label: str
    label_id: int
    voxels: int
    volume_ml: float
    centroid_mm: tuple[float, float, float] | None
    box_start: _Triple | None
    box_stop: _Triple | None
    touches_border: bool

    def to_json(self) -> dict[str, Any]:
        """The members of a JSON answer for one label."""
        return {
            "label": self.label,
            "label_id": self.label_id,
            "voxels": self.voxels,
            "volume_ml": self.volume_ml,
            "centroid_mm": None if self.centroid_mm is None else list(self.centroid_mm),
            "box_start": None if self.box_start is None else list(self.box_start),
            "box_stop": None if self.box_stop is None else list(self.box_stop),
            "touches_border": self.touches_border,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LabelMeasure:
        """Read it back; ServerFailedError where it is none."""
        try:
            centroid, start, stop = (
                content[name] for name in ("centroid_mm", "box_start", "box_stop")
            )
            return cls(
                label=str(content["label"]),
                label_id=int(content["label_id"]),
                voxels=int(content["voxels"]),
                volume_ml=float(content["volume_ml"]),
                centroid_mm=None if centroid is None else _triple([float(v) for v in centroid]),
                box_start=None if start is None else _triple([int(v) for v in start]),
                box_stop=None if stop is None else _triple([int(v) for v in stop]),
                touches_border=bool(content["touches_border"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ServerFailedError(
                "expected the measurements of a label from the server, got something else"
            ) from error


def measure(
    mask: npt.NDArray[np.uint8], geometry: Geometry, labels: Sequence[str]
) -> tuple[LabelMeasure, ...]:
    """Every label but the background (0), in label order, the absent ones included.

    Args:
        mask: Label ids (I, J, K).
        geometry: Its grid.
        labels: Names by id, the background's first.
    """
    counts = np.bincount(mask.ravel(order="K"), minlength=len(labels))
    return tuple(
        _measure_one(mask, geometry, label, label_id, int(counts[label_id]))
        for label_id, label in enumerate(labels)
        if label_id > 0
    )


def _measure_one(
    mask: npt.NDArray[np.uint8], geometry: Geometry, label: str, label_id: int, voxels: int
) -> LabelMeasure:
    volume_ml = voxels * geometry.voxel_volume_ml
    if voxels == 0:
        return LabelMeasure(label, label_id, 0, 0.0, None, None, None, touches_border=False)
    is_label = mask == label_id
    # Counts along each axis hold all that is needed: the box and the mean index.
    along = [
        np.count_nonzero(is_label, axis=tuple({0, 1, 2} - {axis})).astype(np.int64)
        for axis in range(3)
    ]
    found = [np.flatnonzero(count) for count in along]
    start = [int(indices[0]) for indices in found]
    stop = [int(indices[-1]) + 1 for indices in found]
    mean_index = [float(count @ np.arange(count.size)) / voxels for count in along]
    return LabelMeasure(
        label,
        label_id,
        voxels,
        volume_ml,
        centroid_mm=_triple([float(v) for v in geometry.to_world(mean_index)]),
        box_start=_triple(start),
        box_stop=_triple(stop),
        touches_border=min(start) == 0
        or any(end == size for end, size in zip(stop, mask.shape, strict=True)),
    )


def _triple(values: Sequence[_T]) -> tuple[_T, _T, _T]:
    i, j, k = values
    return i, j, k
