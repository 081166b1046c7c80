"""MedNet: its shape follows from its keys, and its training from its rule."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import models
from medserve.errors import ConfigError
from models.mednist.mednet import MedNet, MedNetShape
from tests.training.drawn import LABELS, class_folders
from training import mednet
from training.classification import ship as shipping
from training.classification.data import LabelledImages
from training.core.config import TrainPrecision, run
from training.mednet import MedNetConfig, MedNetTraining

TINY = MedNetConfig(
    num_convs1=2, conv_size1=5, num_convs2=3, conv_size2=3, pool=4, fc_size1=8, fc_size2=8,
    batch_size=5, max_epochs=2, precision=TrainPrecision.F32, threads=1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "inputs"),
    [
        (MedNetShape(), 16 * 13 * 13),  # 64 -> 60 -> 30 -> 26 -> 13
        (MedNetShape(conv_size1=7, num_convs2=10, conv_size2=7, pool=1), 10 * 52 * 52),
        (MedNetShape(side=28, conv_size1=4, conv_size2=3, pool=3, num_convs2=7), 7 * 2 * 2),
    ],
)
def test_the_first_linear_layer_fits_what_the_convolutions_leave(
    shape: MedNetShape, inputs: int
) -> None:
    network = MedNet(5, shape)
    assert network.fc1.in_features == shape.fc_inputs == inputs
    assert network(torch.rand(2, 1, shape.side, shape.side)).shape == (2, 5)


def test_kernels_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="leave something of 64 pixels, got 60, 9 and 2"):
        MedNet(6, MedNetShape(conv_size1=60, conv_size2=9))


@pytest.fixture
def unevenly_many() -> LabelledImages:
    """Thirteen images: two batches of five and a last one of three."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (13, 64, 64), dtype=np.uint8)
    label_ids = np.arange(13, dtype=np.int64) % len(LABELS)
    return LabelledImages(pixels, label_ids, tuple(map(str, range(13))), LABELS)


def test_the_last_batch_counts_though_it_is_short(
    unevenly_many: LabelledImages, tmp_path: Path
) -> None:
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0, 0.5])
    torch.manual_seed(0)
    module = MedNetTraining(MedNet(6, TINY.shape), TINY, weights)
    mednet.fit_by_rule(module, unevenly_many, unevenly_many, tmp_path)
    last = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    module.load_state_dict(last["state_dict"])
    with torch.no_grad():
        logits = module.network(torch.from_numpy(unevenly_many.images)[:, None].float() / 255.0)
    label_ids = torch.from_numpy(unevenly_many.label_ids)
    errors = int((logits.argmax(dim=1) != label_ids).sum())
    assert module.history[-1]["validation_errors"] == errors
    loss = float(F.cross_entropy(logits, label_ids, weight=weights))  # of all thirteen at once
    assert module.history[-1]["validation_loss"] == pytest.approx(loss, rel=1e-4)


def test_training_ends_by_the_ratio_and_goes_on_where_it_was(
    unevenly_many: LabelledImages, tmp_path: Path
) -> None:
    always_apart = MedNetConfig(
        **{**vars(TINY), "t2v_ratio": 0.0, "t2v_epochs": 3, "max_epochs": 2}
    )
    first = MedNetTraining(MedNet(6, TINY.shape), always_apart, torch.ones(6))
    mednet.fit_by_rule(first, unevenly_many, unevenly_many, tmp_path)
    assert [epoch["epochs_apart"] for epoch in first.history] == [1, 2]
    longer = MedNetConfig(**{**vars(always_apart), "max_epochs": 9, "resume": True})
    second = MedNetTraining(MedNet(6, TINY.shape), longer, torch.ones(6))
    mednet.fit_by_rule(second, unevenly_many, unevenly_many, tmp_path)
    assert [epoch["epochs_apart"] for epoch in second.history] == [1, 2, 3]  # not 9 epochs


@pytest.mark.training
def test_a_training_leaves_an_artifact_of_the_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = class_folders(tmp_path / "drawn", count=24)
    flags = ["--data-dir", str(folders), "--out-dir", str(tmp_path / "run"), "--max-epochs", "2"]
    flags += ["--batch-size", "16", "--precision", "32-true", "--threads", "1"]
    assert run(mednet.main, MedNetConfig, flags) == 0
    metrics = json.loads((tmp_path / "run/artifact/metrics.json").read_text())
    assert metrics["version"] == models.spec("mednist", "mednet").version
    with (tmp_path / "run/training.csv").open(newline="") as stream:
        assert [row["epoch"] for row in csv.DictReader(stream)] == ["1", "2"]
    assert not (tmp_path / "run/examples").exists()  # a variant has those of its room
    artifact = tmp_path / "run/artifact"
    monkeypatch.setattr(models, "room", lambda name, variant="": tmp_path / (variant or name))
    known = tmp_path / "mednist/weights/split.csv"
    known.parent.mkdir(parents=True)
    for split, is_kept in (
        (b"of other images", True),
        ((artifact / "split.csv").read_bytes(), False),
    ):
        known.write_bytes(split)
        shipping.install(artifact, "mednist", "mednet")
        assert (tmp_path / "mednet/weights/split.csv").exists() is is_kept
        installed = (tmp_path / "mednet/weights/model.onnx").read_bytes()
        assert installed == (artifact / "model.onnx").read_bytes()
