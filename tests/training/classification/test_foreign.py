"""Pictures of other kinds, to measure the novelty on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.classification import foreign
from training.core.config import run

KINDS = {"photograph", "print", "noise", "blank", "gradient"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("foreign")
    flags = ["--out-dir", str(path), "--crops", "1", "--computed", "6"]
    assert run(foreign.main, foreign.ForeignConfig, flags) == 0
    return path


def test_each_kind_has_a_folder_of_pictures(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == KINDS
    for kind in KINDS:
        assert len(list((folder / kind).glob("*.png"))) >= 6


def test_a_blank_has_one_grey_level_and_noise_has_many(folder: Path) -> None:
    for path in (folder / "blank").iterdir():
        assert len(np.unique(np.asarray(Image.open(path)))) == 1
    for path in (folder / "noise").iterdir():
        assert len(np.unique(np.asarray(Image.open(path)))) > 50


@pytest.mark.cpu
def test_the_same_seed_writes_the_same_pictures(folder: Path, tmp_path: Path) -> None:
    flags = ["--out-dir", str(tmp_path), "--crops", "1", "--computed", "6"]
    run(foreign.main, foreign.ForeignConfig, flags)
    for path in folder.rglob("*.png"):
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes()
