"""One temperature that makes probabilities keep what they promise."""

from __future__ import annotations

import math

import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

__all__ = ["fit_temperature"]

_BOUNDS = (math.log(0.05), math.log(20.0))


def fit_temperature(logits: Tensor, label_ids: Tensor) -> float:
    """The divisor of the logits with the least cross-entropy (arXiv:1706.04599, section 4.2).

    N images without an error do not prove that there is none, and the plain fit would promise
    certainty. As Platt did (Advances in Large Margin Classifiers, 1999, section 2.2), the target
    leaves a probability of 1 / (N + 2) to the other labels.

    Args:
        logits: float (N, K) on images that were not trained on.
        label_ids: int64 (N,).
    """
    exact = logits.double()
    count, classes = exact.shape
    smoothing = classes / (classes - 1) / (count + 2)  # spread over all labels, the true one too

    def loss(log_temperature: float) -> float:
        scaled = exact / math.exp(log_temperature)
        return float(F.cross_entropy(scaled, label_ids, label_smoothing=smoothing))

    return math.exp(minimize_scalar(loss, bounds=_BOUNDS, method="bounded").x)
