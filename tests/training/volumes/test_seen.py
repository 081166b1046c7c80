"""What the description of the shipped model says of its training data, measured again."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml

import models
from medserve.inference.volume_pipeline import VolumePipeline
from medserve.results.seen import doubts_about_image
from medserve.tasks.result import DoubtReason
from tests.training.volumes.drawn import tiny_spec, write_folder
from training.volumes.data import find_cases, load_cases
from training.volumes.seen import main, measure_seen


def test_ranges_hold_every_case_that_they_were_measured_on(tmp_path: Path) -> None:
    spec = tiny_spec()
    cases = load_cases(find_cases(write_folder(tmp_path, 4)), VolumePipeline(spec))
    seen = measure_seen(cases, spec.labels)
    assert set(seen.label_ml) == set(spec.labels[1:])
    for each in cases:
        grid = each.inverse.grid
        size_mm = np.multiply(grid.shape, grid.spacing_mm)
        doubts = doubts_about_image(seen, each.image[0].numpy(), size_mm.tolist())
        # The limits of these two leave out 1 % of the cases.
        assert {each.reason for each in doubts} <= {DoubtReason.INTENSITIES, DoubtReason.LAYOUT}


@pytest.mark.data
def test_the_hippocampus_set_is_as_the_shipped_description_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = Path(os.environ.get("MEDSERVE_DATA", "")) / "Task04_Hippocampus.tar.gz"
    if not archive.is_file():
        pytest.skip("MEDSERVE_DATA names no folder with Task04_Hippocampus.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    main(["--data-dir", str(tmp_path / "Task04_Hippocampus")])
    printed = yaml.safe_load(capsys.readouterr().out)["seen"]
    config = Path(models.__file__).parent / "segmentation_3d/model-config.yaml"
    assert printed == yaml.safe_load(config.read_text("utf-8"))["medserve"]["volume"]["seen"]
    spec = models.spec("segmentation_3d")
    assert spec.volume is not None
    assert spec.volume.seen is not None
    for case in load_cases(find_cases(tmp_path / "Task04_Hippocampus")[::8], VolumePipeline(spec)):
        image = case.image[0].numpy()
        for other in (1.0 - image, *(np.flip(image, axis).copy() for axis in range(3))):
            reasons = {each.reason for each in doubts_about_image(spec.volume.seen, other, None)}
            assert DoubtReason.LAYOUT in reasons  # inverted, and mirrored along any axis
