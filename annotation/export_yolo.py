"""YOLO segmentation: a text file a picture, a line an outline, coordinates as shares of sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from annotation.model import (
    PICTURES,
    Annotation,
    Problems,
    checked_polygon,
    choose_label,
    picture_shape,
)
from annotation.outlines import Points
from medserve.errors import ConfigError

__all__ = ["read_yolo"]


def read_yolo(
    folder: Path, files: list[Path], label: str | None, problems: Problems
) -> list[Annotation]:
    """Every annotated picture; see `exports.read_export`."""
    try:
        description = next(path for path in files if path.name == "data.yaml")
        names = yaml.safe_load(description.read_text(encoding="utf-8"))["names"]
        by_id = dict(names.items() if isinstance(names, dict) else enumerate(names))
    except (StopIteration, OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"expected data.yaml with a list `names` in {folder}") from error
    chosen = choose_label([str(name) for name in by_id.values()], label)
    ids = {int(number) for number, name in by_id.items() if str(name) == chosen}
    pictures = {path.relative_to(folder).with_suffix(""): path for path in files
                if path.suffix.lower() in PICTURES}  # fmt: skip
    annotations = []
    for path in files:
        relative = path.relative_to(folder)
        if path.suffix != ".txt" or "labels" not in relative.parts[:-1]:
            continue
        parts = ["images" if part == "labels" else part for part in relative.parts]
        picture = pictures.get(Path(*parts).with_suffix(""))
        if picture is None:
            problems.add("labels without their picture", relative.as_posix())
            continue
        shape = picture_shape(picture)
        polygons = _yolo_polygons(path, ids, shape, problems)
        annotations.append(Annotation(picture.name, None, shape, polygons, None, picture))
    return annotations


def _yolo_polygons(
    path: Path, ids: set[int], shape: tuple[int, int], problems: Problems
) -> tuple[Points, ...]:
    polygons = []
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if not words:
            continue
        try:
            number, values = int(words[0]), np.array(words[1:], dtype=np.float64)
        except ValueError:
            problems.add("line that is no outline", path.name)
            continue
        if number not in ids:
            continue
        if values.size == 4:
            problems.add("box without an outline", path.name)
            continue
        if values.size % 2:
            problems.add("line that is no outline", path.name)
            continue
        points = values.reshape(-1, 2) * [shape[1], shape[0]]
        checked = checked_polygon(points, shape, path.name, problems)
        if checked is not None:
            polygons.append(checked)
    return tuple(polygons)
