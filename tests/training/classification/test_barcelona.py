"""Three sources of cells, one shape: class folders, a CSV, BloodMNIST."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models
from medserve.errors import ConfigError
from tests.training.classification.drawn_cells import LABELS, cell_folders, labelled
from tests.training.drawn import class_folders
from training.classification import data
from training.classification.barcelona import (
    BarcelonaDataModule,
    BarcelonaDataset,
    SourceConfig,
    read_source,
)
from training.classification.cells import FOLDERS
from training.classification.data import SPLITS


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cell_folders(tmp_path_factory.mktemp("cells"), count=10, side=64)


@pytest.fixture(scope="module")
def medmnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like BloodMNIST's, with 3, 2 and 1 pictures of each label at 28 pixels."""
    arrays: dict[str, Any] = {}
    for part, count in (("train", 3), ("val", 2), ("test", 1)):
        images = labelled(count, side=28)
        arrays[f"{part}_images"] = images.images
        arrays[f"{part}_labels"] = images.label_ids[:, None].astype(np.uint8)
    path = tmp_path_factory.mktemp("medmnist") / "bloodmnist.npz"
    np.savez(path, **arrays)
    return path


def write_csv(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "split"), *rows])
    return path


def test_folders_of_the_archive_become_labels_by_their_real_names(folders: Path) -> None:
    images = data.read_class_folders(folders, models.spec("blood_cell"), FOLDERS)
    assert len(images) == 80
    named = {path.split("/")[0] for path in images.paths}
    assert "ig" in named
    of_ig = [i for i, path in enumerate(images.paths) if path.startswith("ig/")]
    assert {LABELS[images.label_ids[i]] for i in of_ig} == {"immature_granulocyte"}


def test_folders_are_parted_by_class(folders: Path) -> None:
    parts = read_source(SourceConfig(folders, test_share=0.2, validation_share=0.1))
    assert [len(parts[name]) for name in SPLITS] == [56, 8, 16]
    np.testing.assert_array_equal(np.bincount(parts["test"].label_ids), [2] * 8)


def test_an_earlier_split_holds_out_the_same(folders: Path, tmp_path: Path) -> None:
    rows = ["path,split", "ig/IG_0003.png,test", "platelet/PLATELET_0001.png,validation"]
    (tmp_path / "split.csv").write_text("\n".join(rows) + "\n")
    parts = read_source(SourceConfig(folders, split=tmp_path / "split.csv"))
    assert parts["test"].paths == ("ig/IG_0003.png",)
    assert parts["validation"].paths == ("platelet/PLATELET_0001.png",)
    assert len(parts["train"]) == 78


def test_pictures_under_two_labels_are_left_out() -> None:
    images = labelled(3)
    pixels = images.images.copy()
    pixels[5] = pixels[0]  # an eosinophil with the pixels of a basophil
    doubted = data.LabelledImages(pixels, images.label_ids, images.paths, images.labels)
    kept = data.without_contradictions(doubted)
    assert set(images.paths) - set(kept.paths) == {images.paths[0], images.paths[5]}


def test_a_csv_names_paths_labels_and_parts(folders: Path) -> None:
    rows = [
        ("ig/IG_0003.png", "immature_granulocyte", "train"),
        ("platelet/PLATELET_0001.png", "platelet", "validation"),
        ("monocyte/MONOCYTE_0002.png", "monocyte", "test"),
        ("monocyte/MONOCYTE_0003.png", "monocyte", "test"),
    ]
    parts = read_source(SourceConfig(write_csv(folders / "cells.csv", rows)))
    assert {name: parts[name].paths for name in SPLITS} == {
        "train": ("ig/IG_0003.png",),
        "validation": ("platelet/PLATELET_0001.png",),
        "test": ("monocyte/MONOCYTE_0002.png", "monocyte/MONOCYTE_0003.png"),
    }
    assert [LABELS[each] for each in parts["test"].label_ids] == ["monocyte", "monocyte"]


def test_bloodmnist_keeps_its_own_parts_and_labels(medmnist: Path) -> None:
    parts = read_source(SourceConfig(medmnist))
    assert [len(parts[name]) for name in SPLITS] == [24, 16, 8]
    assert parts["test"].images.shape == (8, 28, 28, 3)
    np.testing.assert_array_equal(parts["test"].label_ids, np.arange(8))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("ig/IG_0003.png", "ig", "train"), "got 'ig' and 'train'"),
        (("ig/IG_0003.png", "platelet", "exam"), "got 'platelet' and 'exam'"),
        (("ig/nothing.png", "platelet", "test"), "found none"),
    ],
)
def test_a_row_that_cannot_be_is_named(
    row: tuple[str, str, str], reason: str, folders: Path
) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_source(SourceConfig(write_csv(folders / "wrong.csv", [row])))


