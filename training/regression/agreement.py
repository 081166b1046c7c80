"""How well predicted numbers agree with measured ones (Bland and Altman, Lancet 1986)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.core.means import bootstrap_interval

__all__ = ["Agreement", "agreement_of"]

_OF_95 = 1.96  # standard deviations on both sides of the mean that hold 95 % of a normal law
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Figures of one value over n images, in the value's unit where they have one.

    Attributes:
        n: Images with a measured value.
        mean_absolute_error: Mean of |predicted - measured|.
        mean_absolute_error_interval_95: Seeded bootstrap over subjects.
        bias: Mean of predicted - measured; above 0 the network tells too much.
        limits_of_agreement: Bias -+ 1.96 standard deviations (n - 1) of the differences; NaN for
            a single image.
        pearson: Correlation of predicted and measured; NaN where either is the same everywhere.
        r_squared: Share of the measured values' variance that is explained, 1 - residual / total;
            below 0 where their mean would be the better guess, NaN where they are all the same.
    """

    n: int
    mean_absolute_error: float
    mean_absolute_error_interval_95: tuple[float, float]
    bias: float
    limits_of_agreement: tuple[float, float]
    pearson: float
    r_squared: float

    def to_json(self) -> dict[str, Any]:
        """Members for `metrics.json`, without those that are no number."""
        return {name: each for name, each in asdict(self).items() if not np.isnan(each).any()}


def agreement_of(predicted: _Floats, measured: _Floats, subjects: Sequence[str]) -> Agreement:
    """Compare predicted with measured values (N,); those that were not measured (NaN) are left out.

    Raises:
        ValueError: no image has a measured value, or the arguments differ in length.
    """
    if not len(predicted) == len(measured) == len(subjects):
        raise ValueError(
            "expected a predicted value, a measured one and a subject for each image, got "
            f"{len(predicted)}, {len(measured)} and {len(subjects)}"
        )
    is_known = ~np.isnan(measured)
    if not is_known.any():
        raise ValueError("expected at least one image with a measured value, got none")
    told, truth = predicted[is_known], measured[is_known]
    differences = told - truth
    errors, owners = np.abs(differences), [str(each) for each in np.array(subjects)[is_known]]
    bias = float(differences.mean())
    half_width = _OF_95 * float(differences.std(ddof=1)) if len(told) > 1 else math.nan
    return Agreement(
        n=len(told),
        mean_absolute_error=float(errors.mean()),
        mean_absolute_error_interval_95=bootstrap_interval(errors, owners),
        bias=bias,
        limits_of_agreement=(bias - half_width, bias + half_width),
        pearson=_pearson(told, truth),
        r_squared=_r_squared(differences, truth),
    )


def _pearson(told: _Floats, truth: _Floats) -> float:
    if np.ptp(told) == 0 or np.ptp(truth) == 0:
        return math.nan
    return float(np.corrcoef(told, truth)[0, 1])


def _r_squared(differences: _Floats, truth: _Floats) -> float:
    if np.ptp(truth) == 0:
        return math.nan
    total = np.square(truth - truth.mean()).sum()
    return float(1 - np.square(differences).sum() / total)
