from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from annotation.manifest import write_grey
from medserve.errors import ConfigError
from medserve.inference.frame_pipeline import FramePipeline
from tests.training.frames.drawn import SHAPE, frame_spec, write_frames
from training.core.split import read_split, write_split
from training.frames.data import (
    FrameCase,
    find_frames,
    load_frames,
    mask_shares,
    read_mask,
    split_frames,
)


def test_frames_and_masks_of_one_name_are_pairs_of_one_patient(tmp_path: Path) -> None:
    cases = find_frames(write_frames(tmp_path, patients=3, frames=2))
    assert [case.name for case in cases] == ["p0_0", "p0_1", "p1_0", "p1_1", "p2_0", "p2_1"]
    assert cases[2].patient == cases[3].patient == "patient 1"
    assert cases[2].image.name == cases[2].mask.name == "p1_0.png"


def test_a_published_table_of_look_alikes_counts_as_patients(tmp_path: Path) -> None:
    write_frames(tmp_path, patients=2, frames=2)
    (tmp_path / "patients.csv").unlink()
    rows = ["file,class,near_duplicate_group", "p0_0.png,a,7", "p0_1.png,a,8", "p1_0.png,b,7",
            "p1_1.png,b,9"]  # fmt: skip
    (tmp_path / "index.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert [case.patient for case in find_frames(tmp_path)] == ["7", "8", "7", "9"]


def test_without_a_table_every_frame_is_its_own_patient_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_frames(tmp_path, patients=2, frames=1)
    (tmp_path / "patients.csv").unlink()
    assert [case.patient for case in find_frames(tmp_path)] == ["p0_0", "p1_0"]
    assert "counts as its own patient" in caplog.text


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("masks/p1_0.png", r"1 of 4 files without their mask, the first is p1_0.png"),
        ("images/p0_1.png", r"1 of 4 files without their frame, the first is p0_1.png"),
    ],
)
def test_half_a_pair_is_refused_with_its_number(tmp_path: Path, gone: str, message: str) -> None:
    (write_frames(tmp_path, patients=2) / gone).unlink()
    with pytest.raises(ConfigError, match=message):
        find_frames(tmp_path)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    write_frames(tmp_path, patients=1)
    (tmp_path / "images" / "p0_0.jpg").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"p0_0.jpg and p0_0.png have one name"):
        find_frames(tmp_path)


def test_a_table_that_lacks_frames_is_refused_with_their_number(tmp_path: Path) -> None:
    write_frames(tmp_path, patients=2)
    (tmp_path / "patients.csv").write_text("name,patient\np0_0.png,a\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"3 of 4 are missing, the first is p0_1"):
        find_frames(tmp_path)


def test_a_table_with_other_columns_is_refused(tmp_path: Path) -> None:
    write_frames(tmp_path, patients=2)
    (tmp_path / "patients.csv").write_text("file,who\np0_0.png,a\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="expected the columns name,patient"):
        find_frames(tmp_path)


def test_a_folder_without_frames_is_refused(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="found none"):
        find_frames(tmp_path)


def test_frames_are_loaded_as_serving_prepares_them(tmp_path: Path) -> None:
    pipeline = FramePipeline(frame_spec((64, 96)))
    case = find_frames(write_frames(tmp_path))[0]
    [loaded] = load_frames([case], pipeline)
    assert loaded.plane.shape == loaded.mask.shape == (64, 96)
    assert loaded.inverse.source == SHAPE
    reference = read_mask(case, SHAPE)
    # 64 x 96 from 48 x 72: every length grows by 4 / 3.
    assert loaded.mask.sum() == pytest.approx(reference.sum() * (4 / 3) ** 2, rel=0.05)


def test_a_mask_of_other_sides_or_a_damaged_frame_is_refused_by_name(tmp_path: Path) -> None:
    pipeline = FramePipeline(frame_spec())
    first, second = find_frames(write_frames(tmp_path))[:2]
    write_grey(first.mask, np.zeros((20, 30), dtype=np.uint8))
    with pytest.raises(ConfigError, match=r"p0_0.png: expected the sides .* 72 x 48 pixels"):
        load_frames([first], pipeline)
    second.image.write_bytes(second.image.read_bytes()[:200])
    with pytest.raises(ConfigError, match=r"p0_1.png: cannot be read"):
        load_frames([second], pipeline)


def cases_of(patients: int, frames: int) -> tuple[list[FrameCase], dict[str, float]]:
    cases = [
        FrameCase(f"p{p}_{f}", Path("image"), Path("mask"), patient=f"patient {p}")
        for p in range(patients)
        for f in range(frames)
    ]
    shares = {case.name: 0.01 * int(case.name[1:].split("_")[0]) for case in cases}
    return cases, shares


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_patient_is_in_two_parts(seed: int) -> None:
    cases, shares = cases_of(patients=23, frames=3)
    split = split_frames(cases, shares, folds=4, test_share=0.2, seed=seed)
    patient_of = {case.name: case.patient for case in cases}
    parts = [{patient_of[name] for name in names} for names in (split.test, *split.folds)]
    assert sum(len(part) for part in parts) == len(set().union(*parts)) == 23
    assert sum(len(names) for names in (split.test, *split.folds)) == len(cases)


def test_every_part_has_small_and_large_structures() -> None:
    cases, shares = cases_of(patients=40, frames=2)
    split = split_frames(cases, shares, folds=4, test_share=0.25)
    for names in (split.test, *split.folds):
        mean = np.mean([shares[name] for name in names])
        assert mean == pytest.approx(np.mean(list(shares.values())), abs=0.03)


def test_the_draw_depends_on_the_seed_and_not_on_the_order() -> None:
    cases, shares = cases_of(patients=12, frames=2)
    split = split_frames(cases, shares, 3, 0.2, seed=1)
    assert split_frames(cases[::-1], shares, 3, 0.2, seed=1) == split
    assert split_frames(cases, shares, 3, 0.2, seed=2) != split


def test_too_few_patients_for_the_folds_are_refused() -> None:
    cases, shares = cases_of(patients=4, frames=5)
    with pytest.raises(ConfigError, match=r"--folds: expected 2 to 3, .* got 5"):
        split_frames(cases, shares, folds=5, test_share=0.2)


def test_a_split_is_read_as_it_was_written(tmp_path: Path) -> None:
    cases, shares = cases_of(patients=9, frames=2)
    split = split_frames(cases, shares, 3, 0.2)
    write_split(tmp_path / "split.csv", split)
    assert read_split(tmp_path / "split.csv") == split


def test_the_share_of_a_mask_is_that_of_its_pixels(tmp_path: Path) -> None:
    cases = find_frames(write_frames(tmp_path, patients=2, frames=1, empty=1))
    shares = mask_shares(cases)
    assert shares["p0_0"] == pytest.approx(np.pi * 10 * 14 / (48 * 72), rel=0.05)
    assert shares["p1_0"] == 0.0
