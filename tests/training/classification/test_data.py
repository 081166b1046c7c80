"""Reading class folders and splitting them."""

from __future__ import annotations

import csv
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

import models
from medserve.errors import ConfigError
from medserve.results.sorted_folders import CORRECTIONS, MANIFEST, Correction, correction_rows
from tests.training.drawn import LABELS, class_folders
from training.classification.data import (
    SPLITS,
    Batches,
    LabelledImages,
    labelled_files,
    read_class_folders,
    read_split,
    split,
    write_split,
)

SPEC = models.spec("mednist")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders(tmp_path_factory.mktemp("drawn"), count=20)


@pytest.fixture(scope="module")
def images(folders: Path) -> LabelledImages:
    return read_class_folders(folders, SPEC)


def with_copies(images: LabelledImages) -> LabelledImages:
    """The same images, every third of them a copy of the one before."""
    pixels = images.images.copy()
    pixels[2::3] = pixels[1::3]
    label_ids = images.label_ids.copy()
    label_ids[2::3] = label_ids[1::3]
    return LabelledImages(pixels, label_ids, images.paths, images.labels)


def test_labels_are_in_the_order_of_the_archive_not_of_sorted() -> None:
    assert SPEC.labels == ("AbdomenCT", "BreastMRI", "ChestCT", "CXR", "Hand", "HeadCT")
    assert SPEC.labels != tuple(sorted(SPEC.labels))


def test_an_image_carries_the_id_of_its_folder(images: LabelledImages) -> None:
    for path, label_id in zip(images.paths, images.label_ids, strict=True):
        assert path.startswith(f"{SPEC.labels[label_id]}/")


def test_pixels_are_those_of_the_file(folders: Path, images: LabelledImages) -> None:
    from PIL import Image

    index = images.paths.index("CXR/007.png")
    expected = np.asarray(Image.open(folders / "CXR/007.png"))
    np.testing.assert_array_equal(images.images[index], expected)


def test_a_file_that_is_no_image_is_skipped_and_counted(folders: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folders, tmp_path / "broken")
    (broken / "Hand" / "003.png").write_bytes(b"no image at all")
    (broken / "Hand" / "004.png").write_bytes((folders / "Hand" / "004.png").read_bytes()[:200])
    images = read_class_folders(broken, SPEC)
    assert images.skipped == ("Hand/003.png", "Hand/004.png")
    assert len(images) == 6 * 20 - 2


def test_a_missing_class_is_named(folders: Path, tmp_path: Path) -> None:
    partial = shutil.copytree(folders, tmp_path / "partial")
    shutil.rmtree(partial / "CXR")
    with pytest.raises(ConfigError, match="folders of images named CXR"):
        read_class_folders(partial, SPEC)


def test_a_class_without_a_readable_image_is_named(folders: Path, tmp_path: Path) -> None:
    hollow = shutil.copytree(folders, tmp_path / "hollow")
    for path in (hollow / "Hand").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"Hand.*found none that decodes"):
        read_class_folders(hollow, SPEC)


def test_a_folder_that_is_no_label_is_named(folders: Path, tmp_path: Path) -> None:
    odd = shutil.copytree(folders, tmp_path / "odd")
    (odd / "Foot").mkdir()
    with pytest.raises(ConfigError, match="'Foot'"):
        labelled_files(odd, SPEC.labels)


def test_empty_class_folders_are_refused(tmp_path: Path) -> None:
    for label in LABELS:
        (tmp_path / label).mkdir()
    with pytest.raises(ConfigError, match="found no file"):
        labelled_files(tmp_path, SPEC.labels)


def test_an_empty_folder_is_no_class_of_a_training(folders: Path, tmp_path: Path) -> None:
    hollow = shutil.copytree(folders, tmp_path / "hollow")
    shutil.rmtree(hollow / "Hand")
    (hollow / "Hand").mkdir()
    assert "Hand" not in labelled_files(hollow, SPEC.labels).values()
    with pytest.raises(ConfigError, match="expected folders of images named Hand"):
        labelled_files(hollow, SPEC.labels, every_class=True)


def test_some_classes_are_enough_to_evaluate(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "Hand", tmp_path / "Hand")
    assert len(labelled_files(tmp_path, SPEC.labels)) == 20


def as_sorted(folders: Path, target: Path) -> tuple[Path, Path]:
    """Make a sorted folder of class folders; two files in _review, one with a class by hand."""
    shutil.copytree(folders, target)
    (target / "_review").mkdir()
    first, second = sorted((target / "Hand").iterdir())[:2]
    judged = first.rename(target / "_review" / "judged.png")
    second.rename(target / "_review" / "open.png")
    (target / "_errors").mkdir()
    (target / "_errors" / "letter.txt").write_text("no image")
    (target / MANIFEST).write_text("stored,sha256,class,probability,status\n")
    return target, judged


