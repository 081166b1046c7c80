"""Tidy a mask: keep the largest piece of a label, drop specks, fill holes; the rest stays."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medserve.imaging.geometry import Geometry

__all__ = ["Connectivity", "drop_specks", "fill_holes", "largest_component", "largest_union"]

_Mask = npt.NDArray[np.uint8]
_Found = npt.NDArray[np.bool_]


class Connectivity(enum.IntEnum):
    """Which voxels count as neighbours."""

    FACES = 1  # 6
    EDGES = 2  # 18
    CORNERS = 3  # 26


def largest_component(
    mask: _Mask,
    labels: Iterable[int] | None = None,
    connectivity: Connectivity = Connectivity.CORNERS,
) -> _Mask:
    """Of each label only its largest connected piece; the others become background.

    Args:
        mask: Label ids (I, J, K).
        labels: Which to treat; all but the background by default.
        connectivity: Which voxels belong together. Of two equal pieces the first in C order stays.
    """

    def keep(found: _Found) -> _Found:
        pieces, count, sizes = _pieces(found, connectivity)
        return found if count <= 1 else pieces == int(sizes[1:].argmax()) + 1

    return _for_each(mask, labels, keep)


def largest_union(
    mask: _Mask,
    groups: Iterable[Iterable[int]],
    connectivity: Connectivity = Connectivity.CORNERS,
) -> _Mask:
    """Of the union of the labels of each group only its largest piece, one group after the other.

    Args:
        mask: Label ids (I, J, K).
        groups: Label ids of each group; what a group leaves is what the next one sees.
        connectivity: Which voxels belong together. Of two equal pieces the first in C order stays.
    """
    kept = mask.copy()
    for labels in groups:
        found = np.isin(kept, list(labels))
        pieces, count, sizes = _pieces(found, connectivity)
        if count > 1:
            kept[found & (pieces != int(sizes[1:].argmax()) + 1)] = 0
    return kept


def drop_specks(
    mask: _Mask,
    geometry: Geometry,
    smallest_ml: float,
    labels: Iterable[int] | None = None,
    connectivity: Connectivity = Connectivity.CORNERS,
) -> _Mask:
    """Pieces of a label that are smaller than `smallest_ml` become background."""
    fewest = smallest_ml / geometry.voxel_volume_ml

    def keep(found: _Found) -> _Found:
        pieces, _, sizes = _pieces(found, connectivity)
        large = sizes >= fewest
        large[0] = False
        return np.asarray(large[pieces])

    return _for_each(mask, labels, keep)


def fill_holes(mask: _Mask, labels: Iterable[int] | None = None) -> _Mask:
    """Background that one label encloses on all sides becomes that label.

    Another label inside it stays, and so does a hole that reaches the edge of the grid.
    """
    filled = mask.copy()
    for label, box in _boxes(mask, labels):
        part = filled[box]
        solid = ndimage.binary_fill_holes(part == label)
        part[solid & (part == 0)] = label
    return filled


def _for_each(mask: _Mask, labels: Iterable[int] | None, keep: Callable[[_Found], _Found]) -> _Mask:
    """Let `keep` decide, label by label, which voxels stay."""
    kept = mask.copy()
    for label, box in _boxes(mask, labels):
        part = kept[box]
        found = part == label
        part[found & ~keep(found)] = 0
    return kept


def _boxes(
    mask: _Mask, labels: Iterable[int] | None
) -> list[tuple[int, tuple[slice, slice, slice]]]:
    """Each label that occurs with its bounding box: work there costs less than on the volume."""
    wanted = None if labels is None else set(labels)
    return [
        (label, box)
        for label, box in enumerate(ndimage.find_objects(mask), start=1)
        if box is not None and (wanted is None or label in wanted)
    ]


def _pieces(
    found: _Found, connectivity: Connectivity
) -> tuple[npt.NDArray[np.int32], int, npt.NDArray[np.intp]]:
    structure = ndimage.generate_binary_structure(3, int(connectivity))
    pieces, count = ndimage.label(found, structure)
    return pieces, int(count), np.bincount(pieces.ravel())
