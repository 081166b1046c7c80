"""McNemar's test against counts that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from medserve.errors import ConfigError
from training.classification.metrics import mcnemar


def answers(*runs: tuple[int, bool, bool]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Rightness of two classifiers, from (images, first, second)."""
    first = np.concatenate([np.full(count, one) for count, one, _ in runs])
    second = np.concatenate([np.full(count, two) for count, _, two in runs])
    return first, second


def test_only_images_on_which_they_differ_count() -> None:
    found = mcnemar(
        *answers((90, True, True), (5, False, False), (1, True, False), (4, False, True))
    )
    assert (found.only_first, found.only_second) == (1, 4)
    assert found.p_value == pytest.approx(2 * (1 + 5) / 2**5)  # 0 or 1 of 5 tosses, both sides


def test_a_one_sided_difference_is_hardly_chance() -> None:
    found = mcnemar(*answers((100, True, True), (10, True, False)))
    assert found.p_value == pytest.approx(2 / 2**10)


def test_classifiers_without_a_difference_are_equal() -> None:
    assert mcnemar(*answers((7, True, True), (2, False, False))).p_value == 1.0


def test_exchanging_the_two_keeps_the_p_value() -> None:
    first, second = answers((3, True, False), (9, False, True), (20, True, True))
    assert mcnemar(first, second).p_value == mcnemar(second, first).p_value


def test_different_images_cannot_be_compared() -> None:
    with pytest.raises(ConfigError, match="got 3 and 4"):
        mcnemar(np.ones(3, dtype=bool), np.ones(4, dtype=bool))
