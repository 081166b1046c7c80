"""Members of a training of masks: which cases each sees, and what it was made with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from training.core import segmentation
from training.core.segmentation import Material, SegmentationConfig, read_material, train_member
from training.core.split import Split, read_split


@dataclass(frozen=True)
class Case:
    """A case that is its name."""

    name: str


SPLIT = Split(("t",), (("a", "b"), ("c",), ("d",)))
CASES = [Case(name) for name in "abcdt"]


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], list[str], Any]]:
    """Train part, validation part and settings of every fit."""
    seen: list[tuple[list[str], list[str], Any]] = []

    def pretend(module: Any, train: list[str], validation: list[str], folder: Path) -> None:
        seen.append((train, validation, module.config))

    monkeypatch.setattr(segmentation, "fit_segmentation", pretend)
    return seen


def material(config: SegmentationConfig) -> Material[Case, str]:
    return read_material(config, CASES, SPLIT, lambda cases: [each.name for each in cases])


def make(config: SegmentationConfig) -> Any:
    return SimpleNamespace(config=config)


def test_every_member_validates_on_a_fold_of_its_own_and_none_sees_the_test_part(
    tmp_path: Path, fitted: list[tuple[list[str], list[str], Any]]
) -> None:
    config = SegmentationConfig(out_dir=tmp_path, folds=3, fold=1, members=3, seed=5)
    read = material(config)
    for member in range(config.members):
        train_member(config, member, read, make)
    assert [validation for _, validation, _ in fitted] == [["c"], ["d"], ["a", "b"]]
    for train, validation, _ in fitted:
        assert sorted([*train, *validation]) == ["a", "b", "c", "d"]
    assert [settings.seed for *_, settings in fitted] == [5, 6, 7]
    stated = [json.loads((tmp_path / f"member_{n}/config.json").read_text()) for n in range(3)]
    assert [each["fold"] for each in stated] == [1, 2, 0]


def test_what_a_training_reads_is_stated_beside_it(tmp_path: Path) -> None:
    read = material(SegmentationConfig(out_dir=tmp_path, folds=3))
    assert read_split(tmp_path / "split.csv") == SPLIT
    assert json.loads((tmp_path / "config.json").read_text())["folds"] == 3
    assert set(read.loaded) == set("abcd")
    assert read.named(SPLIT.test) == [Case("t")]


def test_a_member_that_was_not_begun_is_not_resumed(
    tmp_path: Path, fitted: list[tuple[list[str], list[str], Any]]
) -> None:
    config = SegmentationConfig(out_dir=tmp_path, folds=3, resume=True)
    train_member(config, 0, material(config), make)
    (tmp_path / "member_1/checkpoints").mkdir(parents=True)
    (tmp_path / "member_1/checkpoints/last.ckpt").write_bytes(b"")
    train_member(config, 1, material(config), make)
    assert [settings.resume for *_, settings in fitted] == [False, True]
