"""Masks as PNG: `X_mask.png` beside `X.jpg`, or `masks/X.png` with or without `images/X.*`."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image as pillow

from annotation.model import (
    PICTURES,
    Annotation,
    Problems,
    choose_label,
    picture_shape,
)
from annotation.outlines import Mask
from medserve.errors import ConfigError

__all__ = ["read_png"]

_MASK_SUFFIXES = ("_mask", "-mask")


def read_png(
    folder: Path, files: list[Path], label: str | None, problems: Problems
) -> list[Annotation]:
    """Every annotated picture; see `exports.read_export`."""
    value = _png_value(files, label)
    pictures = {path.relative_to(folder).with_suffix(""): path for path in files
                if path.suffix.lower() in PICTURES}  # fmt: skip
    annotations = []
    for relative, path in pictures.items():
        stem = next((relative.name.removesuffix(suffix) for suffix in _MASK_SUFFIXES
                     if relative.name.endswith(suffix)), None)  # fmt: skip
        if stem is not None:
            picture = pictures.get(relative.with_name(stem))
        elif "masks" in relative.parts[:-1]:
            parts = ["images" if part == "masks" else part for part in relative.parts]
            picture, stem = pictures.get(Path(*parts)), relative.name
        else:
            continue
        mask = _png_mask(path, value, problems)
        if mask is None:
            continue
        if picture is not None and picture_shape(picture) != mask.shape:
            problems.add("mask of another size than its picture", path.name)
            continue
        name = stem + ".png" if picture is None else picture.name
        annotations.append(
            Annotation(name, None, (mask.shape[0], mask.shape[1]), (), mask, picture)
        )
    return annotations


def _png_value(files: list[Path], label: str | None) -> int | None:
    """The pixel value of the label by _classes.csv; None where there is no such file."""
    path = next((each for each in files if each.name == "_classes.csv"), None)
    if path is None:
        return None
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))[1:]
        values = {row[1].strip(): int(row[0]) for row in rows if row}
    except (IndexError, ValueError) as error:
        raise ConfigError(f"expected rows `pixel value, class` in {path}") from error
    ground = {name for name, value in values.items() if value == 0}
    return values[choose_label(values.keys() - ground, label)]


def _png_mask(path: Path, value: int | None, problems: Problems) -> Mask | None:
    try:
        with pillow.open(path) as picture:
            # A palette's numbers are the classes; its colours are for the eye.
            values = np.asarray(picture)
    except Exception:  # a parser of damaged bytes may raise anything
        problems.add("mask that cannot be read", path.name)
        return None
    if values.ndim != 2:
        problems.add("coloured mask", path.name)
        return None
    if value is not None:
        return np.asarray(values == value)
    if len(np.unique(values[values != 0])) > 1:
        problems.add("mask of several values without _classes.csv", path.name)
        return None
    return np.asarray(values != 0)
