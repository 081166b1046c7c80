"""The variant of the frame room that looks for lesions in simulated prostates, as shipped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import models
from medserve.imaging.image import Image
from medserve.inference.engines import load_engine
from medserve.inference.frame_pipeline import FramePipeline
from medserve.spec import EngineName, Precision
from simulation.simulated_set import SimulateConfig, Target, simulate_set
from training.core.evaluation import predict_by
from training.core.split import read_split
from training.frames.data import find_frames, read_frame, read_mask
from training.frames.scores import compare_frame

NAME, VARIANT = "trus_prostate", "lesion-sim"
ROOM = models.room(NAME, VARIANT)
WEIGHTS = ROOM / "weights"
SPEC = models.spec(NAME, VARIANT)


def test_it_is_marked_as_simulated_wherever_it_is_named() -> None:
    assert "simulated" in SPEC.title
    assert VARIANT.endswith("-sim")
    card = " ".join((ROOM / "README.md").read_text(encoding="utf-8").split())
    assert "Everything here is simulated" in card
    assert "no patient's picture took part" in card


def test_its_target_is_the_lesion_and_the_gland_stays_the_default() -> None:
    own = models.spec(NAME)
    assert (SPEC.labels, own.labels) == (("background", "lesion"), ("background", "prostate"))
    assert SPEC.version == f"{own.version}-{VARIANT}"


def test_its_figures_are_of_patients_that_no_training_saw() -> None:
    content = json.loads((WEIGHTS / "metrics.json").read_text(encoding="utf-8"))
    split = read_split(WEIGHTS / "split.csv")
    tested = {each.partition("_")[0] for each in split.test}
    trained = {each.partition("_")[0] for fold in split.folds for each in fold}
    assert not tested & trained
    assert {each["patient"] for each in content["frames"]} == tested
    assert content["n"] + content["n_empty"] == len(split.test)


@pytest.mark.cpu
def test_it_finds_lesions_of_patients_drawn_here_and_says_where_it_is_unsure(
    tmp_path: Path,
) -> None:
    simulate_set(
        SimulateConfig(
            out_dir=tmp_path / "set", target=Target.LESION, lesion_share=1.0, patients=12,
            frames=1, seed=9000, height=320, width=416, noise_db=-6,
        )
    )  # fmt: skip
    engine = load_engine(EngineName.ONNXRUNTIME, WEIGHTS, precision=Precision.F32, threads=1)
    pipeline, scores = FramePipeline(SPEC), []
    for case in find_frames(tmp_path / "set"):
        frame = read_frame(case.image, SPEC.input)
        truth = read_mask(case, (frame.height, frame.width))
        assert truth.any()
        [found] = pipeline.segment([Image(frame.array)], predict_by(engine))
        scores.append(compare_frame("", "", found.mask, truth).dice)
        assert found.mask.any() == (found.predicted_dice is not None)
    assert np.mean(scores) > 0.2
    assert max(scores) > 0.7


def test_a_set_of_lesions_shows_planes_through_them_and_patients_without_one_whole(
    tmp_path: Path,
) -> None:
    for share, expected in ((1.0, 12), (0.0, 0)):
        folder = tmp_path / str(share)
        simulate_set(
            SimulateConfig(
                out_dir=folder, target=Target.LESION, lesion_share=share, patients=4, frames=3,
                height=120, width=160, overlays=False,
            )
        )  # fmt: skip
        cases = find_frames(folder)
        shown = sum(read_mask(case, (120, 160)).any() for case in cases)
        assert (len(cases), shown) == (12, expected)
