"""What the descriptions of shipped models of frames say of their training data."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml

import models
from medserve.inference.frame_pipeline import FramePipeline
from medserve.results.seen import doubts_about_image, doubts_about_shares
from medserve.tasks.result import DoubtReason
from tests.training.frames.drawn import frame_spec, write_frames
from training.frames.data import find_frames, load_frames
from training.frames.seen import main, measure_seen


def test_ranges_hold_every_frame_that_they_were_measured_on(tmp_path: Path) -> None:
    frames = load_frames(find_frames(write_frames(tmp_path)), FramePipeline(frame_spec()))
    spacings_mm = {each.case.name: (0.5, 0.25) for each in frames}
    seen = measure_seen(frames, "prostate", spacings_mm)
    assert seen.size_mm == ((24.0, 24.0), (18.0, 18.0))
    for each in frames:
        inner = each.inverse.inner.slices
        image, share = each.plane[inner].astype(np.float32), float(each.mask[inner].mean())
        doubts = doubts_about_image(seen, image, (24.0, 18.0))
        # The limits of these two leave out 1 % of the frames.
        assert {each.reason for each in doubts} <= {DoubtReason.INTENSITIES, DoubtReason.LAYOUT}
        assert share == 0.0 or doubts_about_shares(seen, {"prostate": share}) == ()


def test_a_set_that_does_not_state_every_spacing_judges_no_size(tmp_path: Path) -> None:
    frames = load_frames(find_frames(write_frames(tmp_path)), FramePipeline(frame_spec()))
    assert measure_seen(frames, "prostate", {frames[0].case.name: (0.5, 0.25)}).size_mm == ()


@pytest.mark.data
def test_the_breast_set_is_as_the_shipped_variant_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = Path(os.environ.get("MEDSERVE_DATA", "")) / "US_BUSI_standin.tar.gz"
    if not archive.is_file():
        pytest.skip("MEDSERVE_DATA names no folder with US_BUSI_standin.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    main(["--data-dir", str(tmp_path / "US_BUSI_standin"), "--variant", "busi"])
    printed = yaml.safe_load(capsys.readouterr().out)["seen"]
    config = models.room("trus_prostate", "busi") / "model-config.yaml"
    stated = yaml.safe_load(config.read_text("utf-8"))["medserve"]["frame"]["seen"]
    assert printed == {"size_mm": [], **stated}
