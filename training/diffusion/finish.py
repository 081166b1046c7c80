"""What follows a training: images and strips on disk, the artifact, its judgement, the room."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medserve.inference.generation import DiffusionPipeline, SampleSettings
from medserve.results.files.synthetic import encode_png
from medserve.results.sample import Sample
from medserve.tasks.result import Provenance
from training.classification.data import LabelledImages
from training.core.config import parse_value
from training.core.export import sha256
from training.core.files import write_json
from training.core.fit import Fitted
from training.core.report import draw as draw_figure
from training.diffusion.evaluation import (
    DiffusionEvaluation,
    draw,
    evaluate_diffusion,
    open_artifact,
)
from training.diffusion.fit import SCORE
from training.diffusion.pictures import denoising_strip, noising_strip, sheet, write_png
from training.diffusion.settings import DiffusionConfig
from training.diffusion.ship import Shipment, install, ship

__all__ = ["finish", "stored"]

_log = logging.getLogger(__name__)

_ZOOM = 2  # screen pixels an image pixel
_STRIP_SEED = 3
_GIVEN = ("data_dir", "out_dir", "model", "threads", "finish", "install", "variant", "samples")


def finish(config: DiffusionConfig, fitted: Fitted, shipment: Shipment, room: Path) -> None:
    """Export, draw `samples` images, judge on the test part, and install where asked."""
    described = ship(fitted, shipment)
    folder = config.out_dir / "artifact"
    judging = DiffusionEvaluation(
        data_dir=config.data_dir, out=config.out_dir / "report", weights=folder,
        threads=config.threads,
    )  # fmt: skip
    pipeline = open_artifact(folder, judging)
    _write_samples(config, pipeline)
    _write_strips(config, pipeline, shipment.validation)
    _write_curves(config.out_dir)
    measured = evaluate_diffusion(judging)
    measured["training"] = described
    write_json(folder / "metrics.json", measured)
    if config.install:
        install(config, room)


def stored(config: DiffusionConfig) -> DiffusionConfig:
    """The settings that the run in `out_dir` was trained with, and the folders given now."""
    text = (config.out_dir / "config.json").read_text(encoding="utf-8")
    values = json.loads(text)
    fields = {field.name for field in dataclasses.fields(DiffusionConfig)} - set(_GIVEN)
    trained: dict[str, Any] = {  # as text, which is how a file states them
        name: parse_value(DiffusionConfig, name, str(value))
        for name, value in values.items()
        if name in fields
    }
    return dataclasses.replace(config, **trained)


def _write_samples(config: DiffusionConfig, pipeline: DiffusionPipeline) -> None:
    """`samples/*.png`, each marked as synthetic, and one sheet of all."""
    if not config.samples:
        return
    spec = pipeline.spec
    settings = SampleSettings.default(pipeline.generation)
    label_ids = np.array([pipeline.label_id(seed) for seed in range(config.samples)])
    drawn = draw(pipeline, label_ids, settings, first_seed=0)
    digest = sha256(config.out_dir / "artifact" / "model.onnx")
    provenance = Provenance(spec.name, spec.version, digest)
    folder = config.out_dir / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (image, label_id) in enumerate(zip(drawn.images, label_ids, strict=True)):
        plane = image[0] if len(image) == 1 else np.moveaxis(image, 0, 2)
        label = spec.labels[label_id] if spec.labels else ""
        sample = Sample(
            plane, seed, label, settings.steps, settings.sampler, settings.guidance, provenance
        )
        (folder / f"{seed:05d}.png").write_bytes(encode_png(sample))
    write_png(config.out_dir / "samples.png", sheet(drawn.images), _ZOOM, synthetic=True)
    _log.info("%d images in %s", config.samples, folder)


def _write_strips(
    config: DiffusionConfig, pipeline: DiffusionPipeline, real: LabelledImages
) -> None:
    """`noising.png` of a real image and `denoising.png` of a synthetic one."""
    draws = np.random.default_rng(_STRIP_SEED)
    noising = noising_strip(real.images[len(real) // 2], pipeline.schedule, draws)
    settings = SampleSettings.default(pipeline.generation)
    states = list(pipeline.walk(_STRIP_SEED, pipeline.label_id(_STRIP_SEED), settings))
    write_png(config.out_dir / "noising.png", noising, _ZOOM)
    write_png(config.out_dir / "denoising.png", denoising_strip(states), _ZOOM, True)


def _write_curves(out_dir: Path) -> None:
    """`loss_curve.png`: the loss, and the distance that chose the epoch, over steps."""

    def both() -> Figure:
        figure = Figure(figsize=(9.2, 3.2), layout="constrained")
        axes = figure.subplots(1, 2)
        for each, name in zip(axes, ("train_loss", SCORE.name), strict=True):
            _curve(each, name, sorted(_logged(out_dir, name)))
        return figure

    (out_dir / "loss_curve.png").write_bytes(draw_figure(both))


def _curve(axes: Axes, name: str, points: list[tuple[int, float]]) -> None:
    axes.plot([step for step, _ in points], [value for _, value in points], linewidth=1)
    axes.set(xlabel="steps", ylabel=name.replace("_", " "), yscale="log")


def _logged(out_dir: Path, name: str) -> Iterator[tuple[int, float]]:
    """Step and value of every row, of all attempts, that has the value."""
    for path in (out_dir / "logs").glob("attempt_*/metrics.csv"):
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                if row.get(name):
                    yield int(row["step"]), float(row[name])
