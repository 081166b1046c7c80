"""Cases on disk: two layouts, whole pairs, and the grid that the network sees."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medserve.errors import ConfigError
from medserve.imaging.codecs import nifti
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume
from medserve.inference.volume_pipeline import VolumePipeline
from tests.training.volumes.drawn import CHANNELS, case, tiny_spec, write_channels, write_folder
from training.volumes.data import find_cases, load_cases

NAMES = ["case_00", "case_01", "case_02"]


def pipeline(**volume: object) -> VolumePipeline:
    return VolumePipeline(tiny_spec(**volume))


def test_the_decathlons_layout_is_read_by_its_dataset_json(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 3)
    (folder / "imagesTr" / "stray.nii.gz").write_bytes(b"")  # not listed: not a case
    cases = find_cases(folder)
    assert [each.name for each in cases] == NAMES
    assert cases[0].mask == folder / "./labelsTr/case_00.nii.gz"


@pytest.mark.parametrize("masks", ["masks", "labels"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_two_folders_are_paired_by_name(tmp_path: Path, masks: str, suffix: str) -> None:
    folder = write_folder(tmp_path, 3, names=("images", masks), suffix=suffix)
    cases = find_cases(folder)
    assert [each.name for each in cases] == NAMES
    assert {each.mask.parent.name for each in cases} == {masks}


@pytest.mark.parametrize(
    ("role", "message"), [("masks", "1 volume.* without mask.*case_01"),
                          ("images", "1 volume.* without image.*case_01")]
)  # fmt: skip
def test_half_a_pair_is_refused_by_name(tmp_path: Path, role: str, message: str) -> None:
    folder = write_folder(tmp_path, 3, names=("images", "masks"))
    (folder / role / "case_01.nii.gz").unlink()
    with pytest.raises(ConfigError, match=message):
        find_cases(folder)


def test_a_listed_mask_that_is_missing_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 3)
    (folder / "labelsTr" / "case_02.nii.gz").unlink()
    with pytest.raises(ConfigError, match="mask of case_02 is missing"):
        find_cases(folder)


def test_a_case_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 3)
    content = json.loads((folder / "dataset.json").read_text())
    content["training"].append(content["training"][0])
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="case_00 is listed twice"):
        find_cases(folder)


@pytest.mark.parametrize("content", ["", "[]", '{"training": [{"image": "a.nii"}]}'])
def test_a_dataset_json_of_another_kind_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ConfigError, match="expected a list 'training'"):
        find_cases(tmp_path)


def test_a_folder_of_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no folder of images .* and no dataset\.json"):
        find_cases(tmp_path)


def test_subjects_are_read_and_default_to_the_case(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 3)
    (folder / "subjects.csv").write_text("name,subject\ncase_00,anna\ncase_02,anna\n")
    assert [each.subject for each in find_cases(folder)] == ["anna", "case_01", "anna"]


def test_a_mask_on_another_grid_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 2)
    volume, mask = case(1)
    shifted = volume.geometry.crop((0, 1, 0), volume.geometry.shape)
    (folder / "labelsTr/case_01.nii.gz").write_bytes(nifti.encode(Volume(mask, shifted)))
    with pytest.raises(ConfigError, match=r"case_01.*expected the grid of its volume"):
        load_cases(find_cases(folder), pipeline())


def test_ids_that_are_no_labels_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 2)
    volume, mask = case(0)
    mask[2, 2, 2] = 7
    (folder / "labelsTr/case_00.nii.gz").write_bytes(nifti.encode(Volume(mask, volume.geometry)))
    with pytest.raises(ConfigError, match="expected label ids 0 to 2, got"):
        load_cases(find_cases(folder), pipeline())


def test_a_file_that_is_no_volume_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 2)
    (folder / "imagesTr/case_01.nii.gz").write_bytes(b"not a volume")
    with pytest.raises(ConfigError, match=r"case_01\.nii\.gz: cannot be read"):
        load_cases(find_cases(folder), pipeline())


def test_image_and_mask_lie_on_one_grid_of_the_rooms_spacing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 1, spacing_mm=(0.9, 1.25, 1.0))
    [loaded] = load_cases(find_cases(folder), pipeline())
    assert loaded.image.shape == (1, 18, 25, 17)
    assert loaded.image.dtype == torch.float32
    assert (float(loaded.image.min()), float(loaded.image.max())) == (0.0, 1.0)
    assert loaded.mask.shape == (18, 25, 17)
    means = [float(loaded.image[0][loaded.mask == label].mean()) for label in range(3)]
    assert means[0] < means[2] < means[1]  # as drawn: 10, 70, 40


def test_the_mask_turns_with_the_image_into_the_rooms_orientation(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 1)
    [upright] = load_cases(find_cases(folder), pipeline())
    [turned] = load_cases(find_cases(folder), pipeline(orientation="SLP"))
    expected = upright.mask.numpy().transpose(2, 0, 1)[:, ::-1, ::-1]
    np.testing.assert_array_equal(turned.mask.numpy(), expected)
    np.testing.assert_array_equal(
        turned.image.numpy()[0], upright.image.numpy()[0].transpose(2, 0, 1)[:, ::-1, ::-1]
    )
    assert turned.inverse.source == Geometry.from_spacing((18, 25, 17), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("in_one_file", [False, True])
def test_channels_in_one_file_or_in_several_are_one_case(tmp_path: Path, in_one_file: bool) -> None:
    cases = find_cases(write_channels(tmp_path, 3, in_one_file=in_one_file))
    assert [each.name for each in cases] == NAMES
    assert {len(each.images) for each in cases} == {1 if in_one_file else 2}
    [loaded] = load_cases(cases[:1], pipeline(channels=CHANNELS))
    assert loaded.image.shape[0] == 2
    t1, flair = loaded.image.numpy()
    assert (abs(float(t1.mean())) < 0.01, abs(float(t1.std()) - 1.0) < 0.01) == (True, True)
    assert (float(flair.min()), float(flair.max())) == (0.0, 1.0)
    mask = loaded.mask.numpy()
    assert t1[mask == 1].mean() > t1[mask == 2].mean()  # the first file is the first channel
    assert flair[mask == 2].mean() > flair[mask == 1].mean()


def test_a_case_that_lacks_a_channel_is_refused_by_name(tmp_path: Path) -> None:
    write_channels(tmp_path, 2)
    (tmp_path / "imagesTr/case_01_0000.nii.gz").unlink()
    with pytest.raises(ConfigError, match=r"case_01: expected its channels from _0000 on"):
        find_cases(tmp_path)


def test_cases_of_other_channels_than_the_room_names_are_refused_by_name(tmp_path: Path) -> None:
    cases = find_cases(write_channels(tmp_path / "two", 2))
    with pytest.raises(ConfigError, match=r"case_00\.nii\.gz: .*expected 2 images \(t1, flair\)"):
        load_cases(find_cases(write_folder(tmp_path / "one", 2)), pipeline(channels=CHANNELS))
    with pytest.raises(ConfigError, match=r"case_00_0000\.nii\.gz"):
        load_cases(cases, pipeline())


def test_numbers_at_the_end_of_a_name_are_no_channels_where_masks_have_them(
    tmp_path: Path,
) -> None:
    folder = write_folder(tmp_path, 2, names=("images", "masks"))
    for role in ("images", "masks"):
        for number in range(2):
            (folder / role / f"case_{number:02d}.nii.gz").rename(
                folder / role / f"scan_{number:04d}.nii.gz"
            )
    assert [each.name for each in find_cases(folder)] == ["scan_0000", "scan_0001"]


def test_labels_follow_where_the_network_sees_the_foreground_alone(tmp_path: Path) -> None:
    cases = find_cases(write_folder(tmp_path, 1))
    normalisation = {"kind": "window", "low": 30.0, "high": 5000.0}
    [loaded] = load_cases(cases, pipeline(roi={"kind": "foreground"}, normalisation=normalisation))
    assert loaded.image.shape[1:] == loaded.mask.shape