def correct(target: Path, *chosen: tuple[Path, str]) -> None:
    corrections = [
        Correction(hashlib.sha256(path.read_bytes()).hexdigest(), label, *[""] * 7)
        for path, label in chosen
    ]
    with (target / CORRECTIONS).open("w", newline="") as file:
        csv.writer(file).writerows(correction_rows(corrections))


def test_a_persons_class_comes_before_the_folders(folders: Path, tmp_path: Path) -> None:
    target, judged = as_sorted(folders, tmp_path / "sorted")
    wrong = min((target / "CXR").iterdir())
    correct(target, (judged, "HeadCT"), (wrong, "HeadCT"), (judged, "Hand"), (wrong, "HeadCT"))
    label_of = labelled_files(target, SPEC.labels, every_class=True)
    assert label_of[judged] == "Hand"  # the last word counts
    assert label_of[wrong] == "HeadCT"
    assert {path.name for path in label_of}.isdisjoint({"open.png", "letter.txt"})
    assert len(label_of) == sum(path.is_file() for path in folders.rglob("*")) - 1
    images = read_class_folders(target, SPEC)
    place = images.paths.index("_review/judged.png")
    assert images.labels[images.label_ids[place]] == "Hand"
    order = [SPEC.labels.index(label) for label in label_of.values()]
    assert order == sorted(order)


def test_a_sorted_folder_without_a_correction_is_its_class_folders(
    folders: Path, tmp_path: Path
) -> None:
    target, _ = as_sorted(folders, tmp_path / "sorted")
    assert {path.parent.name for path in labelled_files(target, SPEC.labels)} == set(SPEC.labels)


def test_a_correction_to_a_class_that_the_model_has_not_is_refused(
    folders: Path, tmp_path: Path
) -> None:
    target, judged = as_sorted(folders, tmp_path / "sorted")
    correct(target, (judged, "Foot"))
    with pytest.raises(ConfigError, match="got one to 'Foot'"):
        labelled_files(target, SPEC.labels)


def test_every_image_is_in_exactly_one_split(images: LabelledImages) -> None:
    parts = split(images, seed=0)
    together = np.concatenate([parts[name] for name in SPLITS])
    assert sorted(together) == list(range(len(images)))


def test_each_class_is_held_out_alike(images: LabelledImages) -> None:
    parts = split(images, seed=0)
    for name in ("validation", "test"):
        np.testing.assert_array_equal(np.bincount(images.label_ids[parts[name]]), [2] * 6)


def test_no_duplicate_is_in_two_splits(images: LabelledImages) -> None:
    copied = with_copies(images)
    parts = split(copied, seed=0)
    pixels = {name: {copied.images[i].tobytes() for i in parts[name]} for name in SPLITS}
    assert not pixels["train"] & pixels["test"]
    assert not pixels["train"] & pixels["validation"]
    assert not pixels["validation"] & pixels["test"]


def test_no_duplicate_is_held_out(images: LabelledImages) -> None:
    copied = with_copies(images)
    parts = split(copied, seed=0)
    times = {image.tobytes(): 0 for image in copied.images}
    for image in copied.images:
        times[image.tobytes()] += 1
    for name in ("validation", "test"):
        assert all(times[copied.images[i].tobytes()] == 1 for i in parts[name])


def test_the_split_does_not_depend_on_the_order_of_reading(images: LabelledImages) -> None:
    order = np.random.default_rng(1).permutation(len(images))
    shuffled = images.take(order)
    first, second = split(images, seed=3), split(shuffled, seed=3)
    for name in SPLITS:
        assert {images.paths[i] for i in first[name]} == {shuffled.paths[i] for i in second[name]}


def test_another_seed_holds_out_other_images(images: LabelledImages) -> None:
    assert set(split(images, seed=0)["test"]) != set(split(images, seed=1)["test"])


def test_a_written_split_is_read_back(images: LabelledImages, tmp_path: Path) -> None:
    parts = split(images, seed=0)
    write_split(tmp_path / "split.csv", images, parts)
    split_of = read_split(tmp_path / "split.csv")
    for name in ("validation", "test"):
        expected = {images.paths[i] for i in parts[name]}
        assert {path for path, part in split_of.items() if part == name} == expected
    assert not {images.paths[i] for i in parts["train"]} & set(split_of)


def test_a_file_that_is_no_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="path,split"):
        read_split(tmp_path / "split.csv")
    (tmp_path / "split.csv").write_text("path,split\nCXR/1.png,exam\n")
    with pytest.raises(ConfigError, match="'exam'"):
        read_split(tmp_path / "split.csv")


def test_a_batch_comes_as_two_tensors(images: LabelledImages) -> None:
    batches = Batches(images)
    pixels, label_ids = batches.__getitems__([5, 30, 110])
    assert tuple(pixels.shape) == (3, 1, 64, 64)
    np.testing.assert_array_equal(pixels[:, 0].numpy(), images.images[[5, 30, 110]])
    np.testing.assert_array_equal(label_ids.numpy(), images.label_ids[[5, 30, 110]])
