"""Means of scores over cases, and their intervals by bootstrap over subjects."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["bootstrap_interval", "known_mean", "rounded"]

_RESAMPLES = 2000


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


def rounded(value: float | None) -> float | None:
    """Return the value as reports state it: five digits, and None for what is no number."""
    return None if value is None or math.isnan(value) else round(value, 5)
