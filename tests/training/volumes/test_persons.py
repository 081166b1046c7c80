"""Volumes of one person are found where they stand under successive numbers, and only there."""

from __future__ import annotations

import itertools
import os
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import models
from medserve.errors import ConfigError
from medserve.imaging.codecs import nifti
from medserve.imaging.volume import Volume
from tests.training.volumes.drawn import case, tiny_spec
from training.core.config import run
from training.volumes.data import read_subjects
from training.volumes.persons import PersonsConfig, compare_neighbours, main

_COUNT = 24


def write(folder: Path, person_of: npt.NDArray[np.int64]) -> Path:
    """Volumes numbered from 1; those of one person share a texture, shifted by a voxel."""
    for role in ("images", "masks"):
        (folder / role).mkdir(parents=True)
    for n, person in enumerate(person_of, start=1):
        volume, mask = case(0)
        texture = np.random.default_rng(person).normal(0.0, 12.0, volume.array.shape)
        noise = np.random.default_rng(1000 + n).normal(0.0, 8.0, volume.array.shape)
        bright = 40.0 + 20.0 * mask + texture + noise
        for role, array in (("images", bright.astype(np.float32)), ("masks", mask)):
            payload = nifti.encode(Volume(np.roll(array, n % 2, axis=1), volume.geometry))
            (folder / role / f"case_{n:03d}.nii.gz").write_bytes(payload)
    return folder


def find(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setattr(models, "spec", lambda name, variant="": tiny_spec())
    assert run(main, PersonsConfig, ["--data-dir", str(folder)]) == 0
    return read_subjects(folder / "subjects.csv")


@pytest.mark.parametrize("first", [0, 1])
def test_pairs_are_found_whichever_number_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    numbers = np.arange(1, _COUNT + 1)
    person = (numbers - first) // 2
    subjects = find(write(tmp_path / "data", person), monkeypatch)
    assert len(subjects) == _COUNT
    for one, other in itertools.pairwise(numbers):
        same = subjects[f"case_{one:03d}"] == subjects[f"case_{other:03d}"]
        assert same == (person[one - 1] == person[other - 1])


def test_nothing_is_written_where_neighbours_are_strangers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "data", np.arange(_COUNT))
    assert find(folder, monkeypatch) == {}
    assert not (folder / "subjects.csv").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([f"case_{n}" for n in range(1, 40, 2)], "at least 8 pairs"),
        (["anna", "bert"], "names that end in a number, got anna"),
    ],
)
def test_a_set_that_is_numbered_otherwise_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare_neighbours(names, np.eye(len(names), dtype=np.float32))


@pytest.mark.data
def test_the_hippocampus_set_numbers_both_sides_of_a_person_odd_first(tmp_path: Path) -> None:
    archive = Path(os.environ.get("MEDSERVE_DATA", "")) / "Task04_Hippocampus.tar.gz"
    if not archive.is_file():
        pytest.skip("MEDSERVE_DATA names no folder with Task04_Hippocampus.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    folder = tmp_path / "Task04_Hippocampus"
    assert run(main, PersonsConfig, ["--data-dir", str(folder)]) == 0
    subjects = read_subjects(folder / "subjects.csv")
    assert len(subjects) == 208
    assert len(set(subjects.values())) == 148  # 60 of them with both sides
    for name, subject in subjects.items():
        number, first = (int(each.rsplit("_", 1)[1]) for each in (name, subject))
        assert (first - 1) // 2 == (number - 1) // 2
