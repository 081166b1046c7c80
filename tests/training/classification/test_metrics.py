"""Figures against values worked out by hand or by another library."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score

from training.classification.metrics import measure, reliability

LABELS = ("cat", "dog", "cow")


def certain(answers: list[int], probability: float = 0.9) -> npt.NDArray[np.float64]:
    """Probabilities (N, 3) with `probability` for each answer and the rest shared."""
    rest = (1.0 - probability) / 2
    probabilities = np.full((len(answers), 3), rest)
    probabilities[np.arange(len(answers)), answers] = probability
    return probabilities


def truth(*label_ids: int) -> npt.NDArray[np.int64]:
    return np.array(label_ids, dtype=np.int64)


def test_confusion_has_the_truth_in_rows() -> None:
    measured = measure(certain([0, 1, 1, 2]), truth(0, 0, 1, 2), LABELS)
    assert measured.confusion == ((1, 1, 0), (0, 1, 0), (0, 0, 1))
    assert (measured.n, measured.errors, measured.accuracy) == (4, 1, 0.75)


def test_figures_of_each_class() -> None:
    dog = measure(certain([0, 1, 1, 2]), truth(0, 0, 1, 2), LABELS).per_class[1]
    assert (dog.precision, dog.recall, dog.n) == (0.5, 1.0, 1)
    assert dog.f1 == pytest.approx(2 / 3)


def test_accuracy_and_macro_f1_agree_with_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet((1.0, 1.0, 1.0), size=200)
    label_ids = generator.integers(0, 3, size=200)
    measured = measure(probabilities, label_ids, LABELS)
    answers = probabilities.argmax(axis=1)
    assert measured.accuracy == pytest.approx(accuracy_score(label_ids, answers))
    assert measured.macro_f1 == pytest.approx(f1_score(label_ids, answers, average="macro"))


def test_a_class_that_does_not_occur_leaves_macro_f1_alone() -> None:
    assert measure(certain([0, 1]), truth(0, 1), LABELS).macro_f1 == 1.0


def test_bootstrap_interval_agrees_with_the_binomial_one() -> None:
    answers = [0] * 380 + [1] * 20
    low, high = measure(certain(answers), truth(*[0] * 400), LABELS).accuracy_interval_95
    exact = binomtest(380, 400).proportion_ci(0.95, method="wilson")
    assert low == pytest.approx(exact.low, abs=0.006)
    assert high == pytest.approx(exact.high, abs=0.006)


def test_the_bootstrap_is_seeded() -> None:
    arguments = (certain([0, 1, 2, 2]), truth(0, 1, 2, 1), LABELS)
    assert measure(*arguments) == measure(*arguments)


def test_the_exact_interval_is_not_a_point_where_there_is_no_error() -> None:
    measured = measure(certain([0] * 100), truth(*[0] * 100), LABELS)
    low, high = measured.accuracy_interval_95_exact
    assert low == pytest.approx(0.025 ** (1 / 100))  # Clopper and Pearson, Biometrika 1934
    assert high == 1.0


def test_calibration_error_is_the_gap_between_promise_and_share() -> None:
    measured = measure(certain([0] * 10, 0.9), truth(*[0] * 7, *[1] * 3), LABELS)
    assert measured.ece == pytest.approx(0.2)


def test_reliability_bins_hold_every_image_once() -> None:
    probabilities = np.concatenate([certain([0] * 4, 0.5), certain([1] * 6, 1.0)])
    low, high = reliability(probabilities, truth(*[0] * 2, *[1] * 8))
    assert (low.mean_probability, low.accuracy, low.n) == (0.5, 0.5, 4)
    assert (high.mean_probability, high.accuracy, high.n) == (1.0, 1.0, 6)


def test_json_names_classes_by_label() -> None:
    content = measure(certain([0, 1, 1, 2]), truth(0, 0, 1, 2), LABELS).to_json()
    assert content["per_class"]["dog"]["n"] == 1
    assert content["confusion_matrix"][0] == (1, 1, 0)
    assert content["labels"] == LABELS
