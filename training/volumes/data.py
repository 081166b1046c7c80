"""Volumes with reference masks: found, paired, split by subject, brought to the network's grid."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medserve.errors import ConfigError, InvalidImageError, MedserveError
from medserve.imaging.codecs import volume_file
from medserve.imaging.codecs.channels import decode_channels
from medserve.imaging.codecs.volume_file import ReadOptions
from medserve.imaging.volume import Volume, VolumeLimits
from medserve.inference.volume_pipeline import Inverse, VolumePipeline
from medserve.spec import InputKind, ModelSpec
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
    "read_volumes",
    "some_names",
    "split_cases",
]

_log = logging.getLogger(__name__)

Files = tuple[tuple[Path, ...], Path]  # of the channels of a case, and of its mask

SUFFIXES = (".nii.gz", ".nii", ".npy")
IMAGES = ("imagesTr", "images", "imagesTs")
MASKS = ("labelsTr", "labels", "masks", "labelsTs")
_CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net's names of the files of one case
_NAMED = 5  # files that a message lists
_KINDS = (InputKind.NIFTI, InputKind.NPY)


@dataclass(frozen=True)
class Case:
    """One volume and its reference mask, not read yet.

    Attributes:
        name: Of the file, without its suffix; the same for both.
        images: A file for each channel, in their order; one file may hold several.
        mask: Of the labels.
        subject: Whose volume it is; subjects, not volumes, are split.
    """

    name: str
    images: tuple[Path, ...]
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
    Several channels lie in one four-dimensional file, or in files that end in `_0000`, `_0001`.
    A `subjects.csv` with columns `name,subject` says which volumes are of one person; without it
    each volume counts as its own subject.

    Raises:
        ConfigError: another layout, or an image or a mask without its other half.
    """
    pairs = _listed(data_dir) or paired_files(data_dir)
    if not pairs:
        raise ConfigError(f"expected volumes with masks in {data_dir}, found none")
    subjects = read_subjects(data_dir / "subjects.csv")
    return [Case(name, *pairs[name], subject=subjects.get(name, name)) for name in sorted(pairs)]


def load_cases(cases: Sequence[Case], pipeline: VolumePipeline) -> list[LoadedCase]:
    """Read and prepare every case, once; what a training then works on is in memory."""
    loaded = []
    for case in cases:
        try:
            volumes = read_volumes(case, pipeline.spec, kinds=_KINDS)
            prepared = pipeline.prepare(volumes)
        except (OSError, MedserveError) as error:
            raise ConfigError(f"{case.images[0]}: cannot be read ({error})") from error
        mask = read_mask(case, volumes[0], len(pipeline.spec.labels))
        labels = pipeline.prepare_labels(mask, prepared.inverse)
        if prepared.inverse.foreground is not None:
            labels = prepared.inverse.foreground.cut(labels)
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
        size_of.setdefault(case.subject, case.images[0].stat().st_size)
        names_of.setdefault(case.subject, []).append(case.name)
    return deal(names_of, size_of, folds, test_share, seed)


def read_mask(case: Case, volume: Volume, labels: int) -> npt.NDArray[np.uint8]:
    """The reference mask uint8 (I, J, K) of a volume, on its own grid.

    Raises:
        ConfigError: another grid than the volume's, or ids that are no labels.
    """
    try:
        mask = volume_file.decode(case.mask.read_bytes(), _KINDS)
    except (OSError, InvalidImageError) as error:
        raise ConfigError(f"{case.mask}: cannot be read ({error})") from error
    if not mask.geometry.matches(volume.geometry, tolerance_mm=0.01):
        raise ConfigError(
            f"{case.mask}: expected the grid of its volume {case.images[0].name} "
            f"({volume.geometry.shape}), got {mask.geometry.shape} or another affine"
        )
    ids = np.unique(mask.array)
    if not np.isin(ids, np.arange(labels)).all():
        raise ConfigError(
            f"{case.mask}: expected label ids 0 to {labels - 1}, got {ids[:8].tolist()}"
        )
    return mask.array.astype(np.uint8)


def read_volumes(
    case: Case,
    spec: ModelSpec,
    limits: VolumeLimits | None = None,
    kinds: Collection[InputKind] | None = None,
) -> tuple[Volume, ...]:
    """Return the volumes of a case's channels, read as serving reads them.

    Raises:
        MedserveError: serving would refuse a file, or there are other channels than the spec names.
        OSError: a file cannot be read.
    """
    assert spec.volume is not None
    return decode_channels(
        [path.read_bytes() for path in case.images],
        list(spec.volume.channels),
        spec.input.kinds if kinds is None else kinds,
        limits or VolumeLimits(),
        ReadOptions(),
    )


def _listed(data_dir: Path) -> dict[str, Files]:
    """The cases that a `dataset.json` lists; none where it lists none, as that of nnU-Net."""
    path = data_dir / "dataset.json"
    if not path.is_file():
        return {}
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "channel_names" in content:
            return {}
        entries = [(data_dir / each["image"], data_dir / each["label"])
                   for each in content["training"]]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: expected a list 'training' of objects with 'image' and 'label' ({error!r})"
        ) from error
    pairs: dict[str, Files] = {}
    for image, mask in entries:
        name = case_name(image)
        if name in pairs:
            raise ConfigError(f"{path}: {name} is listed twice")
        for role, file in (("image", image), ("mask", mask)):
            if not file.is_file():
                raise ConfigError(f"{path}: the {role} of {name} is missing: no file {file}")
        pairs[name] = ((image,), mask)
    return pairs


def paired_files(data_dir: Path) -> dict[str, Files]:
    """Return images and mask of every case of a pair of folders, by the name that they share.

    Files of channels have the case's name and end in `_0000`, `_0001` and so on.

    Raises:
        ConfigError: a folder is not there, half a pair or a channel is missing, or a volume is
            there twice.
    """
    files, masks = _files(data_dir, IMAGES, "images"), _files(data_dir, MASKS, "masks")
    images = _by_case(files, masks)
    for role, there, here in (("mask", images, masks), ("image", masks, images)):
        if alone := sorted(set(there) - set(here)):
            raise ConfigError(
                f"{data_dir}: {len(alone)} volume(s) without {role}: {some_names(alone)}; both "
                "files of a pair have the same name, add what is missing or remove the other"
            )
    return {name: (images[name], masks[name]) for name in sorted(images)}


def _by_case(files: Mapping[str, Path], masks: Mapping[str, Path]) -> dict[str, tuple[Path, ...]]:
    """Return the files of every case in the order of its channels."""
    channels: dict[str, dict[int, Path]] = {}
    for name, path in files.items():
        found = None if name in masks else _CHANNEL.fullmatch(name)
        case, number = (found[1], int(found[2])) if found else (name, 0)
        if number in channels.setdefault(case, {}):
            twice = channels[case][number].name
            raise ConfigError(f"{path.parent}: {case} is there twice, as {twice} and {path.name}")
        channels[case][number] = path
    for case, numbers in channels.items():
        if sorted(numbers) != list(range(len(numbers))):
            there = ", ".join(numbers[number].name for number in sorted(numbers))
            raise ConfigError(
                f"{case}: expected its channels from _0000 on without a gap, found {there}"
            )
    return {
        case: tuple(numbers[n] for n in range(len(numbers))) for case, numbers in channels.items()
    }


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
        name = case_name(path)
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
