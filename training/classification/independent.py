"""Judge a classifier of independent labels: each label by itself, as a test of its presence.

The reference is a table `labels.csv` in the data folder: `name`, the path of an image below it, and
a column for each label with 1, 0, or nothing where nobody knows; or an npz as that of ChestMNIST,
with a row of 0 and 1 for each image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, roc_curve

from medserve.inference.scores import are_present
from medserve.spec import ModelSpec
from training.core.means import auroc, auroc_interval, rounded
from training.core.report import write_page

__all__ = [
    "LABELS_CSV",
    "LabelMetrics",
    "content_of",
    "measure_labels",
    "present_or_not",
    "write_report",
]

LABELS_CSV = "labels.csv"

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelMetrics:
    """How well the presence of one label is told; None where the images cannot say it.

    Attributes:
        n: Images whose reference says something of the label.
        positives: Those that have it.
        threshold: Probability from which it is present.
        auroc: Area under the ROC curve.
        auroc_interval: Its 95 % interval by bootstrap over images.
        average_precision: Area under precision over recall, by steps.
        sensitivity: Share of the positives in which it is found.
        specificity: Share of the others in which it is not.
        precision: Share of what was found that has it.
        f1: Harmonic mean of precision and sensitivity.
    """

    n: int
    positives: int
    threshold: float
    auroc: float | None
    auroc_interval: tuple[float, float] | None
    average_precision: float | None
    sensitivity: float | None
    specificity: float | None
    precision: float | None
    f1: float | None


def measure_labels(
    shares: _Floats, references: _Floats, spec: ModelSpec
) -> dict[str, LabelMetrics]:
    """Judge each label by the images whose reference says something of it.

    Args:
        shares: Probabilities (N, K).
        references: 1, 0 or NaN, (N, K).
        spec: The model's description.
    """
    present = are_present(shares, spec.classifier)
    thresholds = spec.classifier.thresholds(len(spec.labels))
    measured = {}
    for place, label in enumerate(spec.labels):
        is_known = ~np.isnan(references[:, place])
        truth = references[is_known, place] > 0
        found = present[is_known, place]
        measured[label] = _measure(shares[is_known, place], truth, found, thresholds[place])
    return measured


def content_of(measured: Mapping[str, LabelMetrics]) -> dict[str, Any]:
    """Return what stands in `metrics.json`: means over labels, and each label."""
    return {
        "mean_auroc": rounded(_mean([each.auroc for each in measured.values()])),
        "mean_average_precision": rounded(
            _mean([each.average_precision for each in measured.values()])
        ),
        "labels": {label: asdict(each) for label, each in measured.items()},
    }


def write_report(
    folder: Path,
    spec: ModelSpec,
    measured: Mapping[str, LabelMetrics],
    shares: _Floats,
    references: _Floats,
) -> Path:
    """Write `report.html`: a table of the labels, and their ROC curves."""
    shown = {
        "n": "images", "positives": "with it", "threshold": "threshold", "auroc": "AUROC",
        "auroc_interval": "95 % interval", "average_precision": "average precision",
        "sensitivity": "sensitivity", "specificity": "specificity", "precision": "precision",
        "f1": "F1",
    }  # fmt: skip
    rows = [
        [label, *(_shown(getattr(each, name)) for name in shown)]
        for label, each in measured.items()
    ]
    headings = ["label", *shown.values()]
    note = "Where a figure is missing all images have the label, or none has it."
    section = {
        "title": "Labels",
        "note": note,
        "command": "",
        "table": {"headings": headings, "rows": rows},
        "figures": ["roc"],
        "gallery": (),
    }
    content = {
        "title": f"{spec.name} {spec.version}: {len(shares)} images",
        "note": f"{spec.title}. Each label is judged by itself, on images that no training saw "
        "only if they were chosen so.",
        "sections": [section],
    }
    figures = {"roc": lambda: _curves(spec.labels, shares, references)}
    return write_page(folder / "report.html", "sections.html", content, figures)


def present_or_not(text: str) -> float:
    """Return what a cell of the table says: 1, 0, or NaN; ValueError where it is no answer."""
    known = {"": math.nan, "0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0}
    if text not in known:
        raise ValueError(text)
    return known[text]


def _measure(
    shares: _Floats, truth: npt.NDArray[np.bool_], found: npt.NDArray[np.bool_], threshold: float
) -> LabelMetrics:
    hits, positives = int((found & truth).sum()), int(truth.sum())
    both = 0 < positives < len(truth)
    return LabelMetrics(
        n=len(truth),
        positives=positives,
        threshold=threshold,
        auroc=rounded(auroc(truth, shares)) if both else None,
        auroc_interval=_interval(truth, shares) if both else None,
        average_precision=(
            rounded(float(average_precision_score(truth, shares))) if positives else None
        ),
        sensitivity=_share(hits, positives),
        specificity=_share(int((~found & ~truth).sum()), len(truth) - positives),
        precision=_share(hits, int(found.sum())),
        f1=_share(2 * hits, positives + int(found.sum())),
    )


def _interval(truth: npt.NDArray[np.bool_], shares: _Floats) -> tuple[float, float]:
    low, high = auroc_interval(truth, shares, np.arange(len(truth)))  # an image is a subject
    return round(low, 5), round(high, 5)


def _share(part: int, whole: int) -> float | None:
    return rounded(part / whole) if whole else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    return sum(known) / len(known) if known else None


def _shown(value: float | tuple[float, float] | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return " to ".join(f"{each:.3f}" for each in value)
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _curves(labels: Sequence[str], shares: _Floats, references: _Floats) -> Figure:
    figure = Figure(figsize=(5.4, 5.0), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    for place, label in enumerate(labels):
        is_known = ~np.isnan(references[:, place])
        truth = references[is_known, place] > 0
        if truth.all() or not truth.any():
            continue
        false, true, _ = roc_curve(truth, shares[is_known, place])
        axes.plot(false, true, linewidth=1.2, label=label)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", fontsize=7)
    return figure
