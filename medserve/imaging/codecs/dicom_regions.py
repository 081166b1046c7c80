"""How large a pixel of an ultrasound image is: by its calibrated regions (PS3.3 C.8.5.5).

An ultrasound frame holds several regions beside each other: the scan, a Doppler curve, a colour
bar. Each states its own deltas, which hold for its own pixels alone. Only those that show tissue in
two dimensions and centimetres count; where two of them disagree, no spacing is better than a wrong
one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medserve.errors import InvalidImageError
from medserve.imaging.image import true_aspect

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = [
    "ELEMENTS",
    "calibrated_boxes",
    "image_aspect",
    "pixel_aspect",
    "pixel_spacing_mm",
    "step_mm",
]

_TWO_DIMENSIONAL, _TISSUE, _CENTIMETRES = 1, 1, 3  # PS3.3 C.8.5.5.1.1, .2 and .15
_COLOUR_FLOW = 2  # drawn over tissue, on the same pixels
_EDGES = ("MinX0", "MinY0", "MaxX1", "MaxY1")
_TOLERANCE = 1e-3  # relative: headers round
_EXTENT_MM = (0.5, 2000.0)  # of an ultrasound image: from a coronary artery to a whole back
_MOST_OBLONG = 8.0  # pixels of a frame or a slice
# Which lengths stand in for each other where only their ratio is asked for (PS3.3 C.7.6.3.1.7).
_RATIOS = ("ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
ELEMENTS = (
    *("Modality", "SequenceOfUltrasoundRegions", "PixelSpacing", "SpacingBetweenSlices"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", *_RATIOS),
)


def pixel_spacing_mm(dataset: Dataset) -> tuple[float, float] | None:
    """Distance between rows and between columns; None where the header does not say it.

    Calibrated regions come first; PixelSpacing is read where there are none. A region that
    reaches beyond the image was written for another size, before somebody shrank or cut it.
    """
    if regions := _regions(dataset):
        if any(_is_beyond(each, dataset) for each in regions):
            return None
        found = [_deltas(each) for each in regions]
        first = found[0]
        if first is None or any(each is None or not _alike(first, each) for each in found):
            return None
        extents = (int(dataset.Rows) * first[0], int(dataset.Columns) * first[1])
        if not _EXTENT_MM[0] <= min(extents) <= max(extents) <= _EXTENT_MM[1]:
            return None  # deltas in another unit than the header says
        return first
    return _pair(_measures(dataset).get("PixelSpacing"))


def calibrated_boxes(dataset: Dataset) -> tuple[tuple[int, int, int, int], ...]:
    """Top, left, bottom, right of the regions whose deltas count, ends excluded (C.8.5.5.1.5).

    Empty, which means everywhere, where no region counts or one does not say where it lies.
    """
    boxes = []
    for region in _regions(dataset):
        left, top, right, bottom = (region.get(f"RegionLocation{edge}") for edge in _EDGES)
        if left is None or top is None or right is None or bottom is None:
            return ()
        boxes.append((int(top), int(left), int(bottom) + 1, int(right) + 1))
    return tuple(boxes)


def pixel_aspect(dataset: Dataset) -> float | None:
    """Height of a pixel over its width where no length in the patient says it; None without one.

    Distances on a detector or a scanned film are none in the patient, but have their ratio.
    """
    pairs = (_pair(dataset.get(name)) for name in _RATIOS)
    return next((rows / columns for rows, columns in filter(None, pairs)), None)


def image_aspect(dataset: Dataset) -> float:
    """Height of a pixel over its width; 1 where it is square, or nobody says it readably.

    Raises:
        InvalidImageError: an aspect that no device has.
    """
    try:
        spacing = pixel_spacing_mm(dataset)
        aspect = true_aspect(spacing[0] / spacing[1] if spacing else pixel_aspect(dataset))
    except (TypeError, ValueError):
        return 1.0
    if not 1 / _MOST_OBLONG <= aspect <= _MOST_OBLONG:
        raise InvalidImageError(
            f"expected pixels at most {_MOST_OBLONG:g} times as high as wide, or as wide as high, "
            "got others; correct the pixel spacing in the header"
        )
    return aspect


def step_mm(dataset: Dataset) -> float | None:
    """Distance from one frame to the next; None where they are moments, not places."""
    return _length(_measures(dataset).get("SpacingBetweenSlices"))


def _regions(dataset: Dataset) -> list[Dataset]:
    return [each for each in dataset.get("SequenceOfUltrasoundRegions") or () if _counts(each)]


def _is_beyond(region: Dataset, image: Dataset) -> bool:
    """Tell whether a region ends outside of the image; some count its end one too far."""
    right, bottom = region.get("RegionLocationMaxX1"), region.get("RegionLocationMaxY1")
    return int(right or 0) > int(image.Columns) or int(bottom or 0) > int(image.Rows)


def _counts(region: Dataset) -> bool:
    return (
        region.get("RegionSpatialFormat") == _TWO_DIMENSIONAL
        and region.get("RegionDataType") in (_TISSUE, _COLOUR_FLOW)
        and region.get("PhysicalUnitsXDirection") == _CENTIMETRES
        and region.get("PhysicalUnitsYDirection") == _CENTIMETRES
    )


def _deltas(region: Dataset) -> tuple[float, float] | None:
    """PhysicalDelta is signed: it says the direction, too."""
    columns = _length(region.get("PhysicalDeltaX"), 10.0)
    rows = _length(region.get("PhysicalDeltaY"), 10.0)
    return None if rows is None or columns is None else (rows, columns)


def _alike(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return all(math.isclose(a, b, rel_tol=_TOLERANCE) for a, b in zip(one, other, strict=True))


def _measures(dataset: Dataset) -> Dataset:
    """Where distances stand: the header, or an enhanced object's functional groups.

    Where frames state different ones, none holds for all of them.
    """
    groups: Sequence[Dataset] = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    own = [each.PixelMeasuresSequence[0] for each in groups if each.get("PixelMeasuresSequence")]
    if own:
        are_alike = len(own) == len(groups) and all(each == own[0] for each in own)
        chosen: Dataset = own[0] if are_alike else groups[0]  # which has no lengths of its own
        return chosen
    for group in dataset.get("SharedFunctionalGroupsSequence") or ():
        for found in group.get("PixelMeasuresSequence") or ():
            measures: Dataset = found
            return measures
    return dataset


def _pair(value: Any) -> tuple[float, float] | None:
    if value is None or isinstance(value, str | int | float) or len(value) != 2:
        return None
    rows, columns = _length(value[0]), _length(value[1])
    return None if rows is None or columns is None else (rows, columns)


def _length(value: Any, scale: float = 1.0) -> float | None:
    """A length in millimetres; None for none, and for what can be no length."""
    if value is None or value == "":
        return None
    length = abs(float(value)) * scale
    return length if 0.0 < length < math.inf else None
