"""The whole way of the cell network's training, on cells drawn by code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import models
from medserve.imaging.codecs import sniff
from medserve.inference.engines import load_engine
from medserve.inference.fit import fit_lanczos
from medserve.spec import EngineName, Precision
from models.blood_cell.network import BloodCellNet
from tests.training.classification.drawn_cells import LABELS, cell_folders
from training import blood_cell, evaluate
from training.classification import ship as shipping
from training.classification.cells import CellAugment, CellClassifier
from training.core.config import run


def train(data_dir: Path, out_dir: Path, *more: str) -> int:
    """The smallest training that learns something; the exit code."""
    places = ("--data-dir", str(data_dir), "--out-dir", str(out_dir))
    size = ("--width", "4", "--epochs", "2", "--batch-size", "32", "--precision", "32-true")
    return run(blood_cell.main, blood_cell.TrainConfig, [*places, *size, *more])


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Fewer than the features of a class would leave its covariance without an inverse.
    return cell_folders(tmp_path_factory.mktemp("cells"), count=48)


@pytest.fixture(scope="module")
def out_dir(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert train(data_dir, folder) == 0
    return folder


@pytest.mark.training
def test_a_training_leaves_everything_that_a_room_ships(out_dir: Path) -> None:
    missing = [n for n in shipping.ARTIFACT_FILES if not (out_dir / "artifact" / n).is_file()]
    assert missing == []
    examples = sorted((out_dir / "examples").iterdir())
    assert [path.stem for path in examples] == sorted(LABELS)
    assert np.asarray(Image.open(examples[0])).shape == (128, 128, 3)


@pytest.mark.training
def test_metrics_are_those_of_the_held_out_part_under_the_real_names(out_dir: Path) -> None:
    metrics = json.loads((out_dir / "artifact" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["labels"] == list(LABELS)
    assert metrics["per_class"]["immature_granulocyte"]["n"] == 5
    assert (metrics["n"], metrics["training"]["validation_images"]) == (40, 16)
    assert (out_dir / "report" / "report.html").is_file()


@pytest.mark.training
def test_every_engine_reproduces_the_golden_answer_of_several_views(out_dir: Path) -> None:
    folder = out_dir / "artifact"
    spec = models.spec("blood_cell")
    image = sniff.decode((folder / "golden_input.png").read_bytes(), spec.input)
    golden = np.load(folder / "golden_output.npz", allow_pickle=False)
    for name in EngineName:
        engine = load_engine(name, folder, precision=Precision.F32, threads=1)
        outputs = engine.run(fit_lanczos(image, (128, 128))[np.newaxis])
        for key in ("logits", "novelty"):
            assert np.abs(outputs[key] - golden[key]).max() <= golden["tolerance"]


@pytest.mark.training
def test_the_artifact_is_evaluated_on_folders_of_the_archive(
    data_dir: Path, out_dir: Path, tmp_path: Path
) -> None:
    flags = ("--data-dir", str(data_dir), "--weights", str(out_dir / "artifact"))
    arguments = ("blood_cell", *flags, "--out", str(tmp_path), "--threads", "1")
    assert run(evaluate.main, evaluate.EvaluateConfig, arguments) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["n"] == 48 * 8


def test_a_number_of_views_that_is_no_group_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, tmp_path, "--views", "3") == 2
    message = capsys.readouterr().err
    assert "expected --views to be one of (1, 4, 8), got 3" in message
    assert message.count("\n") == 1


def module(epochs: int, small_share: float) -> CellClassifier:
    config = blood_cell.TrainConfig(epochs=epochs)
    augment = CellAugment(window=32, side=32)
    return CellClassifier(
        BloodCellNet(width=4, window=32, side=32), config, augment, 0.05, 16, small_share
    )


def sides(module: CellClassifier, epochs: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pixels of the images that each epoch learns from."""
    found = []
    for epoch in range(epochs):
        monkeypatch.setattr(CellClassifier, "current_epoch", epoch)
        module.on_train_epoch_start()
        shown = module.augment(torch.zeros(2, 3, 64, 64), module.draws)
        found.append(int(shown.shape[2]))
    return found


def test_the_first_epochs_see_smaller_images(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sides(module(5, 0.6), 5, monkeypatch) == [16, 16, 16, 32, 32]


def test_without_a_share_all_epochs_see_full_images(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sides(module(3, 0.0), 3, monkeypatch) == [32, 32, 32]
