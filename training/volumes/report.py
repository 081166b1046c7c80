"""The report of a measured segmentation: tables, figures and a gallery of the worst cases."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medserve.spec import ModelSpec
from training.core.report import data_uri, draw, write_page
from training.volumes.curves import Fold, Run, draw_runs, fold_of
from training.volumes.metrics import TOLERANCE_MM, LabelScore, Summary
from training.volumes.pictures import Picture, contours

__all__ = ["GALLERY", "Findings", "write"]

GALLERY = 6  # worst cases shown; more would make the file heavy

_SPOKEN = {
    "dice": "Dice",
    "hd95_mm": "HD95, mm",
    "surface_dice": f"surface Dice at {TOLERANCE_MM:g} mm",
    "volume_error_ml": "volume error, ml (signed)",
    "volume_error_percent": "volume error, % (absolute)",
}


@dataclass(frozen=True, eq=False)
class Findings:
    """What a report is written from.

    Attributes:
        summary: Means and intervals.
        scores: Of every case and label.
        worst: The cases of the gallery, worst first.
        content: What stands in `metrics.json`: settings, artifact, remarks.
        runs: Logs of the trainings that made the artifact, where they are at hand.
    """

    summary: Summary
    scores: tuple[LabelScore, ...]
    worst: tuple[Picture, ...]
    content: Mapping[str, Any]
    runs: Sequence[Run] = ()


def write(out_dir: Path, spec: ModelSpec, findings: Findings) -> Path:
    """Write `report.html` with everything inside, and each figure as a PNG beside it."""
    figures = {
        "agreement": lambda: _agreement(findings),
        "volumes": lambda: _volumes(findings),
    }
    if findings.runs:
        figures["curves"] = lambda: draw_runs(findings.runs)
    folds = [fold_of(run) for run in findings.runs]
    return write_page(
        out_dir / "report.html",
        "volumes_report.html",
        {
            "spec": spec,
            "content": findings.content,
            "summary": findings.summary,
            "measures": _SPOKEN,
            "gallery": [_shown(picture) for picture in findings.worst],
            "folds": folds,
            "fold_means": _fold_means(folds),
        },
        figures,
    )


def _shown(picture: Picture) -> dict[str, Any]:
    return {
        "name": picture.name,
        "scores": picture.scores,
        "picture": data_uri(draw(lambda: contours(picture))),
    }


def _fold_means(folds: Sequence[Fold]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation over the folds, of each label and of their mean."""
    if len(folds) < 2:
        return {}
    columns: dict[str, Callable[[Fold], float]] = {"mean": lambda fold: fold.dice}
    for name in folds[0].labels:
        columns[name] = lambda fold, name=name: fold.labels[name]  # type: ignore[misc]
    return {
        name: (statistics.fmean(values), statistics.stdev(values))
        for name, value in columns.items()
        for values in [[value(fold) for fold in folds]]
    }


def _agreement(findings: Findings) -> Figure:
    """Every case of every label as a point, for each measure that has a best value."""
    measures = ("dice", "surface_dice", "hd95_mm", "volume_error_percent")
    figure = Figure(figsize=(9.6, 3.0), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(measures)), measures, strict=True):
        _points(axes, findings, measure)
        axes.set_title(_SPOKEN[measure], fontsize=9)
    return figure


def _points(axes: Axes, findings: Findings, measure: str) -> None:
    labels = findings.summary.labels
    aside = np.random.default_rng(0)  # so that points do not hide each other
    for n, label in enumerate(labels):
        values = np.array(
            [score.value(measure) for score in findings.scores if score.label == label]
        )
        values = values[~np.isnan(values)]
        axes.plot(n + aside.uniform(-0.18, 0.18, values.size), values, ".", alpha=0.5)
        if values.size:
            axes.boxplot(values, positions=[n], widths=0.5, showfliers=False)
    axes.set_xticks(range(len(labels)), list(labels))
    axes.grid(axis="y", color="0.9")


def _volumes(findings: Findings) -> Figure:
    """Found against true volume of each label; on the grey line they are equal."""
    labels = findings.summary.labels
    figure = Figure(figsize=(3.2 * len(labels), 3.0), layout="constrained")
    for n, label in enumerate(labels):
        axes = figure.add_subplot(1, len(labels), n + 1)
        pairs = np.array(
            [(each.reference_ml, each.found_ml) for each in findings.scores if each.label == label]
        )
        low, high = pairs.min(), pairs.max()
        axes.plot((low, high), (low, high), color="0.7", linewidth=1)
        axes.plot(pairs[:, 0], pairs[:, 1], ".", color=f"C{n}")
        axes.set_title(label, fontsize=9)
        axes.set(xlabel="true, ml", ylabel="found, ml")
        axes.set_aspect("equal", adjustable="datalim")
        axes.grid(color="0.9")
    return figure
