"""Which volumes of a folder an evaluation can measure: those with a reference mask beside them."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medserve.errors import ConfigError
from training.volumes.data import Case, case_name, paired_files, read_subjects, some_names

__all__ = ["References", "find_references"]


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

    `imagesTr` with `labelsTr` (Medical Segmentation Decathlon), `images` with `labels` or
    `masks`, or `imagesTs` with `labelsTs`. Unlike in training, a `dataset.json` decides nothing: it
    may list volumes that were kept elsewhere. Where it and the folders disagree, a remark says so.

    Args:
        data_dir: Holds the two folders.
        labels: Of the model, the background's first.

    Raises:
        ConfigError: no such folders, half a pair, nothing to measure, or labels that mean
            something else than the model's.
    """
    pairs = paired_files(data_dir)
    if not pairs:
        raise ConfigError(f"expected volumes with masks in {data_dir}, found none")
    subjects = read_subjects(data_dir / "subjects.csv")
    cases = [Case(name, *pair, subject=subjects.get(name, name)) for name, pair in pairs.items()]
    return References(tuple(cases), tuple(_remarks(data_dir / "dataset.json", pairs, labels)))


def _remarks(path: Path, there: Collection[str], labels: Sequence[str]) -> list[str]:
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
    if absent := sorted(listed - set(there)):
        remarks.append(
            f"{len(absent)} of {len(listed)} volumes that dataset.json lists are not there "
            f"and were not measured: {some_names(absent)}"
        )
    if extra := sorted(set(there) - listed):
        remarks.append(
            f"{len(extra)} volumes are there that dataset.json does not list; they were "
            f"measured: {some_names(extra)}"
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
