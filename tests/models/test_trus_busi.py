"""The variant of the frame room that was trained on real ultrasound, as shipped."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import models
from medserve.imaging.codecs import raster
from medserve.inference.engines import load_engine
from medserve.inference.frame_pipeline import FramePipeline
from medserve.spec import EngineName, Precision
from training.core.evaluation import EvaluationRequest
from training.frames.data import find_frames
from training.frames.evaluation import evaluate_frames

NAME, VARIANT = "trus_prostate", "busi"
ROOM = models.room(NAME, VARIANT)
WEIGHTS = ROOM / "weights"
SPEC = models.spec(NAME, VARIANT)


def metrics() -> dict[str, object]:
    content: dict[str, object] = json.loads((WEIGHTS / "metrics.json").read_text("utf-8"))
    return content


def test_lesion_and_gland_are_separate_targets_and_the_gland_stays_the_default() -> None:
    own = models.spec(NAME)
    assert SPEC.labels == ("background", "lesion")
    assert own.labels == ("background", "prostate")
    assert SPEC.version == f"{own.version}-{VARIANT}"


def test_its_card_says_first_that_it_is_no_prostate() -> None:
    card = (ROOM / "README.md").read_text(encoding="utf-8")
    assert "breast" in card.splitlines()[0]
    assert "not a medical device" in card
    assert "no score on clinical prostate ultrasound" in " ".join(card.split())


def test_its_figures_are_of_frames_that_no_training_saw() -> None:
    content = metrics()
    assert content["n"] == 78  # lesions; groups of look-alikes are on one side of the split
    assert content["settings"]["part"] == "test"  # type: ignore[index]


def test_the_artifact_stays_below_10_mb() -> None:
    assert (WEIGHTS / "model.onnx").stat().st_size < 10_000_000


@pytest.mark.cpu
@pytest.mark.parametrize("name", list(EngineName))
def test_every_engine_reproduces_the_golden_output(name: EngineName) -> None:
    golden = np.load(WEIGHTS / "golden_output.npz", allow_pickle=False)
    frame = raster.decode((WEIGHTS / "golden_input.png").read_bytes(), SPEC.input)
    plane = FramePipeline(SPEC).prepare(frame).plane[np.newaxis]
    engine = load_engine(name, WEIGHTS, precision=Precision.F32, threads=1)
    found = engine.run(plane)["logits"]
    np.testing.assert_allclose(found, golden["logits"], rtol=0, atol=golden["tolerance"])


@pytest.mark.data
def test_its_figures_are_what_the_artifact_reaches_on_the_held_out_frames(
    medserve_data: Path, tmp_path: Path
) -> None:
    with tarfile.open(medserve_data / "US_BUSI_standin.tar.gz") as packed:
        packed.extractall(tmp_path, filter="data")
    frames = tmp_path / "US_BUSI_standin"
    assert len(find_frames(frames)) == 622
    measured = evaluate_frames(
        EvaluationRequest(SPEC, WEIGHTS, frames, tmp_path / "out", WEIGHTS / "split.csv", "test")
    )
    for name in ("dice", "iou", "false_positive_rate"):
        assert measured[name] == pytest.approx(metrics()[name], abs=2e-3), name
