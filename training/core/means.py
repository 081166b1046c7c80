"""Means of scores over cases, and their intervals by bootstrap over subjects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

__all__ = ["auroc", "auroc_interval", "bootstrap_interval", "known_mean", "rounded"]

_RESAMPLES = 2000
_DRAWS = 1000  # of an AUROC, which costs more than a mean


def known_mean(values: npt.NDArray[np.float64]) -> float:
    """Return the mean of the values that are numbers; NaN where none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def bootstrap_interval(
    values: npt.NDArray[np.float64], subjects: Sequence[str], seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of the mean, drawing subjects with all their cases (Efron, 1979).

    Cases without a value (NaN) are left out; both bounds are NaN where none has one.
    """
    known = ~np.isnan(values)
    if not known.any():
        return math.nan, math.nan
    names, of = np.unique(np.array(subjects)[known], return_inverse=True)
    totals = np.bincount(of, weights=values[known])
    counts = np.bincount(of)
    draws = np.random.default_rng(seed).integers(0, len(names), (_RESAMPLES, len(names)))
    means = totals[draws].sum(axis=1) / counts[draws].sum(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def auroc(is_positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> float:
    """Return how often a positive case has the higher score than another one (Mann-Whitney)."""
    ranks, positives = rankdata(scores), int(is_positive.sum())
    above = ranks[is_positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(is_positive) - positives)))


def auroc_interval(
    is_positive: npt.NDArray[np.bool_],
    scores: npt.NDArray[np.float64],
    subjects: npt.NDArray[Any],
) -> tuple[float, float]:
    """Return the 95 % interval of an AUROC, drawing subjects with all their cases."""
    draws = np.random.default_rng(0)
    order = np.argsort(subjects, kind="stable")
    places = np.split(order, np.unique(subjects[order], return_index=True)[1][1:])
    found = []
    for _ in range(_DRAWS):
        drawn = np.concatenate([places[n] for n in draws.integers(len(places), size=len(places))])
        if 0 < is_positive[drawn].sum() < len(drawn):
            found.append(auroc(is_positive[drawn], scores[drawn]))
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


def rounded(value: float | None) -> float | None:
    """Return the value as reports state it: five digits, and None for what is no number."""
    return None if value is None or math.isnan(value) else round(value, 5)
