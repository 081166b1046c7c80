"""What only the room of the diffusion model promises beside `tests/test_rooms.py`."""

from __future__ import annotations

import json

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


def test_serving_walks_the_process_that_the_weights_were_trained_on() -> None:
    trained = json.loads((ROOM / "weights" / "config.json").read_text(encoding="utf-8"))
    assert SPEC.generation is not None
    for name in ("schedule", "prediction", "steps", "min_beta", "max_beta"):
        wanted = parse_value(DiffusionConfig, name, str(trained[name]))
        assert getattr(SPEC.generation, name) == wanted, name
    assert SPEC.generation.sizes == (trained["image_size"],)
    assert SPEC.input.channels == trained["channels"]


def test_the_stated_quality_is_within_the_targets() -> None:
    metrics = json.loads((ROOM / "weights" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["n"] >= 512
    assert metrics["frechet_ratio"] <= 2.0
    assert metrics["copy_rate"] <= 0.01


def test_the_index_knows_every_training_image_and_no_held_out_one() -> None:
    index = FingerprintIndex.load(ROOM / "weights" / "fingerprints.npz")
    metrics = json.loads((ROOM / "weights" / "metrics.json").read_text(encoding="utf-8"))
    held_out = read_split(ROOM / "weights" / "split.csv")
    assert len(index.codes) == metrics["training"]["train_images"]
    assert set(held_out.values()) == set(SPLITS[1:])


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
