"""Agreement of predicted with measured numbers, against scipy and figures found by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from training.regression.agreement import agreement_of


def test_the_figures_are_those_found_by_hand() -> None:
    found = agreement_of(np.array([1.0, 4.0, 4.0]), np.array([2.0, 2.0, 5.0]), ["a", "b", "c"])

    assert found.n == 3  # differences -1, 2, -1
    assert found.mean_absolute_error == pytest.approx(4 / 3)
    assert found.bias == 0
    assert found.limits_of_agreement == pytest.approx((-1.96 * 3**0.5, 1.96 * 3**0.5))
    assert found.r_squared == pytest.approx(1 - 6 / 6)  # residuals 1 + 4 + 1, total 1 + 1 + 4


def test_correlation_and_interval_are_scipys() -> None:
    draws = np.random.default_rng(3)
    measured = draws.normal(120, 40, 200)
    predicted = 0.8 * measured + draws.normal(20, 10, 200)

    found = agreement_of(predicted, measured, [str(place) for place in range(200)])

    errors = np.abs(predicted - measured)
    expected = stats.bootstrap((errors,), np.mean, method="percentile", rng=1).confidence_interval
    assert found.pearson == pytest.approx(stats.pearsonr(predicted, measured).statistic)
    assert found.mean_absolute_error_interval_95 == pytest.approx(tuple(expected), rel=0.03)
    assert found.r_squared < found.pearson**2  # which a fitted line alone would reach


def test_images_of_one_subject_are_drawn_together() -> None:
    predicted, measured = np.array([1.0, 2.0, 3.0, 9.0]), np.array([0.0, 0.0, 0.0, 0.0])

    found = agreement_of(predicted, measured, ["one"] * 4)

    assert found.mean_absolute_error_interval_95 == (3.75, 3.75)


def test_an_image_without_a_measured_value_is_left_out() -> None:
    found = agreement_of(np.array([1.0, 7.0, 2.0]), np.array([0.0, math.nan, 4.0]), ["a", "b", "c"])

    assert (found.n, found.mean_absolute_error, found.bias) == (2, 1.5, -0.5)


def test_figures_that_do_not_exist_are_not_written() -> None:
    content = agreement_of(np.array([3.0]), np.array([1.0]), ["a"]).to_json()

    assert content == {
        "n": 1,
        "mean_absolute_error": 2.0,
        "mean_absolute_error_interval_95": (2.0, 2.0),
        "bias": 2.0,
    }


def test_no_measured_value_and_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one image with a measured value"):
        agreement_of(np.array([1.0]), np.array([math.nan]), ["a"])
    with pytest.raises(ValueError, match="got 2, 1 and 1"):
        agreement_of(np.array([1.0, 2.0]), np.array([1.0]), ["a"])
