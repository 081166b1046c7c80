"""Dice and intersection over union of two masks, with one rule for empty ones.

The rule for a case: nothing found where nothing is counts 1; something found where nothing is, and
nothing found where something is, count 0. It is the same for volumes, for frames and while a
training is validated. Which cases a mean is taken over has a name, `EmptyReference`.
"""

from __future__ import annotations

import enum

__all__ = ["EmptyReference", "dice", "iou", "is_averaged"]


class EmptyReference(enum.StrEnum):
    """How a mean treats cases whose reference does not show the structure."""

    COUNTED = "counted"  # by the rule above: volumes, and the validation of every training
    LEFT_OUT = "left_out"  # their false positives are stated apart: the figures of frames


def dice(common: int, found: int, reference: int) -> float:
    """Return twice the common elements over those of both masks; 1 where both are empty."""
    both = found + reference
    return 2.0 * common / both if both else 1.0


def iou(common: int, found: int, reference: int) -> float:
    """Return the common elements over those of either mask; 1 where both are empty."""
    either = found + reference - common
    return common / either if either else 1.0


def is_averaged(reference: int, rule: EmptyReference) -> bool:
    """Tell whether a case with so many elements in its reference takes part in a mean."""
    return reference > 0 or rule is EmptyReference.COUNTED
