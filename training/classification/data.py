"""Folders of labelled images: read once into memory, split once for all."""

from __future__ import annotations

import csv
import hashlib
import logging
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from medserve.errors import ConfigError, InvalidImageError, PayloadTooLargeError
from medserve.imaging.codecs import sniff
from medserve.imaging.image import Image
from medserve.inference.fit import fit_image
from medserve.results.sorted_folders import ERRORS, MANIFEST, REVIEW, read_corrections
from medserve.spec import InputSpec, ModelSpec
from training.core.config import Setting, write
from training.core.files import files_below, require_folder, write_rows

__all__ = [
    "SPLITS",
    "Batches",
    "ImagesConfig",
    "LabelledImages",
    "decode_file",
    "decoded",
    "display_planes",
    "divide",
    "labelled_files",
    "read_class_folders",
    "read_npz",
    "read_split",
    "split",
    "to_images",
    "to_planes",
    "without_contradictions",
    "write_split",
]

_log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
_MEDMNIST_PARTS = {"validation": "val"}
_AS_NAMED: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class ImagesConfig:
    """What every training on folders of labelled images has, whether it fits by gradient or not."""

    data_dir: Annotated[Path, Setting("folder with one folder of images per class")] = Path("data")
    out_dir: Annotated[Path, Setting("folder for checkpoints, artifact, report")] = Path("runs")
    seed: Annotated[int, Setting("of split, weights, order and augmentation", minimum=0)] = 0
    foreign_dir: Annotated[
        Path | None, Setting("images to test the novelty on, one folder per kind")
    ] = None
    install: Annotated[bool, Setting("copy the artifact into the room when done")] = False


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images as the network sees them, with their label ids.

    Attributes:
        images: uint8 (N, H, W) grey or (N, H, W, 3) colour; 255 is an intensity of 1.
        label_ids: int64 (N,), indices into `labels`.
        paths: One per image, relative to the data folder, with forward slashes.
        labels: Class names in the model's order.
        skipped: Files that could not be decoded.
    """

    images: npt.NDArray[np.uint8]
    label_ids: npt.NDArray[np.int64]
    paths: tuple[str, ...]
    labels: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: npt.NDArray[np.intp]) -> LabelledImages:
        """The images at `indices`, in that order."""
        paths = tuple(self.paths[i] for i in indices)
        return LabelledImages(self.images[indices], self.label_ids[indices], paths, self.labels)


def labelled_files(
    data_dir: Path,
    labels: Sequence[str],
    *,
    every_class: bool = False,
    folders: Mapping[str, str] = _AS_NAMED,
) -> dict[Path, str]:
    """Files of all class folders with their labels, in label order and by path within a class.

    In a folder that `medserve sort` or the page's zip wrote, the class that a person gave a file
    comes before that of its folder. What lies in `_review` without one has no label and is left
    out, as are `_errors`.

    Args:
        data_dir: Holds one folder per class.
        labels: In the model's order; each is the name of its folder.
        every_class: Whether none may be missing.
        folders: Label by folder, for folders that carry another name than their label.

    Raises:
        ConfigError: no such folder, a folder that is no label, no class folder at all (with
            `every_class`: one is missing), a correction to a class that is no label, or no file.
    """
    require_folder(data_dir, "--data-dir")
    there = [path.name for path in data_dir.iterdir() if path.is_dir() and path.name[0] != "."]
    is_sorted = (data_dir / MANIFEST).exists()
    own = (REVIEW, ERRORS) if is_sorted else ()
    found = {folders.get(name, name): name for name in there if name not in own}
    if unknown := sorted(set(found) - set(labels)):
        raise ConfigError(
            f"{data_dir}: expected only folders named {', '.join(labels)}, got {unknown[0]!r}"
        )
    label_of = {
        path: label
        for label in labels
        if label in found
        for path in files_below(data_dir / found[label])
    }
    if is_sorted:
        label_of = _corrected(data_dir, labels, label_of)
    missing = [
        label
        for label in labels
        if label not in label_of.values() and (every_class or label not in found)
    ]
    if (every_class and missing) or len(missing) == len(labels):
        raise ConfigError(f"{data_dir}: expected folders of images named {', '.join(missing)}")
    if not label_of:
        raise ConfigError(f"{data_dir}: expected images in the class folders, found no file")
    return label_of


def _corrected(
    data_dir: Path, labels: Sequence[str], label_of: Mapping[Path, str]
) -> dict[Path, str]:
    """Put the classes that a person chose in place of those of the folders, in the same order."""
    corrections = read_corrections(data_dir)
    if unknown := sorted({each.label for each in corrections.values()} - set(labels)):
        raise ConfigError(
            f"{data_dir}: expected corrections to {', '.join(labels)}, got one to {unknown[0]!r}"
        )
    doubtful = files_below(data_dir / REVIEW)
    chosen = dict(label_of)
    for path in (*label_of, *doubtful) if corrections else ():
        if each := corrections.get(hashlib.sha256(path.read_bytes()).hexdigest()):
            chosen[path] = each.label
    left_out = sum(path not in chosen for path in doubtful)
    changed = sum(label_of.get(path) != label for path, label in chosen.items())
    _log.info("%d classes are a person's; %d files in %s have none", changed, left_out, REVIEW)
    return dict(sorted(chosen.items(), key=lambda item: (labels.index(item[1]), item[0])))


def decode_file(path: Path, spec: ModelSpec) -> Image:
    """Return the image in a file, by the code that serving uses."""
    return sniff.decode(path.read_bytes(), spec.input)


def decoded(
    paths: Iterable[Path], spec: ModelSpec, skipped: list[Path]
) -> Iterator[tuple[Path, npt.NDArray[np.float32]]]:
    """Each file with its planes float32 (C, H, W), by the code that serving uses.

    What serving would refuse is logged and added to `skipped` instead.
    """
    for path in paths:
        try:
            image = decode_file(path, spec)
        except (InvalidImageError, PayloadTooLargeError) as error:
            _log.warning("skipped %s: %s", path, error)
            skipped.append(path)
            continue
        yield path, fit_image(image, spec.input)


def read_npz(path: Path, part: str, labels: Sequence[str]) -> LabelledImages:
    """Read one part of a file as those of MedMNIST (https://medmnist.com), whose ids are ours.

    It holds `train_images` uint8 (N, H, W) or (N, H, W, 3), `train_labels`, and the same of `val`
    and `test`.

    Raises:
        ConfigError: another file or part, or label ids that the model has not.
    """
    pixels, stored = read_npz_part(path, part)
    label_ids, theirs = stored.reshape(-1), _MEDMNIST_PARTS.get(part, part)
    if len(label_ids) != len(pixels) or not np.isin(label_ids, range(len(labels))).all():
        raise ConfigError(
            f"{path}: expected {len(pixels)} {theirs}_labels from 0 to {len(labels) - 1}"
        )
    paths = tuple(f"{theirs}/{number}" for number in range(len(pixels)))
    return LabelledImages(pixels, label_ids.astype(np.int64), paths, tuple(labels))


def read_npz_part(
    path: Path, part: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.integer[Any]]]:
    """Return images and labels of one part of such a file, labels as they are stored.

    Raises:
        ConfigError: another file or part.
    """
    if part not in SPLITS:
        raise ConfigError(f"expected the part to be one of {', '.join(SPLITS)}, got {part!r}")
    theirs = _MEDMNIST_PARTS.get(part, part)
    try:
        # numpy leaves a file open that it opened itself and cannot read.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            pixels, labels = content[f"{theirs}_images"], content[f"{theirs}_labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{path}: expected an npz as those of MedMNIST with {theirs}_images and "
            f"{theirs}_labels ({error})"
        ) from error
    is_colour = pixels.ndim == 4 and pixels.shape[3] == 3
    if pixels.dtype != np.uint8 or not (pixels.ndim == 3 or is_colour):
        raise ConfigError(
            f"{path}: expected {theirs}_images uint8 (N, H, W) or (N, H, W, 3), got "
            f"{pixels.dtype} {pixels.shape}"
        )
    return pixels, labels


def read_class_folders(
    data_dir: Path, spec: ModelSpec, folders: Mapping[str, str] = _AS_NAMED
) -> LabelledImages:
    """Decode every file below the class folders by the code that serving uses.

    A file that is no image is skipped, counted and named in `skipped`; ConfigError where a class
    has no folder or no image left. `folders` says the label of a folder that has another name.
    """
    pixels: list[npt.NDArray[np.uint8]] = []
    kept: list[Path] = []
    skipped: list[Path] = []
    label_of = labelled_files(data_dir, spec.labels, every_class=True, folders=folders)
    files = track(list(label_of), description="Reading images")
    for path, planes in decoded(files, spec, skipped):
        pixels.append(to_images(planes[np.newaxis])[0])
        kept.append(path)
    names = [label_of[path] for path in kept]
    if empty := [label for label in spec.labels if label not in names]:
        raise ConfigError(f"{data_dir / empty[0]}: expected images, found none that decodes")
    label_ids = np.array([spec.labels.index(name) for name in names], dtype=np.int64)
    paths = tuple(path.relative_to(data_dir).as_posix() for path in kept)
    refused = tuple(path.relative_to(data_dir).as_posix() for path in skipped)
    return LabelledImages(np.stack(pixels), label_ids, paths, spec.labels, refused)


def to_images(planes: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Planes float32 (N, C, H, W) in [0, 1] -> pixels uint8 (N, H, W) or (N, H, W, 3)."""
    pixels = np.rint(255.0 * planes).astype(np.uint8)
    return pixels[:, 0] if pixels.shape[1] == 1 else pixels.transpose(0, 2, 3, 1).copy()


def display_planes(planes: npt.NDArray[np.float32], spec: InputSpec) -> npt.NDArray[np.float32]:
    """Return planes (N, C, H, W) of `fit_image` as they are shown, in [0, 1]."""
    if not spec.mean:
        return planes
    mean, deviation = (np.reshape(each, (-1, 1, 1)) for each in (spec.mean, spec.deviation))
    return np.clip(planes * deviation + mean, 0.0, 1.0).astype(np.float32)


def to_planes(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Pixels uint8 (N, H, W) or (N, H, W, 3) -> planes uint8 (N, C, H, W), sharing memory."""
    images = torch.from_numpy(pixels)
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)


def split(
    dataset: LabelledImages, seed: int, held_out: float = 0.1, validation: float | None = None
) -> dict[str, npt.NDArray[np.intp]]:
    """Indices of train, validation and test; of every class, `held_out` is tested.

    As much is validated, or the share `validation`.

    Images whose pixels occur more than once all go to train, so that no copy of a training image
    is ever validated or tested. Depends on paths, pixels and seed, not on the order of reading.
    """
    digests = [hashlib.sha256(image.tobytes()).digest() for image in dataset.images]
    _, inverse, counts = np.unique(digests, return_inverse=True, return_counts=True)
    is_single = counts[inverse] == 1
    by_path = np.argsort(np.array(dataset.paths))
    generator = np.random.default_rng(seed)
    parts: dict[str, list[npt.NDArray[np.intp]]] = {name: [] for name in SPLITS}
    for label_id in range(len(dataset.labels)):
        members = by_path[dataset.label_ids[by_path] == label_id]
        singles = generator.permutation(members[is_single[members]])
        tested, validated = (
            min(max(1, round(share * len(members))), len(singles) // 3)
            for share in (held_out, held_out if validation is None else validation)
        )
        parts["test"].append(singles[:tested])
        parts["validation"].append(singles[tested : tested + validated])
        parts["train"] += [singles[tested + validated :], members[~is_single[members]]]
    return {name: np.sort(np.concatenate(indices)) for name, indices in parts.items()}


def without_contradictions(dataset: LabelledImages) -> LabelledImages:
    """Leave out images whose very pixels occur under two labels: one of the two is wrong."""
    digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in dataset.images]
    labels_of: dict[str, set[int]] = {}
    for digest, label_id in zip(digests, dataset.label_ids, strict=True):
        labels_of.setdefault(digest, set()).add(int(label_id))
    kept = np.flatnonzero([len(labels_of[digest]) == 1 for digest in digests])
    if len(kept) < len(dataset):
        _log.warning("left out %d images that occur under two labels", len(dataset) - len(kept))
    return dataset.take(kept)


def write_split(
    path: Path, dataset: LabelledImages, parts: dict[str, npt.NDArray[np.intp]]
) -> None:
    """Write one row `path,split` for each image held out; what is not listed is training."""
    rows = sorted((dataset.paths[i], name) for name in SPLITS[1:] for i in parts[name])
    write_rows(path, ("path", "split"), rows)


def divide(
    dataset: LabelledImages,
    config: ImagesConfig,
    held_out: float = 0.1,
    validation: float | None = None,
) -> tuple[LabelledImages, LabelledImages]:
    """Return what is trained on and validated; settings and split lie in `config.out_dir` then."""
    write(config, config.out_dir / "config.json")
    parts = split(dataset, config.seed, held_out, validation)
    write_split(config.out_dir / "split.csv", dataset, parts)
    return dataset.take(parts["train"]), dataset.take(parts["validation"])


def read_split(path: Path) -> dict[str, str]:
    """Path -> split for each image held out, as `write_split` wrote it."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            split_of = {row["path"]: row["split"] for row in csv.DictReader(stream)}
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise ConfigError(f"expected a split with columns path,split at {path}: {error}") from error
    if unknown := sorted(set(split_of.values()) - set(SPLITS)):
        raise ConfigError(f"{path}: expected splits {', '.join(SPLITS)}, got {unknown[0]!r}")
    return split_of


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Labelled images as tensors, fetched a whole batch at a time (no per-image Python)."""

    def __init__(self, dataset: LabelledImages) -> None:
        self.planes = to_planes(dataset.images)  # (N, C, H, W)
        self.label_ids = torch.from_numpy(dataset.label_ids)

    def __len__(self) -> int:
        return len(self.label_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.planes[index], self.label_ids[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """What DataLoader calls: uint8 (N, C, H, W) and int64 (N,)."""
        chosen = torch.as_tensor(indices)
        return self.planes[chosen], self.label_ids[chosen]
