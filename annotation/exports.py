"""What annotation tools export: COCO segmentation, YOLO segmentation, masks as PNG.

Whatever is wrong is collected with its kind, so that one message can count all of it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from annotation.export_coco import read_coco
from annotation.export_png import read_png
from annotation.export_yolo import read_yolo
from annotation.model import Annotation, Problems
from medserve.errors import ConfigError
from training.core.files import files_below

__all__ = ["ExportFormat", "read_export"]


class ExportFormat(enum.StrEnum):
    """How outlines are written down."""

    AUTO = "auto"
    COCO = "coco"  # *.json with the lists images, annotations, categories
    YOLO = "yolo"  # data.yaml, labels/*.txt beside images/*
    PNG = "png"  # X_mask.png beside X.jpg, or masks/X.png


def read_export(
    folder: Path, label: str | None, problems: Problems, kind: ExportFormat = ExportFormat.AUTO
) -> list[Annotation]:
    """All annotated pictures of an export, with the outlines of one label.

    Raises:
        ConfigError: nothing that is known, or several labels and none chosen.
    """
    if not folder.is_dir():
        what = "a file; unpack it" if folder.is_file() else "nothing"
        raise ConfigError(f"expected --annotations to be a folder, got {what} at {folder}")
    files = files_below(folder)
    found = _detect(files) if kind is ExportFormat.AUTO else kind
    readers: dict[ExportFormat, Callable[[Path, list[Path], str | None, Problems], Any]] = {
        ExportFormat.COCO: read_coco, ExportFormat.YOLO: read_yolo, ExportFormat.PNG: read_png,
    }  # fmt: skip
    annotations: list[Annotation] = readers[found](folder, files, label, problems)
    if not annotations and not len(problems):
        raise ConfigError(f"expected annotated pictures in {folder} ({found.value}), found none")
    return annotations


def _detect(files: Iterable[Path]) -> ExportFormat:
    names = {path.name for path in files}
    if any(name.endswith(".json") for name in names):
        return ExportFormat.COCO
    if "data.yaml" in names:
        return ExportFormat.YOLO
    return ExportFormat.PNG
