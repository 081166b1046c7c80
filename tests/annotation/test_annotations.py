"""The round trip: prepared frames, a tool's export, masks on the source frames again."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as pillow

from annotation.exports import ExportFormat
from annotation.importer import ImportConfig, import_annotations, plain_name
from annotation.manifest import (
    FrameEntry,
    Pseudonyms,
    read_grey,
    read_manifest,
    write_manifest,
)
from annotation.prepare import PrepareConfig, prepare
from annotation.simulated_annotator import AnnotateConfig, annotate
from medserve.errors import ConfigError
from simulation.simulated_set import Form, SimulateConfig, simulate_set


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `sim`, `prepared` and `coco`: two patients, above, in and below their gland."""
    folder = tmp_path_factory.mktemp("walk")
    simulate_set(SimulateConfig(out_dir=folder / "sim", form=Form.RAW, patients=2, frames=3,
                                height=150, width=200))  # fmt: skip
    prepare(PrepareConfig(folder / "sim" / "raw", folder / "prepared"))
    _annotate(folder, ExportFormat.COCO)
    return folder


def _annotate(folder: Path, form: ExportFormat) -> Path:
    out = folder / form.value
    annotate(AnnotateConfig(folder / "sim", folder / "prepared", out, form=form, size=224))
    return out


def truth_of(walked: Path, entry: FrameEntry) -> npt.NDArray[np.bool_]:
    """The simulator's mask at the size of the source frame."""
    pseudonyms = Pseudonyms((walked / "prepared.salt").read_bytes())
    (raw,) = (path for path in (walked / "sim" / "raw").iterdir()
              if pseudonyms.source(path.read_bytes()) == entry.source)  # fmt: skip
    return read_grey(walked / "sim" / "truth" / raw.stem / f"{entry.frame:04d}.png") > 127


