"""Which volumes an evaluation measures, and what it says about an odd folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medserve.errors import ConfigError
from tests.training.volumes.drawn import LABELS, write_folder
from training.volumes.references import find_references


def test_the_cases_of_a_decathlon_are_found(tmp_path: Path) -> None:
    found = find_references(write_folder(tmp_path, 3), LABELS)
    assert [case.name for case in found.cases] == ["case_00", "case_01", "case_02"]
    assert found.cases[1].mask == tmp_path / "labelsTr" / "case_01.nii.gz"
    assert found.remarks == ()


@pytest.mark.parametrize("masks", ["labels", "masks"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_the_cases_of_two_folders_are_found(tmp_path: Path, masks: str, suffix: str) -> None:
    found = find_references(
        write_folder(tmp_path, 2, names=("images", masks), suffix=suffix), LABELS
    )
    assert [case.images[0].name for case in found.cases] == [f"case_00{suffix}", f"case_01{suffix}"]


def test_volumes_that_the_list_has_and_the_folder_has_not_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path, 3)
    for role in ("imagesTr", "labelsTr"):
        (tmp_path / role / "case_01.nii.gz").unlink()
    found = find_references(tmp_path, LABELS)
    assert [case.name for case in found.cases] == ["case_00", "case_02"]
    (remark,) = found.remarks
    assert "1 of 3" in remark
    assert "case_01" in remark


def test_volumes_that_the_list_has_not_are_measured_and_named(tmp_path: Path) -> None:
    write_folder(tmp_path, 3)
    listed = json.loads((tmp_path / "dataset.json").read_text(encoding="utf-8"))
    del listed["training"][2]
    (tmp_path / "dataset.json").write_text(json.dumps(listed), encoding="utf-8")
    found = find_references(tmp_path, LABELS)
    assert len(found.cases) == 3
    assert "does not list; they were measured: case_02" in found.remarks[0]


@pytest.mark.parametrize(("role", "missing"), [("labelsTr", "mask"), ("imagesTr", "image")])
def test_half_a_pair_is_refused_by_name(tmp_path: Path, role: str, missing: str) -> None:
    write_folder(tmp_path, 3)
    (tmp_path / role / "case_01.nii.gz").unlink()
    with pytest.raises(ConfigError, match=rf"1 volume\(s\) without {missing}: case_01;"):
        find_references(tmp_path, LABELS)


def test_a_volume_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, 1)
    (tmp_path / "imagesTr" / "case_00.nii").write_bytes(b"")
    with pytest.raises(ConfigError, match="case_00 is there twice"):
        find_references(tmp_path, LABELS)


def test_files_that_are_no_volumes_are_left_aside(tmp_path: Path) -> None:
    write_folder(tmp_path, 1)
    for name in ("._case_00.nii.gz", "README.txt"):
        (tmp_path / "imagesTr" / name).write_bytes(b"")
    assert len(find_references(tmp_path, LABELS).cases) == 1


def test_a_folder_above_the_right_one_is_refused_with_a_hint(tmp_path: Path) -> None:
    write_folder(tmp_path / "Task99", 1)
    with pytest.raises(ConfigError, match=r"did you mean .*Task99"):
        find_references(tmp_path, LABELS)


def test_labels_in_another_order_than_the_models_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, 1)
    with pytest.raises(ConfigError, match="expected label 'Head' to be 2 as in the model"):
        find_references(tmp_path, ("background", "tail", "head"))


def test_labels_of_other_names_are_remarked(tmp_path: Path) -> None:
    write_folder(tmp_path, 1)
    found = find_references(tmp_path, ("background", "anterior", "posterior"))
    assert "labels that the model does not: Head, Tail" in found.remarks[0]


def test_a_damaged_list_is_left_aside_with_a_remark(tmp_path: Path) -> None:
    write_folder(tmp_path, 1)
    (tmp_path / "dataset.json").write_text("{", encoding="utf-8")
    found = find_references(tmp_path, LABELS)
    assert len(found.cases) == 1
    assert "could not be understood" in found.remarks[0]


def test_volumes_of_one_person_share_a_subject(tmp_path: Path) -> None:
    write_folder(tmp_path, 2)
    (tmp_path / "subjects.csv").write_text("name,subject\ncase_00,A\ncase_01,A\n", encoding="utf-8")
    assert {case.subject for case in find_references(tmp_path, LABELS).cases} == {"A"}
