"""A report that one HTML file carries: figures, tables and a gallery of the errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medserve.spec import ModelSpec
from training.classification.metrics import ClassificationMetrics, reliability
from training.core.report import data_uri, encode_png, write_page

__all__ = ["Finding", "Findings", "confusion_matrix", "reliability_curve", "write"]

_GALLERY = 60  # errors shown; more would make the file heavy


@dataclass(frozen=True, eq=False)
class Findings:
    """Every answer, beside the truth.

    Attributes:
        names: Path of each image, relative to the data folder.
        pixels: uint8 (N, H, W) or (N, H, W, 3).
        probabilities: float64 (N, K).
        novelty: float32 (N,); None of a model that does not tell it.
        label_ids: int64 (N,), the truth.
    """

    names: tuple[str, ...]
    pixels: npt.NDArray[np.uint8]
    probabilities: npt.NDArray[np.float64]
    novelty: npt.NDArray[np.float32] | None
    label_ids: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Finding:
    """One wrong answer in the gallery."""

    name: str
    picture: str  # data URI
    truth: str
    answer: str
    probabilities: tuple[tuple[str, float], ...]  # most probable first
    novelty: float | None


def write(
    out_dir: Path, spec: ModelSpec, measured: ClassificationMetrics, findings: Findings
) -> Path:
    """Write `report.html` with everything inside, and each figure and error as a PNG beside it."""
    wrong = np.flatnonzero(findings.probabilities.argmax(axis=1) != findings.label_ids)
    gallery = [_finding(spec, findings, int(i)) for i in wrong[:_GALLERY]]
    for number, i in enumerate(wrong[:_GALLERY]):
        (out_dir / "errors").mkdir(exist_ok=True)
        (out_dir / "errors" / f"{number:03d}.png").write_bytes(encode_png(findings.pixels[i]))
    novelty = findings.novelty
    figures = {
        "confusion_matrix": lambda: confusion_matrix(measured.confusion, measured.labels),
        "reliability": lambda: reliability_curve(findings.probabilities, findings.label_ids),
    }
    if novelty is not None:
        figures["novelty"] = lambda: _novelty(novelty)
    return write_page(
        out_dir / "report.html",
        "classification_report.html",
        {
            "spec": spec,
            "metrics": measured,
            "per_class": list(zip(measured.labels, measured.per_class, strict=True)),
            "gallery": gallery,
            "unlike": None if novelty is None else int((novelty > 1.0).sum()),
            "reviewed": int(
                (findings.probabilities.max(axis=1) < spec.classifier.review_below).sum()
            ),
        },
        figures,
    )


def _finding(spec: ModelSpec, findings: Findings, i: int) -> Finding:
    order = np.argsort(-findings.probabilities[i])
    return Finding(
        name=findings.names[i],
        picture=data_uri(encode_png(findings.pixels[i])),
        truth=spec.labels[findings.label_ids[i]],
        answer=spec.labels[order[0]],
        probabilities=tuple((spec.labels[k], float(findings.probabilities[i, k])) for k in order),
        novelty=None if findings.novelty is None else float(findings.novelty[i]),
    )


def confusion_matrix(
    confusion: Sequence[Sequence[int]],
    labels: Sequence[str],
    title: str = "",
    axes: Axes | None = None,
) -> Figure:
    """Draw counts of true and answered labels as a heat map, into `axes` where given."""
    figure = Figure(figsize=(5.4, 4.6), layout="constrained")
    axes = axes or figure.subplots()
    counts = np.array(confusion)
    # Colour by share of the row, or the hits would leave every error as white as a zero.
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    sns.heatmap(
        np.sqrt(share), annot=counts, fmt="d", cmap="Blues", cbar=False, square=True,
        xticklabels=list(labels), yticklabels=list(labels), ax=axes,
    )  # fmt: skip
    axes.set(xlabel="answered", ylabel="true", title=title)
    axes.tick_params(axis="x", rotation=45)
    return figure


def reliability_curve(
    probabilities: npt.NDArray[np.float64], label_ids: npt.NDArray[np.int64]
) -> Figure:
    """Draw what was promised against what was kept, for probabilities (N, K)."""
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    axes = figure.subplots()
    bins = reliability(probabilities, label_ids)
    axes.plot((0, 1), (0, 1), color="0.7", linewidth=1)
    axes.plot([b.mean_probability for b in bins], [b.accuracy for b in bins], "o-")
    for each in bins:
        axes.annotate(
            f"{each.n}",
            (each.mean_probability, each.accuracy),
            textcoords="offset points",
            xytext=(-6, -12),
            ha="right",
            fontsize=8,
        )
    axes.set(xlabel="probability answered", ylabel="share that is right", xlim=(0, 1.02))
    axes.set_ylim(0, 1.05)
    return figure


def _novelty(novelty: npt.NDArray[np.float32]) -> Figure:
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.hist(novelty, bins=60, color="#4878b0")
    axes.axvline(1.0, color="#b04848", linewidth=1)
    axes.set(xlabel="novelty (above 1: unlike the training data)", ylabel="images", yscale="log")
    return figure
