"""How large each label of a mask is and where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from medserve.imaging.geometry import Geometry
from medserve.tasks.volumes import LabelMeasure

__all__ = ["measure"]

_T = TypeVar("_T")


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
