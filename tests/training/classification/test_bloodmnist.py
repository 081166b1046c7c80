"""Pictures of 28 pixels: made as BloodMNIST makes them, and learnt from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medserve.errors import ConfigError
from tests.training.classification.drawn_cells import LABELS, labelled
from training.classification import bloodmnist
from training.classification.data import LabelledImages
from training.core.config import run


def test_the_middle_200_of_360_pixels_are_kept() -> None:
    pixels = np.zeros((1, 360, 360, 3), np.uint8)
    pixels[:, 80:280, 80:280] = 250
    images = LabelledImages(pixels, np.zeros(1, np.int64), ("platelet/1.png",), LABELS)
    shown = bloodmnist.shrunk(images).images
    assert shown.shape == (1, 28, 28, 3)
    assert (shown == 250).all()


def test_pictures_of_28_pixels_stay_as_they_are() -> None:
    images = labelled(1, side=28)
    assert bloodmnist.shrunk(images) is images


def test_smaller_pictures_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 28 pixels, got 20"):
        bloodmnist.shrunk(labelled(1, side=20))


@pytest.mark.training
def test_a_training_at_28_pixels_leaves_its_metrics(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {}
    for part, count in (("train", 6), ("val", 2), ("test", 2)):
        images = labelled(count, side=28)
        arrays[f"{part}_images"] = images.images
        arrays[f"{part}_labels"] = images.label_ids[:, None].astype(np.uint8)
    np.savez(tmp_path / "bloodmnist.npz", **arrays)
    size = ("--epochs", "2", "--batch-size", "16", "--width", "4", "--precision", "32-true")
    places = ("--data-dir", str(tmp_path / "bloodmnist.npz"), "--out-dir", str(tmp_path / "out"))
    assert run(bloodmnist.main, bloodmnist.SmallConfig, [*places, *size]) == 0
    content = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert (content["side"], content["n"], content["train_images"]) == (28, 16, 48)
    assert (tmp_path / "out" / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")