def test_a_csv_without_its_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text("file,kind\na,b\n")
    with pytest.raises(ConfigError, match="got file, kind"):
        read_source(SourceConfig(tmp_path / "cells.csv"))


def test_an_npz_that_is_not_bloodmnist_is_refused(tmp_path: Path, medmnist: Path) -> None:
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    with pytest.raises(ConfigError, match="expected an npz as those of MedMNIST"):
        read_source(SourceConfig(tmp_path / "other.npz"))
    (tmp_path / "broken.npz").write_bytes(medmnist.read_bytes()[:100])
    with pytest.raises(ConfigError, match="expected an npz as those of MedMNIST"):
        read_source(SourceConfig(tmp_path / "broken.npz"))


def test_grey_pictures_in_an_npz_are_refused(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "grey.npz", train_images=np.zeros((2, 28, 28), np.uint8), train_labels=[0, 1]
    )
    with pytest.raises(ConfigError, match=r"uint8 \(N, H, W, 3\)"):
        read_source(SourceConfig(tmp_path / "grey.npz"))


def test_a_label_that_bloodmnist_has_not_is_refused(tmp_path: Path) -> None:
    images = np.zeros((2, 28, 28, 3), np.uint8)
    np.savez(tmp_path / "nine.npz", train_images=images, train_labels=[[0], [8]])
    with pytest.raises(ConfigError, match="from 0 to 7"):
        read_source(SourceConfig(tmp_path / "nine.npz"))


def test_another_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found nothing"):
        read_source(SourceConfig(tmp_path / "nowhere"))
    (tmp_path / "cells.txt").write_text("")
    with pytest.raises(ConfigError, match=r"a \.csv or the \.npz"):
        read_source(SourceConfig(tmp_path / "cells.txt"))


def test_an_item_is_an_image_in_the_unit_interval_and_its_label() -> None:
    images = labelled(2, side=32)
    image, label_id = BarcelonaDataset(images)[5]
    assert (tuple(image.shape), image.dtype, int(label_id)) == ((3, 32, 32), torch.float32, 2)
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy() * 255, images.images[5], atol=1e-4)


def test_a_transform_is_applied_to_each_item_and_each_batch() -> None:
    dataset = BarcelonaDataset(labelled(2, side=32), transform=torch.zeros_like)
    assert float(dataset[3][0].max()) == 0.0
    batch, label_ids = dataset.__getitems__([0, 15])
    assert tuple(batch.shape) == (2, 3, 32, 32)
    assert float(batch.max()) == 0.0
    assert label_ids.tolist() == [0, 7]


def test_the_data_module_hands_out_batches_of_all_three_parts(medmnist: Path) -> None:
    module = BarcelonaDataModule(SourceConfig(medmnist), batch_size=5)
    module.setup()
    loaders = (module.train_dataloader(), module.val_dataloader(), module.test_dataloader())
    counts = [sum(len(label_ids) for _, label_ids in loader) for loader in loaders]
    assert counts == [24, 16, 8]
    image, _ = next(iter(loaders[0]))
    assert tuple(image.shape) == (5, 3, 28, 28)


def test_only_training_images_are_transformed(medmnist: Path) -> None:
    module = BarcelonaDataModule(SourceConfig(medmnist), 24, transform=torch.zeros_like)
    module.setup()
    assert float(next(iter(module.train_dataloader()))[0].max()) == 0.0
    assert float(next(iter(module.val_dataloader()))[0].max()) > 0.0


def test_training_batches_come_in_the_order_that_the_seed_gives(medmnist: Path) -> None:
    def order(seed: int) -> list[int]:
        module = BarcelonaDataModule(SourceConfig(medmnist, seed=seed), batch_size=24)
        module.setup()
        return next(iter(module.train_dataloader()))[1].tolist()

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_grey_pictures_make_no_dataset_of_cells(tmp_path: Path) -> None:
    grey = data.read_class_folders(class_folders(tmp_path, count=3), models.spec("mednist"))
    with pytest.raises(ConfigError, match="expected colour"):
        BarcelonaDataset(grey)
