"""How well a mask agrees with a reference: per case and label, then over cases with an interval.

Rules, for each label but the background:

| | neither mask has the label | one of the two has it |
|---|---|---|
| Dice (`training.core.overlap`), surface Dice | 1 | 0 |
| HD95 | 0 mm | the diagonal of the grid, the worst that could be |
| volume error | 0 ml, 0 % | its volume; no percentage where the reference has none |

So every case counts, a missed label costs what it should, and means stay defined. Distances are in
millimetres between centres of surface voxels (those with a face outside the label; the grid's edge
counts as outside), spacing taken into account, shears of an affine not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medserve.imaging.geometry import Geometry
from training.core.means import bootstrap_interval, known_mean, rounded
from training.core.overlap import EmptyReference, dice

__all__ = [
    "HIGHER_IS_BETTER",
    "MEASURES",
    "TOLERANCE_MM",
    "LabelScore",
    "Summary",
    "compare_masks",
    "summarise",
]

_Mask = npt.NDArray[np.uint8]
_Found = npt.NDArray[np.bool_]

TOLERANCE_MM = 1.0  # of surface Dice: a voxel of the usual research scan
MEASURES = ("dice", "hd95_mm", "surface_dice", "volume_error_ml", "volume_error_percent")
HIGHER_IS_BETTER = frozenset({"dice", "surface_dice"})
_PERCENTILE = 95.0


@dataclass(frozen=True)
class LabelScore:
    """One label of one case.

    Attributes:
        case: Name of the case.
        subject: Whose case it is.
        label: Name of the label.
        dice: 2 |A and B| / (|A| + |B|).
        hd95_mm: The larger of both directions' 95th percentiles of surface distances.
        surface_dice: Share of both surfaces that lies within the tolerance of the other
            (Nikolov et al., arXiv:1809.04430; surface voxels counted alike).
        reference_ml: Volume in the reference.
        found_ml: Volume in the mask.
    """

    case: str
    subject: str
    label: str
    dice: float
    hd95_mm: float
    surface_dice: float
    reference_ml: float
    found_ml: float

    @property
    def volume_error_ml(self) -> float:
        """Found minus reference: positive where too much is found."""
        return self.found_ml - self.reference_ml

    @property
    def volume_error_percent(self) -> float:
        """Absolute error over the reference; NaN where only the mask has the label."""
        if self.volume_error_ml == 0.0:
            return 0.0
        if self.reference_ml == 0.0:
            return math.nan
        return 100.0 * abs(self.volume_error_ml) / self.reference_ml

    def value(self, measure: str) -> float:
        """One of `MEASURES`."""
        return float(getattr(self, measure))

    def to_json(self) -> dict[str, Any]:
        """A row of the results."""
        values = {name: round(self.value(name), 6) for name in MEASURES}
        return {
            "case": self.case,
            "label": self.label,
            **{name: None if math.isnan(value) else value for name, value in values.items()},
            "reference_ml": round(self.reference_ml, 6),
            "found_ml": round(self.found_ml, 6),
        }


@dataclass(frozen=True)
class Summary:
    """Mean over the cases, per label and over the labels.

    Attributes:
        labels: All but the background.
        n: Number of cases.
        means: measure -> label (or "mean") -> value.
        intervals: The same -> 95 % interval of the mean by bootstrap over subjects.
    """

    labels: tuple[str, ...]
    n: int
    means: Mapping[str, Mapping[str, float]]
    intervals: Mapping[str, Mapping[str, tuple[float, float]]]

    def to_json(self) -> dict[str, Any]:
        """`n`, the rule for empty references, each measure by label, and `intervals`."""
        return {
            "n": self.n,
            "empty_references": EmptyReference.COUNTED.value,
            **{
                name: {label: rounded(value) for label, value in each.items()}
                for name, each in self.means.items()
            },
            "intervals": {
                name: {label: [rounded(bound) for bound in pair] for label, pair in each.items()}
                for name, each in self.intervals.items()
            },
        }


def compare_masks(
    mask: _Mask,
    reference: _Mask,
    geometry: Geometry,
    labels: Sequence[str],
    case: tuple[str, str] = ("", ""),
) -> list[LabelScore]:
    """Scores of every label but the background, in label order.

    Args:
        mask: Label ids (I, J, K) that were found.
        reference: The true ones.
        geometry: The grid of both.
        labels: Names by id, the background's first.
        case: Name and subject.
    """
    if mask.shape != reference.shape:
        raise ValueError(f"expected masks of one shape, got {mask.shape} and {reference.shape}")
    return [
        _compare(mask == label_id, reference == label_id, geometry, label, case)
        for label_id, label in enumerate(labels)
        if label_id > 0
    ]


def _compare(
    found: _Found, wanted: _Found, geometry: Geometry, label: str, case: tuple[str, str]
) -> LabelScore:
    voxels, true_voxels = int(found.sum()), int(wanted.sum())
    spacing = geometry.spacing_mm
    common = int((found & wanted).sum())
    if voxels and true_voxels:
        hd95, surface_dice = _surface_scores(*_surface_distances(found, wanted, spacing))
    elif voxels or true_voxels:
        surface_dice = 0.0
        hd95 = math.hypot(*(n * mm for n, mm in zip(geometry.shape, spacing, strict=True)))
    else:
        surface_dice = 1.0
        hd95 = 0.0
    ml = geometry.voxel_volume_ml
    volumes_ml = (true_voxels * ml, voxels * ml)
    overlap = dice(common, voxels, true_voxels)
    return LabelScore(*case, label, overlap, hd95, surface_dice, *volumes_ml)


def _surface_distances(
    found: _Found, wanted: _Found, spacing_mm: Sequence[float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """From each surface voxel of one mask to the nearest one of the other, both ways."""
    # Around both masks only: a transform of the whole volume would cost more and say the same.
    box = ndimage.find_objects((found | wanted).astype(np.uint8))[0]
    surfaces = [each[box] & ~ndimage.binary_erosion(each[box]) for each in (found, wanted)]
    far = [ndimage.distance_transform_edt(~each, sampling=spacing_mm) for each in surfaces]
    return far[1][surfaces[0]], far[0][surfaces[1]]


def _surface_scores(
    there: npt.NDArray[np.float64], back: npt.NDArray[np.float64]
) -> tuple[float, float]:
    hd95 = max(float(np.percentile(each, _PERCENTILE)) for each in (there, back))
    within = sum(int((each <= TOLERANCE_MM).sum()) for each in (there, back))
    return hd95, within / (there.size + back.size)


def summarise(scores: Sequence[LabelScore], seed: int = 0) -> Summary:
    """Means and intervals of the scores of some cases, each with every label once."""
    labels = tuple(dict.fromkeys(each.label for each in scores))
    subjects = [each.subject for each in scores if each.label == labels[0]]
    means: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    for measure in MEASURES:
        columns = {
            label: np.array([each.value(measure) for each in scores if each.label == label])
            for label in labels
        }
        columns["mean"] = np.mean([columns[label] for label in labels], axis=0)
        means[measure] = {name: known_mean(column) for name, column in columns.items()}
        intervals[measure] = {
            name: bootstrap_interval(column, subjects, seed) for name, column in columns.items()
        }
    return Summary(labels, len(subjects), means, intervals)
