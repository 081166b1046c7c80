"""The report of measured frames: a table, two figures and a gallery of the worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from medserve.inference.frame_pipeline import FramePipeline
from medserve.spec import ModelSpec
from training.core.evaluation import Predict
from training.core.report import data_uri, draw, write_page
from training.frames.data import read_frame, read_mask
from training.frames.scores import FrameScore, Summary

if TYPE_CHECKING:
    from training.frames.evaluation import MeasuredFrame

__all__ = ["Findings", "Picture", "gallery", "outlines", "worst", "write"]

_GALLERY = 12  # worst frames shown; more would make the file heavy
_RED, _WHITE = "#ff4040", "white"


@dataclass(frozen=True, eq=False)
class Picture:
    """A frame with what was found and what should have been.

    Attributes:
        score: Of the frame.
        frame: float32 (H, W) in [0, 1].
        found: Of one structure, (H, W).
        reference: Of the same, (H, W).
        label: Its name.
    """

    score: FrameScore
    frame: npt.NDArray[np.float32]
    found: npt.NDArray[np.bool_]
    reference: npt.NDArray[np.bool_]
    label: str


@dataclass(frozen=True, eq=False)
class Findings:
    """What a report is written from.

    Attributes:
        summary: Means and intervals.
        scores: Of every frame.
        pictures: Of the worst ones, worst first.
        content: What stands in `metrics.json`.
        structures: Means and intervals of each of several structures; empty for one.
    """

    summary: Summary
    scores: Sequence[FrameScore]
    pictures: Sequence[Picture]
    content: Mapping[str, Any]
    structures: Mapping[str, Summary]


def worst(measured: Sequence[MeasuredFrame]) -> list[MeasuredFrame]:
    """The frames with the lowest Dice, those that found something in nothing among them."""
    return sorted(measured, key=lambda each: (each.score.dice, each.case.name))[:_GALLERY]


def gallery(
    pipeline: FramePipeline, predict: Predict, measured: Sequence[MeasuredFrame]
) -> list[Picture]:
    """Segment some frames once more, to look at."""
    pictures = []
    for each in measured:
        image = read_frame(each.case.image, pipeline.spec.input)
        [found] = pipeline.segment([image], predict)
        labels, number = pipeline.spec.labels, each.label_id
        reference = read_mask(each.case, (image.height, image.width), len(labels))
        own = (found.mask == number, reference == number)
        pictures.append(Picture(each.score, image.grey(), *own, labels[number]))
    return pictures


def write(out_dir: Path, spec: ModelSpec, findings: Findings) -> Path:
    """Write `report.html` with everything inside, and each figure as a PNG beside it."""
    shown = [
        {
            "score": each.score,
            "label": each.label,
            "picture": data_uri(draw(partial(outlines, each))),
        }
        for each in findings.pictures
    ]
    return write_page(
        out_dir / "report.html",
        "frames_report.html",
        {
            "spec": spec,
            "content": findings.content,
            "summary": findings.summary,
            "structures": findings.structures,
            "gallery": shown,
        },
        {"scores": lambda: _histogram(findings), "areas": lambda: _areas(findings)},
    )


def outlines(picture: Picture) -> Figure:
    """A frame with two outlines: red what was found, white and dotted the reference."""
    height, width = picture.frame.shape
    figure = Figure(figsize=(4.0, 4.0 * height / width), layout="tight")
    axes = figure.subplots()
    axes.imshow(picture.frame, cmap="gray", vmin=0, vmax=1)
    for mask, colour, style in (
        (picture.reference, _WHITE, "dotted"),
        (picture.found, _RED, "solid"),
    ):
        if mask.any() and not mask.all():  # contour warns where there is no outline
            axes.contour(mask, levels=[0.5], colors=colour, linestyles=style, linewidths=1.2)
    axes.set_axis_off()
    return figure


def _histogram(findings: Findings) -> Figure:
    figure = Figure(figsize=(6.0, 2.6), layout="tight")
    axes = figure.subplots()
    shown = [each.dice for each in findings.scores if each.reference]
    axes.hist(shown, bins=[n / 20 for n in range(21)], color="#3a6ea5")
    axes.set(xlabel="Dice", ylabel="frames", xlim=(0, 1))
    return figure


def _areas(findings: Findings) -> Figure:
    figure = Figure(figsize=(4.0, 4.0), layout="tight")
    axes = figure.subplots()
    reference = [each.reference for each in findings.scores]
    found = [each.found for each in findings.scores]
    limit = max(1, *reference, *found)
    axes.plot((0, limit), (0, limit), color="0.7", linewidth=1)
    axes.scatter(reference, found, s=8, color="#3a6ea5")
    axes.set(xlabel="reference, pixels", ylabel="found, pixels")
    return figure
