"""Every command of the guide to training is run by a test, on a set that is small."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import models
from medserve.spec import Task
from tests.archives import packaged
from tests.training.classification.drawn_cells import labelled
from tests.training.drawn import LABELS, picture
from tests.training.guide import GUIDE, command_of, documented, guided
from tests.training.volumes.drawn import write_folder
from training import comparison, evaluate, robustness
from training.classification.data import read_split
from training.core.config import run

_TESTS = Path(__file__).parent
_TOO_FEW = "training.quality trus_prostate"  # it fits a regression to more frames than are drawn
_RUN = re.compile(r"guided\(\s*\"([^\"]+)\"")


def test_every_command_of_the_guide_is_run_by_a_test() -> None:
    sources = [path.read_text(encoding="utf-8") for path in _TESTS.rglob("test_*.py")]
    run_by_tests = {command_of(words) for source in sources for words in _RUN.findall(source)}
    asked = {command for command in documented(GUIDE) if not command.endswith("--help")}
    assert asked - run_by_tests == {command_of(_TOO_FEW)}
    assert len(asked) > 15


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the paths of the page lead to."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.cpu
def test_volumes_are_measured_by_the_artifact_of_a_training(folder: Path) -> None:
    write_folder(folder / "DIR", 2)
    shutil.copytree(models.room("segmentation_3d") / "weights", folder / "runs/artifact")
    flags = guided(
        "training.evaluate segmentation_3d", "--weights", "runs/artifact", "--out", "out"
    )
    assert run(evaluate.main, evaluate.EvaluateConfig, flags) == 0
    assert json.loads((folder / "out/metrics.json").read_text(encoding="utf-8"))["n"] == 2


@pytest.mark.cpu
def test_pictures_of_an_npz_are_measured(folder: Path) -> None:
    images = labelled(1, side=28)
    np.savez("bloodmnist.npz", test_images=images.images, test_labels=images.label_ids[:, None])
    flags = guided("training.evaluate blood_cell", "--out", "out", "--threads", "1")
    assert run(evaluate.main, evaluate.EvaluateConfig, flags) == 0
    assert json.loads((folder / "out/metrics.json").read_text(encoding="utf-8"))["n"] == 8


@pytest.mark.cpu
def test_the_versions_of_a_room_are_compared(folder: Path) -> None:
    held_out = read_split(models.room("mednist") / "weights" / "split.csv")
    tested = [path for path, part in held_out.items() if part == "test"]
    draws = np.random.default_rng(0)
    for label_id, label in enumerate(LABELS):
        name = folder / "data/MedNIST" / next(each for each in tested if each.startswith(label))
        name.parent.mkdir(parents=True)
        Image.fromarray(picture(label_id, draws)).save(name)
    flags = guided("training.comparison", "--out-dir", "out")
    assert run(comparison.main, comparison.ComparisonConfig, flags) == 0
    content = json.loads((folder / "out/comparison.json").read_text(encoding="utf-8"))
    assert [row["version"] for row in content["versions"]] == ["1.0", "1.0-mednet", "1.0-svm"]
    assert content["n"] == len(LABELS)


@pytest.mark.archive
def test_an_archive_is_shown_spoilt_volumes(folder: Path) -> None:
    pytest.importorskip("ts", reason="needs the serve extra")
    packaged("segmentation_3d", folder / "store").rename("liver-1.0.mar")
    write_folder(folder / "UNSEEN", 1)
    flags = guided("training.robustness UNSEEN", "--n", "1", "--out-dir", "out")
    flags[0] = "liver-1.0.mar"
    assert run(robustness.main, robustness.RobustnessConfig, flags) == 0
    content = json.loads((folder / "out/robustness.json").read_text(encoding="utf-8"))
    assert (content["n"], len(content["rows"])) == (1, len(robustness.changes_of(Task.VOLUMES)))
