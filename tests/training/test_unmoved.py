"""Digests of what must not move when the code around it does: splits, and the shipped files.

A split decides which images a published figure is about. One that moves makes every figure of a
card a figure of other images, so a change of these digests needs new weights and new figures.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

import models
from medserve.archive.reference import REFERENCE
from tests.training.drawn import LABELS
from training.classification.data import LabelledImages, split, write_split
from training.core.split import write_split as write_folds
from training.frames.data import FrameCase, split_frames
from training.volumes.data import Case, split_cases

_SHIPPED = {
    "blood_cell": "1ab314a736d4857e",
    "blood_cell/variants/efficientnet": "92c9fad09364985d",
    "diffusion_sampler": "10da215c038b21f1",
    "diffusion_sampler/variants/cells": "f0867fd9d0d57085",
    "mednist": "586a6156910699a8",
    "mednist/variants/mednet": "080b0e56c13f82f2",
    "mednist/variants/svm": "012cdb033fed04b4",
    "segmentation_3d": "87e20fd8c0ab6ae6",
    "segmentation_3d/variants/cenet": "1dd12c5e05b14d50",
    "segmentation_3d/variants/vnet": "cb78dfa12b3adc34",
    "trus_prostate": "b183951824fe03e3",
    "trus_prostate/variants/busi": "7e9b80b8fcaee819",
    "trus_prostate/variants/lesion-sim": "dbca59fe7bb083f4",
}


def digest(*paths: Path) -> str:
    """The start of the SHA-256 of the names and contents of some files."""
    found = hashlib.sha256()
    for path in paths:
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


@pytest.mark.parametrize("room", _SHIPPED)
def test_the_shipped_weights_and_their_split_are_those_that_were_published(room: str) -> None:
    folder = Path(models.__file__).parent / room / "weights"
    files = {path.name: path for path in folder.iterdir()}
    files.pop(REFERENCE, None)  # what drift is measured against; made of the weights, any time
    assert digest(*(files[name] for name in sorted(files))) == _SHIPPED[room]


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((0.1, None), "72a3d1bf49fda0fb"),
        ((0.1, 0.05), "a52e45469aa41e8e"),
        ((0.3, 0.1), "5a0b1fd6cbb0ef83"),
    ],
)
def test_images_are_split_as_ever(
    shares: tuple[float, float | None], expected: str, tmp_path: Path
) -> None:
    generator = np.random.default_rng(7)
    pixels = generator.integers(0, 256, (180, 8, 8), dtype=np.uint8)
    pixels[40:60] = pixels[20:40]  # copies, which all go to train
    label_ids = np.sort(generator.integers(0, len(LABELS), 180))
    paths = tuple(f"{LABELS[label_id]}/{n:04d}.png" for n, label_id in enumerate(label_ids))
    images = LabelledImages(pixels, label_ids, paths, LABELS)
    write_split(tmp_path / "split.csv", images, split(images, 3, *shares))
    assert digest(tmp_path / "split.csv") == expected


@pytest.mark.parametrize(
    ("folds", "test_share", "expected"),
    [(11, 0.154, "f32e32f121a8a03d"), (5, 0.2, "d17f4b13a4e9cd15"), (3, 0.0, "eaeb10b1ee48a869")],
)
def test_volumes_are_dealt_as_ever(
    folds: int, test_share: float, expected: str, tmp_path: Path
) -> None:
    cases = []
    for n in range(70):
        path = tmp_path / f"case_{n:02d}.nii"
        path.write_bytes(b"x" * (100 + 37 * n % 2000))
        cases.append(Case(path.stem, (path,), path, subject=f"subject_{n % 55:02d}"))
    write_folds(tmp_path / "split.csv", split_cases(cases, folds, test_share, seed=2))
    assert digest(tmp_path / "split.csv") == expected


@pytest.mark.parametrize(
    ("folds", "test_share", "expected"),
    [(5, 0.2, "576f4c116bfacba7"), (4, 0.25, "986cfdd63bb0cfdd"), (2, 0.0, "97f0b79c30bd834b")],
)
def test_frames_are_dealt_as_ever(
    folds: int, test_share: float, expected: str, tmp_path: Path
) -> None:
    nowhere = Path("nowhere.png")
    cases = [FrameCase(f"f{n:03d}", nowhere, nowhere, f"patient {n % 31}") for n in range(124)]
    shares = {case.name: (n * 29 % 97) / 200 for n, case in enumerate(cases)}
    write_folds(tmp_path / "split.csv", split_frames(cases, shares, folds, test_share, seed=2))
    assert digest(tmp_path / "split.csv") == expected
