"""Plays the annotator of simulated patients, whose truth is known: writes a tool's export.

    python -m training.trus_prostate simulate --form raw --out-dir SIM
    python -m training.trus_prostate prepare --data-dir SIM/raw --out-dir PREPARED
    python -m training.trus_prostate annotate --simulated SIM --data-dir PREPARED --out-dir EXPORT

What it writes looks like what tools write: pictures of one size as JPEG, names with a suffix of
the tool's own, outlines as polygons on those pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from PIL import Image as pillow
from skimage.measure import find_contours

from annotation.exports import ExportFormat
from annotation.manifest import (
    IMAGES,
    FrameEntry,
    Pseudonyms,
    new_folder,
    read_grey,
    read_manifest,
)
from annotation.outlines import Points
from medserve.errors import ConfigError
from training.core.config import Setting
from training.core.files import files_below, require_folder

__all__ = ["AnnotateConfig", "annotate", "outline"]

_LABEL = "prostate"


@dataclass(frozen=True)
class AnnotateConfig:
    """Write the known outlines of simulated patients as an annotation tool would."""

    simulated: Annotated[Path, Setting("folder that simulate --form raw wrote")] = Path("simulated")
    data_dir: Annotated[Path, Setting("folder that prepare wrote from it")] = Path("prepared")
    out_dir: Annotated[Path, Setting("receives the export; new or empty")] = Path("export")
    salt_file: Annotated[
        Path | None, Setting("of prepare; default: DATA_DIR.salt, beside the folder")
    ] = None
    form: Annotated[ExportFormat, Setting("coco, yolo or png")] = ExportFormat.COCO
    size: Annotated[int, Setting("pixels of a side of the exported squares", minimum=32)] = 640


@dataclass(frozen=True, eq=False)
class _Drawn:
    name: str
    picture: pillow.Image
    mask: npt.NDArray[np.bool_]  # on the prepared frame
    outlines: list[Points]  # on the exported picture


def annotate(config: AnnotateConfig) -> None:
    """Write the export, or nothing."""
    writers = {
        ExportFormat.COCO: _write_coco, ExportFormat.YOLO: _write_yolo,
        ExportFormat.PNG: _write_png,
    }  # fmt: skip
    if config.form not in writers:
        raise ConfigError(f"expected --form to be coco, yolo or png, got {config.form.value}")
    drawn = list(_draw(config))
    with new_folder(config.out_dir) as folder:
        writers[config.form](folder, drawn, config.size)


def outline(mask: npt.NDArray[np.bool_]) -> list[Points]:
    """Polygons x, y around a mask, half way between the pixels inside and outside."""
    contours = find_contours(np.pad(mask, 1).astype(np.float64), 0.5)  # type: ignore[no-untyped-call]
    # Back by the padding, on to the corner from which coordinates are counted, y before x.
    return [contour[:, ::-1] - 0.5 for contour in contours]


def _draw(config: AnnotateConfig) -> Iterator[_Drawn]:
    salt_file = config.salt_file or config.data_dir.with_name(config.data_dir.name + ".salt")
    if not salt_file.is_file():
        raise ConfigError(f"expected the salt of prepare at {salt_file}, found none")
    pseudonyms = Pseudonyms.from_file(salt_file, config.data_dir)
    raw = require_folder(config.simulated / "raw", "--simulated")
    truth = {pseudonyms.source(path.read_bytes()): config.simulated / "truth" / path.stem
             for path in files_below(raw)}  # fmt: skip
    for entry in read_manifest(config.data_dir):
        if entry.source not in truth:
            raise ConfigError(
                f"expected {config.data_dir} to be prepared from {raw} with the salt {salt_file}, "
                f"got a frame of another file: {entry.name}"
            )
        yield _drawn(config, entry, truth[entry.source] / f"{entry.frame:04d}.png")


def _drawn(config: AnnotateConfig, entry: FrameEntry, truth: Path) -> _Drawn:
    mask = read_grey(truth)[entry.crop.slices] > 127
    frame = pillow.fromarray(read_grey(config.data_dir / IMAGES / entry.name))
    scale = np.array([config.size / frame.width, config.size / frame.height])
    # Tools round; a hundredth of a pixel moves no pixel's centre across an outline.
    outlines = [np.round(points * scale, 2) for points in outline(mask)]
    digest = hashlib.sha256(entry.name.encode()).hexdigest()[:32]
    name = f"{Path(entry.name).stem}_png.rf.{digest}.jpg"
    size = (config.size, config.size)
    return _Drawn(name, frame.resize(size, pillow.Resampling.BILINEAR), mask, outlines)


def _write_coco(folder: Path, drawn: list[_Drawn], size: int) -> None:
    folder = folder / "train"
    folder.mkdir()
    annotations: list[dict[str, object]] = []
    for number, each in enumerate(drawn):
        each.picture.save(folder / each.name, quality=90)
        for points in each.outlines:
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": 1, "iscrowd": 0,
                 "segmentation": [points.ravel().tolist()]}
            )  # fmt: skip
    content = {
        "categories": [{"id": 0, "name": "objects", "supercategory": "none"},
                       {"id": 1, "name": _LABEL, "supercategory": "objects"}],
        "images": [{"id": number, "file_name": each.name, "width": size, "height": size}
                   for number, each in enumerate(drawn)],
        "annotations": annotations,
    }  # fmt: skip
    text = json.dumps(content)
    (folder / "_annotations.coco.json").write_text(text, encoding="utf-8")


def _write_yolo(folder: Path, drawn: list[_Drawn], size: int) -> None:
    images, labels = folder / "train" / "images", folder / "train" / "labels"
    images.mkdir(parents=True)
    labels.mkdir()
    (folder / "data.yaml").write_text(f"nc: 1\nnames: ['{_LABEL}']\n", encoding="utf-8")
    for each in drawn:
        each.picture.save(images / each.name, quality=90)
        lines = [
            " ".join(["0", *(f"{value:.6f}" for value in (points / size).ravel())])
            for points in each.outlines
        ]
        path = labels / (each.name.removesuffix(".jpg") + ".txt")
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _write_png(folder: Path, drawn: list[_Drawn], size: int) -> None:
    (folder / "_classes.csv").write_text(
        f"Pixel Value, Class\n0, background\n1, {_LABEL}\n", encoding="utf-8"
    )
    for each in drawn:
        each.picture.save(folder / each.name, quality=90)
        mask = pillow.fromarray(each.mask.astype(np.uint8)).resize(
            (size, size), pillow.Resampling.NEAREST
        )
        mask.save(folder / (each.name.removesuffix(".jpg") + "_mask.png"))
