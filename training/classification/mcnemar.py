"""Do two classifiers differ, or is it chance? McNemar's test on the images that only one gets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from medserve.errors import ConfigError

__all__ = ["McNemar", "mcnemar"]


@dataclass(frozen=True)
class McNemar:
    """How often one classifier was right where the other was wrong.

    Attributes:
        only_first: Images that only the first classified rightly.
        only_second: Images that only the second classified rightly.
        p_value: Two-sided, exact: of a difference at least this large between equal classifiers.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(
    first_is_right: npt.NDArray[np.bool_], second_is_right: npt.NDArray[np.bool_]
) -> McNemar:
    """Compare two classifiers on the same images, bool (N,) each, in the same order.

    The exact binomial form (McNemar, Psychometrika 12, 1947): the usual chi-square of it needs
    more than two dozen images on which the two differ.

    Raises:
        ConfigError: not the same number of images.
    """
    if first_is_right.shape != second_is_right.shape:
        raise ConfigError(
            f"expected two classifiers on the same images, got {len(first_is_right)} "
            f"and {len(second_is_right)}"
        )
    only_first = int((first_is_right & ~second_is_right).sum())
    only_second = int((~first_is_right & second_is_right).sum())
    differing = only_first + only_second
    p_value = float(binomtest(only_first, differing).pvalue) if differing else 1.0
    return McNemar(only_first, only_second, p_value)
