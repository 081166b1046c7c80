"""Exports of annotation tools: what is read, and what is wrong with them counted by kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as pillow

from annotation.exports import read_export
from annotation.model import Annotation, Problems
from medserve.errors import ConfigError

SQUARE = [4.0, 2.0, 10.0, 2.0, 10.0, 7.0, 4.0, 7.0]  # on a picture of 20 x 12


def picture(path: Path, size: tuple[int, int] = (20, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pillow.new("L", size, 90).save(path)


def coco(folder: Path, *shapes: dict[str, Any], **lists: Any) -> Path:
    content = {
        "categories": [
            {"id": 0, "name": "group", "supercategory": "none"},
            {"id": 1, "name": "prostate", "supercategory": "group"},
        ],
        "images": [{"id": 5, "file_name": "a.png", "width": 20, "height": 12}],
        "annotations": [{"image_id": 5, "category_id": 1, **shape} for shape in shapes],
        **lists,
    }
    folder.mkdir(exist_ok=True)
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    return folder


def read(folder: Path, label: str | None = None) -> tuple[list[Annotation], Problems]:
    problems = Problems()
    return read_export(folder, label, problems), problems


def expected_square() -> np.ndarray[Any, np.dtype[np.bool_]]:
    mask = np.zeros((12, 20), dtype=bool)
    mask[2:7, 4:10] = True
    return mask


def test_coco_polygons_and_runs_are_joined(tmp_path: Path) -> None:
    runs = {"size": [12, 20], "counts": [0, 1, 239]}  # the first pixel
    folder = coco(tmp_path, {"segmentation": [SQUARE]}, {"segmentation": runs})
    (found,), problems = read(folder)
    expected = expected_square()
    expected[0, 0] = True
    np.testing.assert_array_equal(found.drawn(), expected)
    assert (found.name, found.picture, len(problems)) == ("a.png", None, 0)


def test_coco_picture_without_outlines_means_that_there_is_nothing(tmp_path: Path) -> None:
    (found,), problems = read(coco(tmp_path))
    assert not found.drawn().any()
    assert len(problems) == 0


def test_coco_label_that_is_its_own_group_is_a_label(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "prostate", "supercategory": "prostate"}]
    (found,), _ = read(coco(tmp_path, {"segmentation": [SQUARE]}, categories=categories))
    np.testing.assert_array_equal(found.drawn(), expected_square())


def test_yolo_coordinates_are_shares_of_the_picture(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "images" / "a.jpg")
    labels = tmp_path / "train" / "labels"
    labels.mkdir()
    (labels / "a.txt").write_text("0 0.2 0.166667 0.5 0.166667 0.5 0.583333 0.2 0.583333\n")
    (tmp_path / "data.yaml").write_text("names: {0: prostate}\n")
    (found,), problems = read(tmp_path)
    np.testing.assert_array_equal(found.drawn(), expected_square())
    assert len(problems) == 0


@pytest.mark.parametrize("layout", ["roboflow", "folders"])
def test_png_masks_are_read_in_both_layouts(layout: str, tmp_path: Path) -> None:
    roboflow = layout == "roboflow"
    picture(tmp_path / ("a.jpg" if roboflow else "images/a.jpg"))
    mask = tmp_path / ("a_mask.png" if roboflow else "masks/a.png")
    mask.parent.mkdir(exist_ok=True)
    pillow.fromarray(np.where(expected_square(), 255, 0).astype(np.uint8)).save(mask)
    (found,), problems = read(tmp_path)
    np.testing.assert_array_equal(found.drawn(), expected_square())
    assert found.name == "a.jpg"
    assert found.picture is not None
    assert len(problems) == 0


def test_values_of_png_masks_are_told_apart_by_their_table(tmp_path: Path) -> None:
    mask = np.zeros((12, 20), dtype=np.uint8)
    mask[expected_square()], mask[9, 9] = 2, 1
    pillow.fromarray(mask).save(tmp_path / "a_mask.png")
    (tmp_path / "_classes.csv").write_text("Pixel Value, Class\n0, ground\n1, lesion\n2, gland\n")
    (found,), _ = read(tmp_path, "gland")
    np.testing.assert_array_equal(found.drawn(), expected_square())
    (tmp_path / "_classes.csv").unlink()
    _, problems = read(tmp_path)
    assert problems.count("mask of several values without _classes.csv") == 1


def test_labels_are_never_mixed(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "prostate"}, {"id": 2, "name": "lesion"}]
    folder = coco(tmp_path, categories=categories, annotations=[
        {"image_id": 5, "category_id": 1, "segmentation": [SQUARE]},
        {"image_id": 5, "category_id": 2, "segmentation": [[0, 0, 3, 0, 3, 3]]},
    ])  # fmt: skip
    with pytest.raises(ConfigError, match="--label to be one of lesion, prostate, got none"):
        read(folder)
    with pytest.raises(ConfigError, match="got 'gland'"):
        read(folder, "gland")
    (found,), _ = read(folder, "prostate")
    np.testing.assert_array_equal(found.drawn(), expected_square())


@pytest.mark.parametrize(("shape", "kind"), [
    ({"segmentation": [[4, 2, 31, 2, 10, 7]]}, "polygon outside its picture"),
    ({"segmentation": [[4, 2, 9, 2]]}, "polygon of fewer than three points"),
    ({"segmentation": [[4, 2, 9, float("nan"), 3, 3]]}, "polygon of fewer than three points"),
    ({"segmentation": [], "bbox": [1, 1, 5, 5]}, "box without an outline"),
    ({"segmentation": {"size": [12, 20], "counts": [3]}},
     "run lengths that do not fit their picture"),
    ({"segmentation": {"size": [20, 12], "counts": [240]}},
     "run lengths that do not fit their picture"),
    ({"image_id": 9, "segmentation": [SQUARE]}, "annotation of a picture that is not listed"),
])  # fmt: skip
def test_what_is_wrong_with_coco_is_counted(
    shape: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    _, problems = read(coco(tmp_path, shape, shape))
    unlisted = kind == "annotation of a picture that is not listed"
    assert (
        problems.count(kind) == len(problems) == (1 if unlisted else 2)
    )  # one picture, two shapes
    assert f"{len(problems)} x {kind} (first: " in str(problems)


def test_point_just_outside_the_border_is_rounding(tmp_path: Path) -> None:
    (found,), problems = read(coco(tmp_path, {"segmentation": [[-0.4, 0, 20.4, 0, 20, 12, 0, 12]]}))
    assert len(problems) == 0
    assert found.drawn().all()


@pytest.mark.parametrize(("line", "kind"), [
    ("0 0.5 0.5 0.2 0.2", "box without an outline"),
    ("0 0.1 0.1 0.2 0.2 0.3", "line that is no outline"),
    ("prostate 0.1 0.1", "line that is no outline"),
    ("0 0.1 0.1 1.6 0.1 0.2 0.5", "polygon outside its picture"),
])  # fmt: skip
def test_what_is_wrong_with_yolo_is_counted(line: str, kind: str, tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(line + "\n")
    (tmp_path / "labels" / "b.txt").write_text("")
    (tmp_path / "data.yaml").write_text("names: [prostate]\n")
    _, problems = read(tmp_path)
    assert (problems.count(kind), problems.count("labels without their picture")) == (1, 1)


def test_coloured_damaged_and_misfitting_masks_are_counted(tmp_path: Path) -> None:
    pillow.new("RGB", (20, 12), (9, 1, 1)).save(tmp_path / "a_mask.png")
    (tmp_path / "b_mask.png").write_bytes(b"no picture")
    picture(tmp_path / "c.jpg")
    pillow.new("L", (10, 12)).save(tmp_path / "c_mask.png")
    found, problems = read(tmp_path)
    assert found == []
    assert problems.count("coloured mask") == 1
    assert problems.count("mask that cannot be read") == 1
    assert problems.count("mask of another size than its picture") == 1


def test_name_that_leads_out_of_the_export_is_only_a_name(tmp_path: Path) -> None:
    picture(tmp_path / "secret.png")
    images = [{"id": 5, "file_name": "../secret.png", "width": 20, "height": 12}]
    (found,), _ = read(coco(tmp_path / "export", {"segmentation": [SQUARE]}, images=images))
    assert found.picture is None


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("a.json", "{}", "expected COCO's lists"),
    ("a.json", "no json", "expected COCO's lists"),
    ("data.yaml", "train: x", "expected data.yaml with a list"),
    ("_classes.csv", "value\nx", "expected rows"),
    ("readme.txt", "nothing", "expected annotated pictures"),
])  # fmt: skip
def test_export_that_cannot_be_read_is_refused(
    name: str, content: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=expected):
        read(tmp_path)


def test_packed_export_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "export.zip").write_bytes(b"PK")
    with pytest.raises(ConfigError, match="unpack it"):
        read(tmp_path / "export.zip")
