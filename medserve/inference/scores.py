"""What a classifier's scores say: logits, or probabilities where a softmax ends the network."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from medserve.spec.volumes import ScoreKind

__all__ = ["as_logits", "probabilities"]

_LEAST = 1e-30  # of a probability, so that its logarithm is finite


def as_logits(scores: npt.NDArray[Any], kind: ScoreKind) -> npt.NDArray[Any]:
    """Return logits (..., K): the scores, or the logarithms of those that are probabilities."""
    if kind is ScoreKind.LOGITS:
        return scores
    return np.log(np.maximum(scores.astype(np.float64), _LEAST))


def probabilities(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the softmax of logits (..., K), along the last axis."""
    exact = logits.astype(np.float64)
    exponentials = np.exp(exact - exact.max(axis=-1, keepdims=True))
    shares: npt.NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return shares
