"""What a classifier's scores say: logits, or probabilities where a softmax ends the network."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from medserve.errors import ServerFailedError
from medserve.inference.engines import Outputs
from medserve.spec import ModelSpec
from medserve.spec.volumes import ScoreKind
from medserve.tasks.classification import Classification

__all__ = ["as_logits", "classified", "probabilities"]

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


def classified(outputs: Outputs, spec: ModelSpec) -> Classification:
    """Return what the outputs for one image say: logits (K,) and, where it is told, novelty ().

    Raises:
        ServerFailedError: a number is not finite.
    """
    found = probabilities(outputs["logits"])
    novelty = float(outputs["novelty"]) if spec.classifier.novelty else None
    if not (np.isfinite(found).all() and np.isfinite(novelty or 0.0)):
        raise ServerFailedError("the network gave a number that is not finite for this image")
    return Classification(
        labels=spec.labels,
        probabilities=tuple(found.tolist()),
        review=bool(found.max() < spec.classifier.review_below),
        novelty=novelty,
    )
