"""What only the room of the diffusion model promises beside `tests/test_rooms.py`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

import models
from medserve.inference.engines import load_engine
from medserve.inference.fingerprints import FingerprintIndex
from medserve.inference.generation import DiffusionPipeline, SampleSettings
from medserve.spec import EngineName, ModelSpec, Precision
from training.classification.data import SPLITS, read_split
from training.core.config import parse_value
from training.diffusion.evaluation import DiffusionEvaluation
from training.diffusion.settings import DiffusionConfig
from training.evaluate import EvaluateConfig, _read

ROOM = models.room("diffusion_sampler")
SPEC = ModelSpec.from_file(ROOM / "model-config.yaml")


@pytest.fixture(scope="module")
def pipeline() -> DiffusionPipeline:
    engine = load_engine(
        EngineName.ONNXRUNTIME, ROOM / "weights", precision=Precision.F32, threads=1
    )
    return DiffusionPipeline(SPEC, engine.run)


@pytest.fixture(params=["", *models.variants("diffusion_sampler")])
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stated(variant: str) -> dict[str, Any]:
    path = models.room("diffusion_sampler", variant) / "weights" / "metrics.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def test_serving_walks_the_process_that_the_weights_were_trained_on(variant: str) -> None:
    weights = models.room("diffusion_sampler", variant) / "weights"
    trained = json.loads((weights / "config.json").read_text(encoding="utf-8"))
    spec = models.spec("diffusion_sampler", variant)
    assert spec.generation is not None
    for name in ("schedule", "prediction", "steps", "min_beta", "max_beta"):
        wanted = parse_value(DiffusionConfig, name, str(trained[name]))
        assert getattr(spec.generation, name) == wanted, name
    assert spec.generation.sizes == (trained["image_size"],)
    assert spec.input.channels == trained["channels"]


def test_the_stated_quality_is_within_the_targets(variant: str) -> None:
    metrics = stated(variant)
    assert metrics["n"] >= 512
    # The version of cells misses the target by far, and its card says so and why.
    assert metrics["frechet_ratio"] <= {"": 2.0, "cells": 17.0}[variant]
    assert metrics["copy_rate"] <= 0.01


def test_the_index_knows_every_training_image_and_no_held_out_one(variant: str) -> None:
    weights = models.room("diffusion_sampler", variant) / "weights"
    index = FingerprintIndex.load(weights / "fingerprints.npz")
    held_out = read_split(weights / "split.csv")
    assert len(index.codes) == stated(variant)["training"]["train_images"]
    assert set(held_out.values()) == set(SPLITS[1:])


@pytest.mark.cpu
def test_drawn_cells_are_coloured_and_lie_on_a_pale_ground() -> None:
    spec = models.spec("diffusion_sampler", "cells")
    assert spec.generation is not None
    engine = load_engine(
        EngineName.ONNXRUNTIME, models.room("diffusion_sampler", "cells") / "weights",
        precision=Precision.F32, threads=1,
    )  # fmt: skip
    cells = DiffusionPipeline(spec, engine.run)
    settings = SampleSettings.default(spec.generation)
    neutrophil = spec.labels.index("neutrophil")
    image = np.mean([cells.draw(seed, neutrophil, settings) for seed in range(4)], axis=0)
    ground = np.concatenate([image[:, :, :4].reshape(3, -1), image[:, :, -4:].reshape(3, -1)], 1)
    red, green, blue = image[:, 24:40, 24:40].mean(axis=(1, 2))
    assert ground.mean() > 170
    assert image[:, 24:40, 24:40].mean() < ground.mean() - 30
    assert blue > green
    assert red > green


@pytest.mark.cpu
def test_drawn_slices_are_bright_in_the_middle_and_dark_at_the_rim(
    pipeline: DiffusionPipeline,
) -> None:
    assert SPEC.generation is not None
    settings = SampleSettings.default(SPEC.generation)
    images = [pipeline.draw(seed, seed % 4, settings)[0] for seed in range(4)]
    for image in images:
        assert image[16:48, 16:48].mean() > 60
        assert image[:6, :6].mean() < 15
    apart = [
        np.abs(one.astype(int) - other).mean()
        for one in images
        for other in images
        if one is not other
    ]
    assert min(apart) > 5


def test_example_pictures_say_that_they_are_synthetic() -> None:
    paths = sorted((ROOM / "examples").glob("*.png"))
    assert paths
    for path in paths:
        with Image.open(path) as picture:
            assert "SYNTHETIC" in picture.text["Synthetic"]  # type: ignore[attr-defined]


def test_evaluating_it_takes_flags_of_its_own() -> None:
    asked = _read(EvaluateConfig, ["diffusion_sampler", "--images", "64", "--sampler", "ddim"])
    assert isinstance(asked, DiffusionEvaluation)
    assert (asked.images, asked.sampler) == (64, "ddim")
    assert type(_read(EvaluateConfig, ["mednist"])) is EvaluateConfig


def test_a_flag_that_a_model_does_not_have_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _read(EvaluateConfig, ["mednist", "--images", "64"])
    assert "unrecognized arguments: --images 64" in capsys.readouterr().err