def rewritten(walked: Path, folder: Path, **changes: Any) -> Path:
    """The COCO export with other lists, its pictures unchanged."""
    folder.mkdir()
    source = walked / "coco" / "train"
    for path in source.glob("*.jpg"):
        (folder / path.name).write_bytes(path.read_bytes())
    content = json.loads((source / "_annotations.coco.json").read_text())
    content.update({name: change(content[name]) for name, change in changes.items()})
    (folder / "a.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("form", [ExportFormat.COCO, ExportFormat.YOLO, ExportFormat.PNG])
def test_masks_come_back_pixel_by_pixel(form: ExportFormat, walked: Path, tmp_path: Path) -> None:
    export = walked / "coco" if form is ExportFormat.COCO else _annotate(walked, form)
    imported = import_annotations(ImportConfig(walked / "prepared", export, tmp_path / "out"))
    assert len(imported.entries) == 6
    assert (imported.without, imported.estimated, len(imported.problems)) == (0, 0, 0)
    assert read_manifest(tmp_path / "out") == read_manifest(walked / "prepared")
    found = 0
    for entry in imported.entries:
        source = read_grey(tmp_path / "out" / "source_masks" / entry.name) > 127
        truth = truth_of(walked, entry)
        crop = read_grey(tmp_path / "out" / "masks" / entry.name) > 127
        np.testing.assert_array_equal(crop, source[entry.crop.slices])
        found += int(truth.sum())
        if form is ExportFormat.PNG:  # drawn on pixels of another size
            assert (source != truth).sum() <= 0.02 * max(truth.sum(), 1)
        else:
            np.testing.assert_array_equal(source, truth)
        image = (tmp_path / "out" / "images" / entry.name).read_bytes()
        assert image == (walked / "prepared" / "images" / entry.name).read_bytes()
    assert found > 1000


@pytest.mark.cpu
def test_pictures_that_lost_their_names_are_known_by_their_speckle(
    walked: Path, tmp_path: Path
) -> None:
    export = rewritten(walked, tmp_path / "export", images=lambda images: [
        {**each, "file_name": f"{number}.jpg"} for number, each in enumerate(images)
    ])  # fmt: skip
    names = [each["file_name"] for each in json.loads(
        (walked / "coco" / "train" / "_annotations.coco.json").read_text())["images"]]  # fmt: skip
    for number, name in enumerate(names):
        (export / name).rename(export / f"{number}.jpg")
    imported = import_annotations(ImportConfig(walked / "prepared", export, tmp_path / "out"))
    assert len(imported.entries) == 6
    for entry in imported.entries:
        source = read_grey(tmp_path / "out" / "source_masks" / entry.name) > 127
        np.testing.assert_array_equal(source, truth_of(walked, entry))


def _moved_out(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    first = annotations[0]
    points = [value + 300 for value in first["segmentation"][0]]
    return [{**first, "segmentation": [points]}, *annotations[1:]]


def _of_nothing(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*annotations, {**annotations[0], "image_id": 99}]


def _strange(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*images, {"id": 77, "file_name": "holiday.jpg", "width": 224, "height": 224}]


def _swapped(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = [each["file_name"] for each in images]
    order = [1, 0, *range(2, len(names))]
    originals = [f"{plain_name(names[place])}.png" for place in order]
    return [{**each, "extra": {"name": original}}
            for each, original in zip(images, originals, strict=True)]  # fmt: skip


@pytest.mark.cpu
@pytest.mark.parametrize(("lists", "expected"), [
    ({"annotations": _moved_out}, "1 x polygon outside its picture"),
    ({"annotations": _of_nothing}, "1 x annotation of a picture that is not listed"),
    ({"images": _strange}, "1 x annotation of a picture that is not in the manifest"),
    ({"images": _swapped}, "2 x picture that does not show the frame of its name"),
])  # fmt: skip
def test_export_that_does_not_fit_is_refused_whole(
    lists: dict[str, Any], expected: str, walked: Path, tmp_path: Path
) -> None:
    export = rewritten(walked, tmp_path / "export", **lists)
    config = ImportConfig(walked / "prepared", export, tmp_path / "out")
    with pytest.raises(ConfigError, match=f"{expected}.*nothing was written"):
        import_annotations(config)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_rest_of_an_export_can_be_imported(
    walked: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export = rewritten(walked, tmp_path / "export", images=_strange)
    config = ImportConfig(walked / "prepared", export, tmp_path / "out", skip_problems=True)
    with caplog.at_level(logging.WARNING, logger="annotation"):
        imported = import_annotations(config)
    assert len(imported.entries) == 6
    assert "left out: 1 x annotation of a picture that is not in the manifest" in caplog.text


def test_frame_annotated_twice_with_different_outlines_is_refused(
    walked: Path, tmp_path: Path
) -> None:
    def twice(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [*images, *({**each, "id": 50 + each["id"]} for each in images)]

    def other(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        small = [90, 90, 110, 90, 110, 110]
        return [*annotations, *({**each, "image_id": 50 + each["image_id"], "segmentation": [small]}
                                for each in annotations)]  # fmt: skip

    export = rewritten(walked, tmp_path / "export", images=twice, annotations=other)
    with pytest.raises(ConfigError, match="frame annotated twice, with different outlines"):
        import_annotations(ImportConfig(walked / "prepared", export, tmp_path / "out"))
    same = rewritten(walked, tmp_path / "same", images=twice, annotations=lambda annotations: [
        *annotations, *({**each, "image_id": 50 + each["image_id"]} for each in annotations)
    ])  # fmt: skip
    imported = import_annotations(ImportConfig(walked / "prepared", same, tmp_path / "out"))
    assert len(imported.entries) == 6


def test_frame_that_changed_since_it_was_prepared_is_noticed(walked: Path, tmp_path: Path) -> None:
    entries = read_manifest(walked / "prepared")
    (tmp_path / "prepared" / "images").mkdir(parents=True)
    for entry in entries:
        pixels = read_grey(walked / "prepared" / "images" / entry.name).copy()
        pixels[0, 0] ^= 1
        pillow.fromarray(pixels).save(tmp_path / "prepared" / "images" / entry.name)
    write_manifest(tmp_path / "prepared", entries)
    with pytest.raises(ConfigError, match="got a changed one"):
        import_annotations(ImportConfig(tmp_path / "prepared", walked / "coco", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [
    "p1_s2_00003_png.rf.0a1b2c.jpg", "p1_s2_00003.png.rf.aB9.png", "train/P1_s2_00003.PNG",
    "p1_s2_00003.jpg", "folder\\p1_s2_00003_jpeg.rf.77.webp", "p1_s2_00003",
])  # fmt: skip
def test_what_tools_add_to_names_is_taken_off(name: str) -> None:
    assert plain_name(name) == "p1_s2_00003"


def test_annotator_needs_the_salt_that_the_frames_were_prepared_with(
    walked: Path, tmp_path: Path
) -> None:
    config = AnnotateConfig(walked / "sim", walked / "prepared", tmp_path / "out")
    (tmp_path / "other").write_bytes(bytes(32))
    with pytest.raises(ConfigError, match="got a frame of another file"):
        annotate(dataclasses.replace(config, salt_file=tmp_path / "other"))
    with pytest.raises(ConfigError, match="expected the salt"):
        annotate(dataclasses.replace(config, salt_file=tmp_path / "none"))
    assert not (tmp_path / "out").exists()
