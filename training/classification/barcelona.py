"""Pictures of blood cells from class folders, a CSV or a BloodMNIST file, as Lightning wants them.

    data = BarcelonaDataModule(SourceConfig(Path("data/PBC")), batch_size=64)
    trainer.fit(module, datamodule=data)

The archive is that of the Hospital Clinic of Barcelona (doi:10.17632/snkd93bnjr.1), BloodMNIST
(https://medmnist.com) its middle at 28 to 224 pixels.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import models
from medserve.errors import ConfigError
from medserve.spec import ModelSpec
from training.classification import data
from training.classification.cells import FOLDERS
from training.classification.data import SPLITS, Batches, LabelledImages, to_images
from training.core.fit import as_it_comes, seen_in_order

__all__ = ["BarcelonaDataModule", "BarcelonaDataset", "SourceConfig", "read_source"]

Transform = Callable[[Tensor], Tensor]  # one image float32 (3, H, W) in [0, 1] -> another


@dataclass(frozen=True)
class SourceConfig:
    """Where the pictures come from and how they are parted.

    Attributes:
        path: A folder of class folders; a CSV with the columns path, label, split; or the npz of
            BloodMNIST at any of its sizes.
        split: For class folders, the `split.csv` of an earlier training; drawn anew where None.
        seed: Of a new draw.
        test_share: Of every class, in a new draw.
        validation_share: Of every class, in a new draw.
    """

    path: Path
    split: Path | None = None
    seed: int = 0
    test_share: float = 0.1
    validation_share: float = 0.05


class BarcelonaDataset(Batches):
    """Labelled pictures of cells: an image float32 (3, H, W) in [0, 1] and its label id.

    Args:
        images: Colour.
        transform: Applied to each image when it is fetched.
    """

    def __init__(self, images: LabelledImages, transform: Transform | None = None) -> None:
        if images.images.ndim != 4:
            raise ConfigError(
                f"expected colour pictures (N, H, W, 3), got shape {images.images.shape}"
            )
        super().__init__(images)
        self.labelled = images
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label_id = super().__getitem__(index)
        image = image.float() / 255.0
        return (image if self.transform is None else self.transform(image)), label_id

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return a batch: at once where nothing is done to each image."""
        image, label_ids = super().__getitems__(indices)
        image = image.float() / 255.0
        if self.transform is not None:
            image = torch.stack([self.transform(each) for each in image])
        return image, label_ids


class BarcelonaDataModule(L.LightningDataModule):
    """Train, validation and test of one source, as `BarcelonaDataset`.

    Args:
        source: What to read.
        batch_size: Images a step.
        transform: Of each training image, e.g. from torchvision; none on the other two parts.
    """

    def __init__(
        self, source: SourceConfig, batch_size: int = 64, transform: Transform | None = None
    ) -> None:
        super().__init__()
        self.source = source
        self.batch_size = batch_size
        self.transform = transform
        self.parts: dict[str, BarcelonaDataset] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read the source once, whatever the stage."""
        if self.parts:
            return
        parts = read_source(self.source)
        self.parts = {
            name: BarcelonaDataset(images, self.transform if name == "train" else None)
            for name, images in parts.items()
        }

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches in an order that the seed gives."""
        return self._loader("train", shuffle=True, generator=seen_in_order(self.source.seed))

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches in the order of the source."""
        return self._loader("validation", shuffle=False)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches in the order of the source."""
        return self._loader("test", shuffle=False)

    def _loader(self, part: str, **how: Any) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(self.parts[part], self.batch_size, collate_fn=as_it_comes, **how)


def read_source(source: SourceConfig) -> dict[str, LabelledImages]:
    """Train, validation and test of a source.

    Raises:
        ConfigError: no such source, or not one of the three kinds.
    """
    spec = models.spec("blood_cell")
    if source.path.is_dir():
        return _from_folders(source, spec)
    if not source.path.is_file():
        raise ConfigError(f"expected a folder, a CSV or an npz at {source.path}, found nothing")
    if source.path.suffix == ".npz":
        return _from_medmnist(source.path, spec)
    if source.path.suffix == ".csv":
        return _from_csv(source.path, spec)
    raise ConfigError(
        f"{source.path}: expected a folder of class folders, a .csv or the .npz of BloodMNIST"
    )


def _from_folders(source: SourceConfig, spec: ModelSpec) -> dict[str, LabelledImages]:
    images = data.without_contradictions(data.read_class_folders(source.path, spec, FOLDERS))
    if source.split is None:
        parts = data.split(images, source.seed, source.test_share, source.validation_share)
        return {name: images.take(indices) for name, indices in parts.items()}
    split_of = data.read_split(source.split)
    return _parted(images, [split_of.get(path, "train") for path in images.paths])


def _from_csv(path: Path, spec: ModelSpec) -> dict[str, LabelledImages]:
    """Rows path,label,split; paths are relative to the file's folder."""
    rows = _rows(path)
    for row in rows:
        if row["label"] not in spec.labels or row["split"] not in SPLITS:
            raise ConfigError(
                f"{path}: expected a label of {', '.join(spec.labels)} and a split of "
                f"{', '.join(SPLITS)}, got {row['label']!r} and {row['split']!r}"
            )
    of_path = {path.parent / row["path"]: row for row in rows}
    if missing := [each for each in of_path if not each.is_file()]:
        raise ConfigError(f"{path}: expected a picture at {missing[0]}, found none")
    skipped: list[Path] = []
    read = list(data.decoded(of_path, spec, skipped))
    if not read:
        raise ConfigError(f"{path}: expected rows of pictures, found none that decodes")
    kept = [of_path[each] for each, _ in read]
    images = LabelledImages(
        to_images(np.stack([planes for _, planes in read])),
        np.array([spec.labels.index(row["label"]) for row in kept], dtype=np.int64),
        tuple(row["path"] for row in kept),
        spec.labels,
    )
    return _parted(images, [row["split"] for row in kept])


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            columns = set(reader.fieldnames or ())
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as CSV ({error})") from error
    if not {"path", "label", "split"} <= columns:
        raise ConfigError(
            f"{path}: expected the columns path, label, split, got {', '.join(sorted(columns))}"
        )
    return rows


def _from_medmnist(path: Path, spec: ModelSpec) -> dict[str, LabelledImages]:
    """BloodMNIST's own three parts; its labels have the order of this model's."""
    parts = {}
    for name in SPLITS:
        parts[name] = data.read_npz(path, name, spec.labels)
        if parts[name].images.ndim != 4:
            raise ConfigError(
                f"{path}: expected colour images uint8 (N, H, W, 3) for {name}, got "
                f"{parts[name].images.shape}"
            )
    return parts


def _parted(images: LabelledImages, part_of: list[str]) -> dict[str, LabelledImages]:
    names = np.array(part_of)
    return {name: images.take(np.flatnonzero(names == name)) for name in SPLITS}
