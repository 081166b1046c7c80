"""What a classifier's scores say: logits, or probabilities where the network ends with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medserve.errors import ServerFailedError
from medserve.inference.engines import Outputs
from medserve.spec import ModelSpec, OutputSpec
from medserve.spec.volumes import ScoreKind
from medserve.tasks.classification import Classification

__all__ = ["are_present", "as_logits", "classified", "probabilities", "threshold_logits"]

_LEAST = 1e-30  # of a probability, so that its logarithm is finite

_Floats = npt.NDArray[np.float64]


def as_logits(scores: npt.NDArray[Any], output: OutputSpec) -> npt.NDArray[Any]:
    """Return logits (..., K): the scores, or those that give the same probabilities."""
    if output.scores is ScoreKind.LOGITS:
        return scores
    exact = scores.astype(np.float64)
    logits: _Floats = np.log(np.maximum(exact, _LEAST))
    return logits - np.log(np.maximum(1 - exact, _LEAST)) if output.independent else logits


def probabilities(logits: npt.NDArray[Any], output: OutputSpec) -> _Floats:
    """Return softmax or, of independent classes, sigmoid of logits (..., K), on the last axis."""
    exact = logits.astype(np.float64)
    shares: _Floats
    if output.independent:
        shares = np.exp(-np.logaddexp(0.0, -exact))
    else:
        exponentials = np.exp(exact - exact.max(axis=-1, keepdims=True))
        shares = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return shares


def are_present(shares: _Floats, output: OutputSpec) -> npt.NDArray[np.bool_]:
    """Return which labels are present by probabilities (..., K) of independent classes."""
    return np.asarray(shares >= np.array(output.thresholds(shares.shape[-1])))


def threshold_logits(spec: ModelSpec) -> _Floats | None:
    """Return the logit from which each label is present (K,); None of exclusive classes."""
    if not spec.has_independent_labels:
        return None
    shares = np.array(spec.classifier.thresholds(len(spec.labels)))
    return np.asarray(np.log(shares / (1 - shares)))


def classified(outputs: Outputs, spec: ModelSpec) -> Classification:
    """Return what the outputs for one image say: logits (K,) and, where it is told, novelty ().

    Raises:
        ServerFailedError: a number is not finite.
    """
    output = spec.classifier
    found = probabilities(outputs["logits"], output)
    novelty = float(outputs["novelty"]) if output.novelty else None
    if not (np.isfinite(found).all() and np.isfinite(novelty or 0.0)):
        raise ServerFailedError("the network gave a number that is not finite for this image")
    present = None
    if output.independent:
        is_there = are_present(found, output)
        present = tuple(label for label, there in zip(spec.labels, is_there, strict=True) if there)
    told = Classification(spec.labels, tuple(found.tolist()), False, novelty, present=present)
    return replace(told, review=told.is_unsure(output.review_below))
