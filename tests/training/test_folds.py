"""A cross-validation: every image is answered once, by a network that did not see it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve.errors import ConfigError
from tests.training.classification.drawn_cells import cell_folders
from tests.training.drawn import LABELS, class_folders
from tests.training.guide import guided
from training import folds, mednist
from training.classification.data import LabelledImages
from training.core.config import run


def drawn(label_ids: list[int], pixels: list[int]) -> LabelledImages:
    """Images of one grey level each, under the labels a to c."""
    images = np.array(pixels, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    names = tuple(f"{number:03d}.png" for number in range(len(pixels)))
    return LabelledImages(images, np.array(label_ids, dtype=np.int64), names, ("a", "b", "c"))


@given(st.data(), st.integers(2, 4))
@settings(max_examples=40, deadline=None)
def test_every_image_is_in_one_part_and_no_copy_on_both_sides(data: st.DataObject, n: int) -> None:
    label_ids = [0, 1, 2] * 12
    levels = data.draw(st.lists(st.integers(0, 60), min_size=36, max_size=36))
    levels[:12] = [61 + number // 3 for number in range(12)]  # four that differ, of every label
    images = drawn(label_ids, [66 * k + level for k, level in zip(label_ids, levels, strict=True)])
    parts = folds.deal_out(images, n, seed=3)
    assert sorted(np.concatenate(parts).tolist()) == list(range(36))
    seen = [set(images.images[part, 0, 0].tolist()) for part in parts]
    assert sum(map(len, seen)) == len(set.union(*seen))


def test_parts_do_not_depend_on_the_order_of_reading() -> None:
    images = drawn([0, 1, 2] * 8, list(range(24)))
    shuffled = images.take(np.random.default_rng(0).permutation(24))
    for one, other in zip(
        folds.deal_out(images, 3, 0), folds.deal_out(shuffled, 3, 0), strict=True
    ):
        assert {images.paths[i] for i in one} == {shuffled.paths[i] for i in other}


def test_a_class_with_fewer_images_than_folds_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"at least 5 different images of every class.*got 4 of c"
    ):
        folds.deal_out(drawn([0] * 6 + [1] * 6 + [2] * 4, list(range(16))), 5, 0)


def test_a_label_is_doubtful_where_another_is_as_sure_as_its_own_images_are() -> None:
    shares = np.array(
        [
            [0.90, 0.10],  # mean of label 0 with the last: 0.6
            [0.80, 0.20],
            [0.10, 0.90],  # mean of label 1: 0.7
            [0.45, 0.55],  # label 1, and neither mean is reached
            [0.35, 0.65],  # label 1, the same
            [0.10, 0.90],  # label 0, but as sure as any of label 1
        ]
    )
    label_ids = np.array([0, 0, 1, 1, 1, 0])
    answered = folds.Answered(tuple("abcdef"), label_ids, shares)
    assert folds.doubtful(answered).tolist() == [5]


@pytest.fixture(scope="module")
def mislabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn images, of which one lies in the folder of another class."""
    folder = class_folders(tmp_path_factory.mktemp("images"), count=24)
    shutil.move(folder / LABELS[0] / "000.png", folder / LABELS[5] / "moved.png")
    return folder


@pytest.mark.training
def test_the_documented_command_finds_a_wrong_label_and_goes_on(
    mislabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = guided(
        "training.folds mednist", "--data-dir", mislabelled, "--out-dir", tmp_path / "out",
        "--folds", 2, "--epochs", 16, "--width", 4, "--batch-size", 16, "--precision", "32-true",
        "--threads", 1,
    )  # fmt: skip
    assert run(folds.main, object, flags, read=folds.read) == 0
    found = json.loads((tmp_path / "out/folds.json").read_text(encoding="utf-8"))
    assert found["n"] == 144
    assert sum(each["n"] for each in found["folds"]) == 144
    assert sum(each["errors"] for each in found["folds"]) == found["errors"]
    with (tmp_path / "out/answers.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len({row["path"] for row in rows}) == 144
    shares = np.array([[float(row[name]) for name in LABELS] for row in rows])
    truth = np.array([LABELS.index(row["label"]) for row in rows])
    assert (shares.argmax(axis=1) != truth).sum() == found["errors"]
    with (tmp_path / "out/doubtful.csv").open(encoding="utf-8") as stream:
        doubts = {row["path"]: row["answer"] for row in csv.DictReader(stream)}
    assert doubts[f"{LABELS[5]}/moved.png"] == LABELS[0]
    assert "moved.png" in (tmp_path / "out/folds.html").read_text(encoding="utf-8")

    monkeypatch.delattr(mednist, "fit")  # a finished fold is not trained again
    (tmp_path / "out/folds.json").unlink()
    assert run(folds.main, object, flags, read=folds.read) == 0
    again = json.loads((tmp_path / "out/folds.json").read_text(encoding="utf-8"))
    assert again == found
    assert run(folds.main, object, [*flags, "--seed", "1"], read=folds.read) == 2


@pytest.mark.training
def test_the_documented_command_judges_cells(tmp_path: Path) -> None:
    data_dir = cell_folders(tmp_path / "cells", count=6)
    flags = guided(
        "training.folds blood_cell", "--data-dir", data_dir, "--out-dir", tmp_path / "out",
        "--folds", 2, "--epochs", 1, "--width", 4, "--validation-share", 0.3,
        "--precision", "32-true", "--threads", 1,
    )  # fmt: skip
    assert run(folds.main, object, flags, read=folds.read) == 0
    found = json.loads((tmp_path / "out/folds.json").read_text(encoding="utf-8"))
    assert (found["n"], [each["n"] for each in found["folds"]]) == (48, [24, 24])
