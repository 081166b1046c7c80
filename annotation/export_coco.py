"""COCO segmentation: lists of pictures, labels and outlines (polygons or run lengths) as JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from annotation.model import Annotation, Problems, checked_polygon, choose_label
from annotation.outlines import Mask, Points, decode_runs
from medserve.errors import ConfigError

__all__ = ["read_coco"]


def read_coco(
    folder: Path, files: list[Path], label: str | None, problems: Problems
) -> list[Annotation]:
    """Every annotated picture; see `exports.read_export`."""
    annotations = []
    contents = [(path, _json(path)) for path in files if path.suffix == ".json"]
    categories = [each for _, content in contents for each in content["categories"]]
    # Tools add a group above the real labels, which is no label itself; some name a label's group
    # like the label.
    groups = {each.get("supercategory") for each in categories
              if each.get("supercategory") != each["name"]}  # fmt: skip
    names = {str(each["name"]) for each in categories if each["name"] not in groups}
    chosen = choose_label(names, label)
    for path, content in contents:
        annotations += _coco_pictures(path, content, chosen, problems)
    return annotations


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name, members in (("images", ("id", "file_name", "width", "height")),
                              ("annotations", ("image_id", "category_id")),
                              ("categories", ("id", "name"))):  # fmt: skip
            if any(member not in each for each in content[name] for member in members):
                raise KeyError(name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"expected COCO's lists images, annotations and categories in {path}: {error!r}"
        ) from error
    return content


def _coco_pictures(
    path: Path, content: dict[str, Any], label: str, problems: Problems
) -> list[Annotation]:
    ids = {each["id"] for each in content["categories"] if each["name"] == label}
    by_picture: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for each in content["annotations"]:
        by_picture[each["image_id"]].append(each)
    listed = {each["id"]: each for each in content["images"]}
    if len(listed) < len(content["images"]):
        problems.add("picture id used twice", path.name)
    for missing in sorted(map(str, by_picture.keys() - listed.keys())):
        problems.add("annotation of a picture that is not listed", f"{path.name}, id {missing}")
    found = []
    for number, picture in listed.items():
        name, shape = str(picture["file_name"]), (int(picture["height"]), int(picture["width"]))
        polygons: list[Points] = []
        mask: Mask | None = None
        for each in by_picture[number]:
            if each["category_id"] not in ids:
                continue
            more, runs = _coco_shape(each, shape, name, problems)
            polygons += more
            if runs is not None:
                mask = runs if mask is None else mask | runs
        original = (picture.get("extra") or {}).get("name")
        file = path.parent / name
        # A name that leads elsewhere is only a name.
        inside = file.resolve().is_relative_to(path.parent.resolve()) and file.is_file()
        found.append(
            Annotation(name, original, shape, tuple(polygons), mask, file if inside else None)
        )
    return found


def _coco_shape(
    annotation: dict[str, Any], shape: tuple[int, int], name: str, problems: Problems
) -> tuple[list[Points], Mask | None]:
    outline = annotation.get("segmentation")
    if isinstance(outline, dict):
        try:
            height, width = outline["size"]
            if (int(height), int(width)) != shape:
                raise ValueError("run lengths of another size")
            return [], decode_runs(outline["counts"], shape)
        except (KeyError, TypeError, ValueError):
            problems.add("run lengths that do not fit their picture", name)
            return [], None
    if not outline:
        problems.add("box without an outline", name)
        return [], None
    polygons = []
    for flat in outline:
        points = np.asarray(flat[: len(flat) // 2 * 2], dtype=np.float64).reshape(-1, 2)
        checked = checked_polygon(points, shape, name, problems)
        if checked is not None:
            polygons.append(checked)
    return polygons, None
