"""Volumes with reference masks: found, paired, split by subject, brought to the network's grid."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medserve.errors import ConfigError, InvalidImageError
from medserve.imaging.codecs import volume_file
from medserve.imaging.volume import Volume
from medserve.inference.volume_pipeline import Inverse, VolumePipeline
from medserve.spec import InputKind
from training.core.split import Split, deal

__all__ = [
    "Case",
    "LoadedCase",
    "case_name",
    "find_cases",
    "load_cases",
    "paired_files",
    "read_mask",
    "read_subjects",
    "some_names",
    "split_cases",
]

_log = logging.getLogger(__name__)

SUFFIXES = (".nii.gz", ".nii", ".npy")
IMAGES = ("imagesTr", "images", "imagesTs")
MASKS = ("labelsTr", "labels", "masks", "labelsTs")
_FIRST_CHANNEL = "_0000"  # nnU-Net's suffix of the first channel, here the only one
_NAMED = 5  # files that a message lists
_KINDS = (InputKind.NIFTI, InputKind.NPY)


@dataclass(frozen=True)
class Case:
    """One volume and its reference mask, not read yet.

    Attributes:
        name: Of the file, without its suffix; the same for both.
        subject: Whose volume it is; subjects, not volumes, are split.
    """

    name: str
    image: Path
    mask: Path
    subject: str


@dataclass(frozen=True, eq=False)
class LoadedCase:
    """One volume as the network sees it, in memory.

    Attributes:
        name: As in `Case`.
        image: float32 (C, i, j, k), prepared by the code that serving uses.
        mask: uint8 (i, j, k) on the same grid.
        inverse: From that grid to the file's own.
    """

    name: str
    image: Tensor
    mask: Tensor
    inverse: Inverse


def find_cases(data_dir: Path) -> list[Case]:
    """All cases of a folder, sorted by name.

    Two layouts: that of the Medical Segmentation Decathlon (a `dataset.json` that lists them),
    and a pair of folders, `images` and `masks` (or `labels`), whose files have the same names.
    A `subjects.csv` with columns `name,subject` says which volumes are of one person; without it
    each volume counts as its own subject.

    Raises:
        ConfigError: another layout, or an image or a mask without its other half.
    """
    pairs = _listed(data_dir) if (data_dir / "dataset.json").is_file() else paired_files(data_dir)
    if not pairs:
        raise ConfigError(f"expected volumes with masks in {data_dir}, found none")
    subjects = read_subjects(data_dir / "subjects.csv")
    return [Case(name, *pairs[name], subject=subjects.get(name, name)) for name in sorted(pairs)]


def load_cases(cases: Sequence[Case], pipeline: VolumePipeline) -> list[LoadedCase]:
    """Read and prepare every case, once; what a training then works on is in memory."""
    loaded = []
    for case in cases:
        volume = _read(case.image)
        mask = read_mask(case, volume, len(pipeline.spec.labels))
        prepared = pipeline.prepare(volume)
        labels = pipeline.prepare_labels(mask, prepared.inverse)
        loaded.append(
            LoadedCase(
                case.name,
                torch.from_numpy(prepared.tensor),
                torch.from_numpy(np.ascontiguousarray(labels)),
                prepared.inverse,
            )
        )
    size = sum(each.image.nbytes + each.mask.nbytes for each in loaded) / 2**20
    _log.info("%d volumes in memory, %.0f MiB", len(loaded), size)
    return loaded


def split_cases(cases: Sequence[Case], folds: int, test_share: float, seed: int = 0) -> Split:
    """Deal subjects out, every part with its share of small and large files.

    Files, not contents, decide what is small: sizes differ by scanner and by stored type, which
    are what a part must not have too much of.
    """
    size_of: dict[str, int] = {}
    names_of: dict[str, list[str]] = {}
    for case in sorted(cases, key=lambda each: each.name):
        size_of.setdefault(case.subject, case.image.stat().st_size)
        names_of.setdefault(case.subject, []).append(case.name)
    return deal(names_of, size_of, folds, test_share, seed)


def read_mask(case: Case, volume: Volume, labels: int) -> npt.NDArray[np.uint8]:
    """The reference mask uint8 (I, J, K) of a volume, on its own grid.

    Raises:
        ConfigError: another grid than the volume's, or ids that are no labels.
    """
    mask = _read(case.mask)
    if not mask.geometry.matches(volume.geometry, tolerance_mm=0.01):
        raise ConfigError(
            f"{case.mask}: expected the grid of its volume {case.image.name} "
            f"({volume.geometry.shape}), got {mask.geometry.shape} or another affine"
        )
    ids = np.unique(mask.array)
    if not np.isin(ids, np.arange(labels)).all():
        raise ConfigError(
            f"{case.mask}: expected label ids 0 to {labels - 1}, got {ids[:8].tolist()}"
        )
    return mask.array.astype(np.uint8)


def _read(path: Path) -> Volume:
    try:
        return volume_file.decode(path.read_bytes(), _KINDS)
    except (OSError, InvalidImageError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error


def _listed(data_dir: Path) -> dict[str, tuple[Path, Path]]:
    path = data_dir / "dataset.json"
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        entries = [(data_dir / each["image"], data_dir / each["label"])
                   for each in content["training"]]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: expected a list 'training' of objects with 'image' and 'label' ({error!r})"
        ) from error
    pairs = {}
    for image, mask in entries:
        name = case_name(image)
        if name in pairs:
            raise ConfigError(f"{path}: {name} is listed twice")
        for role, file in (("image", image), ("mask", mask)):
            if not file.is_file():
                raise ConfigError(f"{path}: the {role} of {name} is missing: no file {file}")
        pairs[name] = (image, mask)
    return pairs


def paired_files(data_dir: Path) -> dict[str, tuple[Path, Path]]:
    """Return image and mask of every case of a pair of folders, by the name that both files have.

    An image's name may end in `_0000`, which nnU-Net gives the first channel.

    Raises:
        ConfigError: a folder is not there, half a pair is missing, or a volume is there twice.
    """
    images, masks = _files(data_dir, IMAGES, "images"), _files(data_dir, MASKS, "masks")
    for role, there, here in (("mask", images, masks), ("image", masks, images)):
        if alone := sorted(set(there) - set(here)):
            raise ConfigError(
                f"{data_dir}: {len(alone)} volume(s) without {role}: {some_names(alone)}; both "
                "files of a pair have the same name, add what is missing or remove the other"
            )
    return {name: (images[name], masks[name]) for name in sorted(images)}


def _files(data_dir: Path, names: Sequence[str], role: str) -> dict[str, Path]:
    folder = next((data_dir / name for name in names if (data_dir / name).is_dir()), None)
    if folder is None:
        inside = sorted(path.parent.name for path in data_dir.glob(f"*/{names[0]}"))
        hint = f"; did you mean {data_dir / inside[0]}?" if inside else ""
        raise ConfigError(
            f"{data_dir} holds no folder of {role} named {' or '.join(names)}, and no "
            f"dataset.json that lists them{hint}"
        )
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.endswith(SUFFIXES) or not path.is_file():
            continue
        name = case_name(path).removesuffix(_FIRST_CHANNEL)
        if name in files:
            raise ConfigError(f"{folder}: {name} is there twice, as {files[name].name} and {path}")
        files[name] = path
    return files


def some_names(names: Sequence[str]) -> str:
    """Return the first few names for a message."""
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def read_subjects(path: Path) -> dict[str, str]:
    """Name of a case -> its subject, from a `subjects.csv`; empty where there is none.

    Raises:
        ConfigError: the table has other columns.
    """
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as stream:
        try:
            return {row["name"]: row["subject"] for row in csv.DictReader(stream)}
        except KeyError as error:
            raise ConfigError(f"{path}: expected columns name,subject, found no {error}") from error


def case_name(path: Path) -> str:
    """Name of a file without the suffix of its kind, which may have two dots."""
    suffix = next((each for each in SUFFIXES if path.name.endswith(each)), path.suffix)
    return path.name.removesuffix(suffix)
