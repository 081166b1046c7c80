"""The whole way of training, on images drawn by code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import models
from medserve.errors import ConfigError
from medserve.imaging.codecs import sniff
from medserve.inference.engines import load_engine
from medserve.inference.fit import fit_grey
from medserve.spec import EngineName, Precision
from models.mednist.network import MednistNet
from tests.training.drawn import LABELS, class_folders
from tests.training.guide import guided
from training import mednist
from training.classification import ship as shipping
from training.classification.augment import Augment
from training.classification.data import LabelledImages
from training.classification.fit import Classifier, fit_classifier
from training.core.config import run
from training.mednist import TrainConfig

pytestmark = pytest.mark.training


def flags(data_dir: Path, out_dir: Path, *more: str) -> list[str]:
    """Flags of the smallest training that learns something."""
    size = ["--width", "8", "--epochs", "3", "--batch-size", "16", "--precision", "32-true"]
    places = ["--data-dir", str(data_dir), "--out-dir", str(out_dir)]
    return guided("training.mednist", *places, *size, *more)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders(tmp_path_factory.mktemp("drawn"), count=24)


@pytest.fixture(scope="module")
def out_dir(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert run(mednist.main, TrainConfig, flags(data_dir, folder)) == 0
    return folder


def test_a_training_leaves_everything_that_a_room_ships(out_dir: Path) -> None:
    missing = [n for n in shipping.ARTIFACT_FILES if not (out_dir / "artifact" / n).is_file()]
    assert missing == []
    assert sorted(path.stem for path in (out_dir / "examples").iterdir()) == sorted(LABELS)


def test_a_training_leaves_checkpoints_logs_and_report(out_dir: Path) -> None:
    assert (out_dir / "checkpoints" / "best.ckpt").is_file()
    assert (out_dir / "checkpoints" / "last.ckpt").is_file()
    assert "validation_errors" in (out_dir / "logs/attempt_0/metrics.csv").read_text()
    assert list((out_dir / "logs/attempt_0").glob("events.out.tfevents.*"))
    assert (out_dir / "report" / "report.html").is_file()


def test_the_resolved_config_lies_beside_the_checkpoint(out_dir: Path) -> None:
    config = json.loads((out_dir / "config.json").read_text())
    assert (config["width"], config["epochs"], config["seed"]) == (8, 3, 0)


def test_metrics_are_those_of_the_held_out_part(out_dir: Path) -> None:
    metrics = json.loads((out_dir / "artifact" / "metrics.json").read_text())
    assert metrics["n"] == 6 * 2
    assert metrics["training"]["train_images"] == 6 * 20


def test_the_golden_input_gives_the_golden_output(out_dir: Path) -> None:
    folder = out_dir / "artifact"
    spec = models.spec("mednist")
    image = sniff.decode((folder / "golden_input.png").read_bytes(), spec.input)
    golden = np.load(folder / "golden_output.npz", allow_pickle=False)
    for name in EngineName:
        runner = load_engine(name, folder, precision=Precision.F32, threads=1)
        outputs = runner.run(fit_grey(image, (64, 64))[np.newaxis])
        for key in ("logits", "novelty"):
            difference = np.abs(outputs[key] - golden[key]).max()
            assert difference <= golden["tolerance"]


def test_the_golden_input_is_not_of_the_size_of_the_network(out_dir: Path) -> None:
    with Image.open(out_dir / "artifact" / "golden_input.png") as golden:
        assert not {64} & set(golden.size)  # so that resampling is proven, too


def test_a_finished_training_can_be_resumed_for_more_epochs(data_dir: Path, out_dir: Path) -> None:
    more = guided("training.mednist --resume", *flags(data_dir, out_dir, "--epochs", "4"))
    assert run(mednist.main, TrainConfig, more) == 0
    last = torch.load(out_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 3


def test_there_is_nothing_to_resume_in_a_new_folder(
    drawn_images: LabelledImages, tmp_path: Path
) -> None:
    module = Classifier(MednistNet(width=4), TrainConfig(resume=True), Augment(), 0.0)
    with pytest.raises(ConfigError, match="leave out --resume"):
        fit_classifier(module, drawn_images, drawn_images, tmp_path)


def test_installing_copies_artifact_and_examples_into_the_room(
    out_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "room", lambda name: tmp_path)
    shipping.install(out_dir / "artifact", "mednist")
    for name in shipping.ARTIFACT_FILES:
        installed = (tmp_path / "weights" / name).read_bytes()
        assert installed == (out_dir / "artifact" / name).read_bytes()
    assert np.asarray(Image.open(tmp_path / "examples" / "CXR.png")).shape == (64, 64)
