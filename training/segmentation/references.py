"""Which volumes of a folder an evaluation can measure: those with a reference mask beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medserve.errors import ConfigError
from training.segmentation.data import IMAGES, MASKS, SUFFIXES, Case, case_name, read_subjects

__all__ = ["References", "find_references"]

_NAMED = 5  # files that a message lists


@dataclass(frozen=True)
class References:
    """What there is to measure.

    Attributes:
        cases: Volumes with their masks, by name.
        remarks: What a reader of the figures should know about the folder.
    """

    cases: tuple[Case, ...]
    remarks: tuple[str, ...]


def find_references(data_dir: Path, labels: Sequence[str]) -> References:
    """Pair the files of two folders by name.

    `imagesTr` with `labelsTr` (Medical Segmentation Decathlon), or `images` with `labels` or
    `masks`. Unlike in training, a `dataset.json` decides nothing: it may list volumes that were
    kept elsewhere. Where it and the folders disagree, a remark says so.

    Args:
        data_dir: Holds the two folders.
        labels: Of the model, the background's first.

    Raises:
        ConfigError: no such folders, half a pair, nothing to measure, or labels that mean
            something else than the model's.
    """
    images = _files(data_dir, IMAGES, "images")
    masks = _files(data_dir, MASKS, "reference masks")
    for role, there, here in (("mask", images, masks), ("image", masks, images)):
        if alone := sorted(set(there) - set(here)):
            raise ConfigError(
                f"{data_dir}: expected a pair for every file, but {len(alone)} have no {role}: "
                f"{_some(alone)}; both halves of a pair have the same name, complete or remove them"
            )
    if not images:
        raise ConfigError(f"expected volumes with masks in {data_dir}, found none")
    subjects = read_subjects(data_dir / "subjects.csv")
    cases = [
        Case(name, images[name], masks[name], subjects.get(name, name)) for name in sorted(images)
    ]
    return References(tuple(cases), tuple(_remarks(data_dir / "dataset.json", images, labels)))


def _files(data_dir: Path, names: Sequence[str], role: str) -> dict[str, Path]:
    folder = next((data_dir / name for name in names if (data_dir / name).is_dir()), None)
    if folder is None:
        inside = sorted(path.parent.name for path in data_dir.glob(f"*/{names[0]}"))
        hint = f"; did you mean {data_dir / inside[0]}?" if inside else ""
        raise ConfigError(
            f"expected a folder of {role} in {data_dir}, named {' or '.join(names)}, "
            f"found none{hint}"
        )
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = next((each for each in SUFFIXES if path.name.endswith(each)), None)
        if suffix is None or path.name.startswith(".") or not path.is_file():
            continue
        name = path.name.removesuffix(suffix)
        if name in files:
            raise ConfigError(f"{folder}: {name} is there twice, as {files[name].name} and {path}")
        files[name] = path
    return files


def _remarks(path: Path, images: dict[str, Path], labels: Sequence[str]) -> list[str]:
    """What a Decathlon's `dataset.json` says that the folders or the model do not."""
    if not path.is_file():
        return []
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        listed = {case_name(Path(each["image"])) for each in content["training"]}
        named = {int(number): str(name) for number, name in content.get("labels", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"dataset.json could not be understood ({error!r}) and was left aside"]
    remarks = []
    if absent := sorted(listed - set(images)):
        remarks.append(
            f"{len(absent)} of {len(listed)} volumes that dataset.json lists are not there "
            f"and were not measured: {_some(absent)}"
        )
    if extra := sorted(set(images) - listed):
        remarks.append(
            f"{len(extra)} volumes are there that dataset.json does not list; they were "
            f"measured: {_some(extra)}"
        )
    remarks += _about_labels(path, named, labels)
    return remarks


def _about_labels(path: Path, named: dict[int, str], labels: Sequence[str]) -> list[str]:
    own = [label.casefold() for label in labels]
    for number, name in named.items():
        if name.casefold() in own and own.index(name.casefold()) != number:
            raise ConfigError(
                f"{path}: expected label {name!r} to be {own.index(name.casefold())} as in the "
                f"model ({', '.join(labels)}), got {number}; renumber the reference masks"
            )
    foreign = [name for _, name in sorted(named.items()) if name.casefold() not in own]
    if not foreign:
        return []
    return [f"dataset.json names labels that the model does not: {', '.join(foreign)}"]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
