"""How well masks agree with their references, frame by frame and over all of them.

Dice and IoU follow `training.core.overlap`. Frames whose reference is empty are left out of their
means (`EmptyReference.LEFT_OUT`) unless a caller says otherwise; they count for the false-positive
rate, the share of them in which anything was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.core import overlap
from training.core.means import bootstrap_interval, rounded
from training.core.overlap import EmptyReference, is_averaged

__all__ = ["FrameScore", "Summary", "compare_frame", "summarise"]

_Mask = npt.NDArray[np.uint8] | npt.NDArray[np.bool_]


@dataclass(frozen=True)
class FrameScore:
    """One frame's mask against its reference, on the frame's own pixels.

    Attributes:
        name: Of the frame.
        patient: Whose it is.
        found: Pixels of the mask.
        reference: Pixels of the reference.
        common: Pixels of both.
    """

    name: str
    patient: str
    found: int
    reference: int
    common: int

    @property
    def dice(self) -> float:
        """Twice the common part over both; 1 where both are empty."""
        return overlap.dice(self.common, self.found, self.reference)

    @property
    def iou(self) -> float:
        """Intersection over union; 1 where both are empty."""
        return overlap.iou(self.common, self.found, self.reference)

    def to_json(self) -> dict[str, Any]:
        """A row of `metrics.json`."""
        return {
            "name": self.name,
            "patient": self.patient,
            "dice": round(self.dice, 5) if self.reference else None,
            "iou": round(self.iou, 5) if self.reference else None,
            "found_pixels": self.found,
            "reference_pixels": self.reference,
        }


@dataclass(frozen=True)
class Summary:
    """Means over frames, with 95 % intervals by bootstrap over patients.

    Attributes:
        n: Frames that the means are taken over.
        n_empty: Frames whose reference is empty.
        empty_references: Whether these are among the `n`.
        dice: Mean over the `n`, None where there is none.
        iou: Likewise.
        median_dice: Likewise.
        missed: Share of the `n` whose IoU is 0.
        false_positive_rate: Share of the `n_empty` in which anything was found.
        intervals: Of `dice`, `iou` and `false_positive_rate`.
    """

    n: int
    n_empty: int
    empty_references: EmptyReference
    dice: float | None
    iou: float | None
    median_dice: float | None
    missed: float | None
    false_positive_rate: float | None
    intervals: dict[str, tuple[float, float] | None]

    def to_json(self) -> dict[str, Any]:
        """What stands in `metrics.json`."""
        values = {
            name: rounded(getattr(self, name))
            for name in ("dice", "iou", "median_dice", "missed", "false_positive_rate")
        }
        intervals = {
            name: None if pair is None else [rounded(bound) for bound in pair]
            for name, pair in self.intervals.items()
        }
        return {
            "n": self.n,
            "n_empty": self.n_empty,
            "empty_references": self.empty_references.value,
            **values,
            "intervals": intervals,
        }


def compare_frame(name: str, patient: str, found: _Mask, reference: _Mask) -> FrameScore:
    """Count the pixels of two masks (H, W) of 0 and 1."""
    return FrameScore(
        name,
        patient,
        int(np.count_nonzero(found)),
        int(np.count_nonzero(reference)),
        int(np.count_nonzero(found & reference)),
    )


def summarise(
    scores: Sequence[FrameScore],
    seed: int = 0,
    empty_references: EmptyReference = EmptyReference.LEFT_OUT,
) -> Summary:
    """Means and intervals of some frames."""
    shown = [each for each in scores if is_averaged(each.reference, empty_references)]
    empty = [each for each in scores if not each.reference]
    dice, iou = _column(shown, "dice"), _column(shown, "iou")
    alarms = np.array([each.found > 0 for each in empty], dtype=np.float64)
    missed = np.array([each.iou == 0.0 for each in shown], dtype=np.float64)
    return Summary(
        len(shown),
        len(empty),
        empty_references,
        _mean(dice),
        _mean(iou),
        float(np.median(dice)) if shown else None,
        _mean(missed),
        _mean(alarms),
        {
            "dice": _interval(dice, shown, seed),
            "iou": _interval(iou, shown, seed),
            "false_positive_rate": _interval(alarms, empty, seed),
        },
    )


def _column(scores: Sequence[FrameScore], measure: str) -> npt.NDArray[np.float64]:
    return np.array([getattr(each, measure) for each in scores], dtype=np.float64)


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    return float(values.mean()) if values.size else None


def _interval(
    values: npt.NDArray[np.float64], scores: Sequence[FrameScore], seed: int
) -> tuple[float, float] | None:
    if not scores:
        return None
    return bootstrap_interval(values, [each.patient for each in scores], seed)
