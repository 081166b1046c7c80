"""Figures of a classifier on labelled images with intervals, and the test of two classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torchmetrics.functional.classification import multiclass_calibration_error

from medserve.errors import ConfigError

__all__ = [
    "ClassFigures",
    "ClassificationMetrics",
    "McNemar",
    "ReliabilityBin",
    "mcnemar",
    "measure",
    "reliability",
]

_BINS = 15  # of Guo et al., ICML 2017 (arXiv:1706.04599)
_RESAMPLES = 10_000
_SEED = 0


@dataclass(frozen=True)
class ClassFigures:
    """Precision, recall and F1 of one class, and how many images have it."""

    precision: float
    recall: float
    f1: float
    n: int


@dataclass(frozen=True)
class ReliabilityBin:
    """Images whose highest probability lies in one bin: what was promised, what was kept."""

    mean_probability: float
    accuracy: float
    n: int


@dataclass(frozen=True)
class ClassificationMetrics:
    """What is told about a classifier.

    Attributes:
        confusion: Counts, row = true label, column = answered label.
        accuracy_interval_95: Seeded bootstrap over images; one point where there is no error.
        accuracy_interval_95_exact: Clopper-Pearson; also holds where there is no error.
        ece: Expected calibration error over 15 bins of equal width.
    """

    labels: tuple[str, ...]
    n: int
    errors: int
    accuracy: float
    accuracy_interval_95: tuple[float, float]
    accuracy_interval_95_exact: tuple[float, float]
    macro_f1: float
    macro_f1_interval_95: tuple[float, float]
    ece: float
    per_class: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Members for `metrics.json`."""
        content = asdict(self)
        content["confusion_matrix"] = content.pop("confusion")
        figures = zip(self.labels, self.per_class, strict=True)
        content["per_class"] = {label: asdict(each) for label, each in figures}
        return content


def measure(
    probabilities: npt.NDArray[np.float64],
    label_ids: npt.NDArray[np.int64],
    labels: Sequence[str],
) -> ClassificationMetrics:
    """Figures from probabilities (N, K) and true label ids (N,); only classes seen count in F1."""
    answered = probabilities.argmax(axis=1)
    ids = np.arange(len(labels))
    confusion = confusion_matrix(label_ids, answered, labels=ids)
    precision, recall, f1, support = precision_recall_fscore_support(
        label_ids, answered, labels=ids, zero_division=0.0
    )
    n, correct = len(label_ids), int(np.trace(confusion))
    exact = binomtest(correct, n).proportion_ci(0.95, method="exact")
    accuracy_interval, f1_interval = _bootstrap(confusion)
    figures = zip(precision, recall, f1, support, strict=True)
    return ClassificationMetrics(
        labels=tuple(labels),
        n=n,
        errors=n - correct,
        accuracy=correct / n,
        accuracy_interval_95=accuracy_interval,
        accuracy_interval_95_exact=(float(exact.low), float(exact.high)),
        macro_f1=float(_macro_f1(confusion)),
        macro_f1_interval_95=f1_interval,
        ece=_calibration_error(probabilities, label_ids),
        per_class=tuple(
            ClassFigures(float(p), float(r), float(f), int(s)) for p, r, f, s in figures
        ),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )


def reliability(
    probabilities: npt.NDArray[np.float64], label_ids: npt.NDArray[np.int64], bins: int = _BINS
) -> list[ReliabilityBin]:
    """The bins of equal width in [0, 1] that hold any image, by highest probability."""
    highest = probabilities.max(axis=1)
    is_correct = probabilities.argmax(axis=1) == label_ids
    bin_of = np.minimum((highest * bins).astype(int), bins - 1)
    members = [np.flatnonzero(bin_of == each) for each in range(bins)]
    return [
        ReliabilityBin(float(highest[m].mean()), float(is_correct[m].mean()), len(m))
        for m in members
        if len(m)
    ]


def _calibration_error(
    probabilities: npt.NDArray[np.float64], label_ids: npt.NDArray[np.int64]
) -> float:
    error = multiclass_calibration_error(
        torch.from_numpy(probabilities),
        torch.from_numpy(label_ids),
        num_classes=probabilities.shape[1],
        n_bins=_BINS,
        norm="l1",
    )
    return float(error)


def _macro_f1(confusion: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Mean F1 over the classes that occur, for matrices (..., K, K)."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    rows, columns = confusion.sum(axis=-1), confusion.sum(axis=-2)
    f1 = 2.0 * hits / np.maximum(rows + columns, 1)
    seen = rows > 0
    return np.where(seen, f1, 0.0).sum(axis=-1) / np.maximum(seen.sum(axis=-1), 1)


def _bootstrap(
    confusion: npt.NDArray[np.int64],
) -> tuple[tuple[float, float], tuple[float, float]]:
    """95 % intervals of accuracy and macro-F1.

    Drawing n images with replacement is drawing n cells of the confusion matrix, so that one
    multinomial draw is one resample.
    """
    n = int(confusion.sum())
    generator = np.random.default_rng(_SEED)
    cells = generator.multinomial(n, confusion.ravel() / n, size=_RESAMPLES)
    drawn = cells.reshape(_RESAMPLES, *confusion.shape)
    accuracy = np.trace(drawn, axis1=1, axis2=2) / n
    low, high = np.quantile(accuracy, (0.025, 0.975))
    f1_low, f1_high = np.quantile(_macro_f1(drawn), (0.025, 0.975))
    return (float(low), float(high)), (float(f1_low), float(f1_high))


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
