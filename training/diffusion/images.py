"""Any folder of images as one array: size, channels and classes as the configuration says."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import track

from medserve.errors import ConfigError, InvalidImageError, PayloadTooLargeError
from medserve.imaging.codecs import sniff
from medserve.inference.fit import fit_colour, fit_grey
from medserve.spec import InputKind, InputSpec
from training.classification.data import LabelledImages
from training.core.files import files_below, require_folder

__all__ = ["FolderRequest", "read_folder"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderRequest:
    """Which images to read, and how.

    Attributes:
        folder: Holds images, or one folder of images per class.
        image_size: Side of the square that each is fitted into.
        channels: 1 for grey, 3 for colour.
        only_class: Read this class alone; every class where it is empty.
    """

    folder: Path
    image_size: int
    channels: int = 1
    only_class: str = ""


def read_folder(request: FolderRequest) -> LabelledImages:
    """Decode every image below the folder by the code that serving uses.

    Images come as uint8 (N, C, H, W). Without class folders all have the one label "all". A file
    that is no image is logged, counted in `skipped` and left out.

    Raises:
        ConfigError: no such folder or class, or no image in it.
    """
    require_folder(request.folder, "--data-dir")
    labels = _labels(request)
    files = [(path, label) for label in labels for path in _files(request.folder, label)]
    planes, kept, names, skipped = [], [], [], []
    for path, label in track(files, description="Reading images"):
        relative = path.relative_to(request.folder).as_posix()
        try:
            planes.append(_plane(path, request))
        except (InvalidImageError, PayloadTooLargeError) as error:
            _log.warning("skipped %s: %s", relative, error)
            skipped.append(relative)
            continue
        kept.append(relative)
        names.append(label)
    if not kept:
        raise ConfigError(
            f"{request.folder}: expected images (PNG, JPEG, TIFF, DICOM), found none that decodes "
            f"among {len(files)} files"
        )
    if skipped:
        _log.warning("%d of %d files are no images and were left out", len(skipped), len(files))
    label_ids = np.array([labels.index(name) for name in names], dtype=np.int64)
    return LabelledImages(np.stack(planes), label_ids, tuple(kept), labels, tuple(skipped))


def _labels(request: FolderRequest) -> tuple[str, ...]:
    """Names of the class folders that hold anything, sorted; ("all",) where there are none."""
    found = tuple(
        sorted(
            path.name
            for path in request.folder.iterdir()
            if path.is_dir() and not path.name.startswith(".") and any(_walk(path))
        )
    )
    if not request.only_class:
        return found or ("all",)
    if request.only_class not in found:
        there = ", ".join(found) or "no class folders"
        raise ConfigError(
            f"{request.folder}: expected a class folder {request.only_class!r}, found {there}"
        )
    return (request.only_class,)


def _files(folder: Path, label: str) -> list[Path]:
    inside = folder / label
    return files_below(inside if inside.is_dir() else folder)


def _walk(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _plane(path: Path, request: FolderRequest) -> npt.NDArray[np.uint8]:
    size = (request.image_size, request.image_size)
    limits = InputSpec(kinds=(InputKind.RASTER, InputKind.DICOM), size=size)
    image = sniff.decode(path.read_bytes(), limits)
    fitted = fit_colour(image, size) if request.channels == 3 else fit_grey(image, size)
    return np.rint(255.0 * fitted).astype(np.uint8)
