"""Tell what a model's description says about the errors of its masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import structs

from medserve.results.seen import told_apart
from medserve.spec.quality import DiceSpec, QualitySpec
from medserve.tasks.result import Doubt, DoubtReason
from medserve.tasks.volumes import LabelMeasure

__all__ = ["doubts_about_dice", "with_quality"]


def doubts_about_dice(dice: DiceSpec, predicted: Mapping[str, float]) -> tuple[Doubt, ...]:
    """Return which labels are predicted to agree too little with a reference."""
    doubts = []
    for label, value in predicted.items():
        if value < dice.review_below:
            found, limit = told_apart(value, dice.review_below, 2)
            told = (
                f"{label}: predicted Dice {found}; below {limit} are "
                f"{100 * dice.review_share:.0f} % of cases that training did not see"
            )
            doubts.append(Doubt(DoubtReason.PREDICTED_DICE, told))
    return tuple(doubts)


def with_quality(
    measures: Sequence[LabelMeasure], quality: QualitySpec, predicted: Mapping[str, float]
) -> tuple[LabelMeasure, ...]:
    """Return the measurements with what is known about their errors.

    Args:
        measures: Of the labels of one mask.
        quality: Of the model.
        predicted: Predicted Dice of the labels that were found.
    """
    return tuple(
        structs.replace(
            each,
            predicted_dice=predicted.get(each.label),
            volume_interval_ml=_interval(each, quality),
        )
        for each in measures
    )


def _interval(measure: LabelMeasure, quality: QualitySpec) -> tuple[float, float] | None:
    ratio = quality.volume_ratio.get(measure.label)
    if ratio is None or not measure.voxels:
        return None
    return measure.volume_ml * ratio[0], measure.volume_ml * ratio[1]
