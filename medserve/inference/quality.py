"""Predict from the scores of a mask how well the mask would agree with a reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medserve.spec.quality import DiceSpec

__all__ = ["MaskSums"]

_AT_ONCE = 1 << 16  # voxels whose probabilities exist at one time
_LEAST = 1e-3  # of a share, whose log-odds are taken


class MaskSums:
    """Sums over the voxels of one mask, which may come piece by piece.

    Args:
        labels: How many there are, the background among them.
        temperature: Divides the logits.
    """

    def __init__(self, labels: int, temperature: float = 1.0) -> None:
        self._temperature = np.float32(temperature)
        self._found = np.zeros(labels)  # voxels of the mask
        self._inside = np.zeros(labels)  # the label's probability, summed over the mask
        self._everywhere = np.zeros(labels)  # the same over all voxels

    def add(
        self,
        sums: npt.NDArray[np.float32],
        weights: npt.NDArray[np.float32] | None,
        mask: npt.NDArray[np.uint8],
    ) -> None:
        """Count further voxels.

        Args:
            sums: Logits (labels, I, ...) times their weights.
            weights: (I, ...); None where all are 1.
            mask: Label ids (I, ...), by which the voxels are counted.
        """
        step = max(1, _AT_ONCE // math.prod(mask.shape[1:]))
        for first in range(0, len(mask), step):
            piece = slice(first, first + step)
            divisor = self._temperature if weights is None else self._temperature * weights[piece]
            self._add(np.divide(sums[:, piece], divisor, dtype=np.float32), mask[piece])

    @property
    def promised(self) -> float:
        """Voxels that the probabilities of all labels but the background add up to."""
        return float(self._everywhere[1:].sum())

    def predicted_dice(self, dice: DiceSpec, labels: Sequence[str]) -> dict[str, float]:
        """Return the predicted Dice of each label that was found, but the background."""
        return {
            label: _predicted(dice, self.predictors(number))
            for number, label in enumerate(labels)
            if number > 0 and self._found[number]
        }

    def predictors(self, label: int) -> tuple[float, float]:
        """Return `overlap` and `size`, see `DiceSpec`, of a label that was found."""
        found = self._found[label]
        overlap = 2.0 * self._inside[label] / (found + self._everywhere[label])
        return _log_odds(overlap), math.log(found)

    def _add(self, logits: npt.NDArray[np.float32], mask: npt.NDArray[np.uint8]) -> None:
        logits -= logits.max(axis=0)
        probabilities = np.exp(logits, out=logits)
        probabilities /= probabilities.sum(axis=0)
        for label in range(1, len(self._found)):
            inside = probabilities[label][mask == label]
            self._found[label] += inside.size
            self._inside[label] += inside.sum(dtype=np.float64)
            self._everywhere[label] += probabilities[label].sum(dtype=np.float64)


def _predicted(dice: DiceSpec, values: tuple[float, float]) -> float:
    overlap, size = values
    return 1.0 / (1.0 + math.exp(-(dice.intercept + dice.overlap * overlap + dice.size * size)))


def _log_odds(share: float) -> float:
    kept = min(max(share, _LEAST), 1.0 - _LEAST)
    return math.log(kept / (1.0 - kept))
