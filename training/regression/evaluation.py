"""Run a model that tells numbers over measured images, exactly as serving would.

The reference is a table `values.csv` in the data folder: `name`, the path of an image below it, and
a column for each value of the model with the measured number in the model's unit, or nothing where
nobody measured it; perhaps `subject`, where one person has several images.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from rich.progress import track

from medserve.errors import ConfigError
from medserve.inference.engines import Engine
from medserve.spec import ModelSpec
from medserve.spec.values import ValueSpec
from medserve.tasks.regression import Regression, estimates
from training.classification.data import decoded
from training.core.evaluation import EvaluationRequest, engine_of, refuse_foreign
from training.core.export import sha256
from training.core.files import write_json
from training.core.references import read_references
from training.core.report import Figures, Section, Table, write_sections
from training.regression.agreement import Agreement, agreement_of

__all__ = ["VALUES_CSV", "evaluate_regression"]

VALUES_CSV = "values.csv"

_log = logging.getLogger(__name__)
_Floats = npt.NDArray[np.float64]


def evaluate_regression(request: EvaluationRequest) -> dict[str, Any]:
    """Write `metrics.json`, `report.html` and figures of the artifact; return the metrics.

    Raises:
        ConfigError: no table, one that says something else, no image that serving would accept, or
            a value that nobody measured.
    """
    spec = request.spec
    refuse_foreign(request)
    if request.split is not None:
        raise ConfigError("expected no --split for measured numbers, got one")
    known = read_references(
        request.data_dir / VALUES_CSV,
        *([each.name for each in spec.values], _measured, "a number or nothing"),
    )
    skipped: list[Path] = []
    answers = _answers(engine_of(request), spec, list(known), skipped)
    if not answers:
        raise ConfigError(f"{request.data_dir}: expected images, found none that can be decoded")
    predicted = np.array([[each.value for each in found.values] for found in answers.values()])
    measured = np.array([known[path].answers for path in answers])
    subjects = [known[path].subject for path in answers]
    agreements = _agreements(spec.values, predicted, measured, subjects)
    content = {
        "model": spec.name,
        "version": spec.version,
        "engine": str(request.engine_name),
        "artifact_sha256": sha256(request.weights / "model.onnx"),
        "n": len(answers),
        "subjects": len(set(subjects)),
        "skipped": len(skipped),
        "review": sum(found.review for found in answers.values()),
        "values": {name: each.to_json() for name, each in agreements.items()},
    }
    request.out_dir.mkdir(parents=True, exist_ok=True)
    write_json(request.out_dir / "metrics.json", content)
    figures = {
        f"value_{place}": partial(
            _plot, value, agreements[value.name], predicted[:, place], measured[:, place]
        )
        for place, value in enumerate(spec.values)
    }
    page = _write_report(request.out_dir, spec, agreements, content, figures)
    told = ", ".join(
        f"{each.name} {agreements[each.name].mean_absolute_error:g} {each.unit_name}"
        for each in spec.values
    )
    _log.info("mean absolute error of %s in %d images; %s", told, len(answers), page)
    return content


def _measured(text: str) -> float:
    """Return a measured number; NaN where there is none."""
    number = float(text) if text else math.nan
    if text and not math.isfinite(number):
        raise ValueError(text)
    return number


def _answers(
    engine: Engine, spec: ModelSpec, paths: Sequence[Path], skipped: list[Path]
) -> dict[Path, Regression]:
    shown = track(paths, description="Evaluating")
    return {
        path: estimates(engine.run(planes[np.newaxis])["logits"][0].tolist(), spec.values)
        for path, planes in decoded(shown, spec, skipped)
    }


def _agreements(
    values: Sequence[ValueSpec], predicted: _Floats, measured: _Floats, subjects: Sequence[str]
) -> dict[str, Agreement]:
    found = {}
    for place, value in enumerate(values):
        if np.isnan(measured[:, place]).all():
            raise ConfigError(
                f"{VALUES_CSV}: expected at least one measured {value.name!r}, got none"
            )
        found[value.name] = agreement_of(predicted[:, place], measured[:, place], subjects)
    return found


def _write_report(
    folder: Path,
    spec: ModelSpec,
    agreements: Mapping[str, Agreement],
    content: Mapping[str, Any],
    figures: Figures,
) -> Path:
    table = Table.of(
        {
            "value": lambda row: f"{row[0].name} ({row[0].unit_name})",
            "images": lambda row: row[1].n,
            "mean absolute error": lambda row: f"{row[1].mean_absolute_error:.4g}",
            "95 % interval": lambda row: _span(row[1].mean_absolute_error_interval_95),
            "bias": lambda row: f"{row[1].bias:.4g}",
            "limits of agreement": lambda row: _span(row[1].limits_of_agreement),
            "Pearson's r": lambda row: f"{row[1].pearson:.4f}",
            "R²": lambda row: f"{row[1].r_squared:.4f}",
        },
        [(value, agreements[value.name]) for value in spec.values],
    )
    note = (
        "Differences are predicted minus measured, against their mean (Bland and Altman, Lancet "
        "1986); the lines are bias and limits of agreement, between which 95 % of the differences "
        f"of a normal law lie. {content['review']} of {content['n']} answers lie outside of the "
        "plausible range and ask for a look."
    )
    title = f"{spec.name} {spec.version}: {content['n']} images"
    about = (
        f"{spec.title}. On images of {content['subjects']} subjects that no training saw only if "
        "they were chosen so."
    )
    section = Section("Agreement", note, table=table, figures=figures)
    return write_sections(folder / "report.html", title, about, [section])


def _span(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.4g} to {ends[1]:.4g}"


def _plot(value: ValueSpec, found: Agreement, predicted: _Floats, measured: _Floats) -> Figure:
    """Draw predicted over measured, and differences over means."""
    is_known = ~np.isnan(measured)
    told, truth = predicted[is_known], measured[is_known]
    differences, means = told - truth, (told + truth) / 2
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    ends = [min(truth.min(), told.min()), max(truth.max(), told.max())]
    left.plot(ends, ends, color="0.8", linewidth=1)
    left.scatter(truth, told, s=9)
    left.set(xlabel=f"measured {value.name} ({value.unit_name})", ylabel="predicted")
    right.scatter(means, differences, s=9)
    for height in (found.bias, *found.limits_of_agreement):
        if math.isfinite(height):
            right.axhline(height, color="0.6", linewidth=1)
    right.set(xlabel=f"mean of both ({value.unit_name})", ylabel="predicted - measured")
    return figure
