"""Frames with reference masks: found, paired, attributed to patients, brought to the network.

    images/NAME.png   masks/NAME.png   and who they are of: manifest.csv, or patients.csv

A mask is above 0 where the structure is; all 0 says that there is none, which is an answer too. For
a model of several structures it holds their ids.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import track

from annotation.manifest import IMAGES, MANIFEST, MASKS, read_grey, read_manifest
from medserve.errors import ConfigError, MedserveError
from medserve.imaging.codecs import raster
from medserve.imaging.image import Image
from medserve.inference.frame_pipeline import FrameInverse, FramePipeline
from medserve.spec import InputSpec
from training.core.split import Split, deal

__all__ = [
    "FrameCase",
    "LoadedFrame",
    "find_frames",
    "load_frames",
    "mask_shares",
    "read_frame",
    "read_mask",
    "split_frames",
]

_log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
# Tables that say who is who, by the names of their columns: our own two, and that of published
# sets in which pictures that look alike were grouped instead.
_TABLES = (
    ("patients.csv", "name", "patient"),
    ("index.csv", "file", "near_duplicate_group"),
)


@dataclass(frozen=True)
class FrameCase:
    """One frame and its reference mask, not read yet.

    Attributes:
        name: Of the file, without its suffix; the same for both.
        patient: Whose frame it is; patients, not frames, are split.
    """

    name: str
    image: Path
    mask: Path
    patient: str


@dataclass(frozen=True, eq=False)
class LoadedFrame:
    """One frame as the network sees it, in memory.

    Attributes:
        case: Where it comes from.
        plane: float16 (H, W), prepared by the code that serving uses; display values have 8 bits.
        mask: uint8 (H, W) of 0 and 1 on the same pixels.
        inverse: To the frame's own pixels.
    """

    case: FrameCase
    plane: npt.NDArray[np.float16]
    mask: npt.NDArray[np.uint8]
    inverse: FrameInverse


def find_frames(data_dir: Path) -> list[FrameCase]:
    """All frames of a folder that have a mask, sorted by name.

    Raises:
        ConfigError: no pairs, a frame or mask without its other half (with their number), two files
            of one name, or a table that does not name every frame.
    """
    images, masks = (_by_name(data_dir / folder) for folder in (IMAGES, MASKS))
    for role, there, here in (("mask", images, masks), ("frame", masks, images)):
        if alone := sorted(set(there) - set(here)):
            raise ConfigError(
                f"{data_dir}: {len(alone)} of {len(there)} files without their {role}, the first "
                f"is {there[alone[0]].name}; expected {IMAGES}/NAME.png and {MASKS}/NAME.png"
            )
    if not images:
        raise ConfigError(f"expected frames in {data_dir / IMAGES}, found none")
    patients = _patients(data_dir, images)
    return [FrameCase(name, images[name], masks[name], patients[name]) for name in sorted(images)]


def load_frames(cases: Sequence[FrameCase], pipeline: FramePipeline) -> list[LoadedFrame]:
    """Read and prepare every frame, once; what a training then works on is in memory."""
    loaded = []
    for case in track(cases, "Preparing frames", transient=True):
        prepared = pipeline.prepare(read_frame(case.image, pipeline.spec.input))
        mask = pipeline.prepare_mask(read_mask(case, prepared.inverse.source), prepared.inverse)
        plane = prepared.plane[0].astype(np.float16)
        loaded.append(LoadedFrame(case, plane, mask, prepared.inverse))
    size = sum(each.plane.nbytes + each.mask.nbytes for each in loaded) / 2**20
    _log.info("%d frames in memory, %.0f MiB", len(loaded), size)
    return loaded


def split_frames(
    cases: Sequence[FrameCase],
    shares: Mapping[str, float],
    folds: int,
    test_share: float,
    seed: int = 0,
) -> Split:
    """Deal patients out; no part has only small structures, by their shares of the pixels."""
    names_of: dict[str, list[str]] = {}
    for case in sorted(cases, key=lambda each: each.name):
        names_of.setdefault(case.patient, []).append(case.name)
    largest = {each: max(shares[name] for name in names) for each, names in names_of.items()}
    return deal(names_of, largest, folds, test_share, seed)


def mask_shares(cases: Sequence[FrameCase]) -> dict[str, float]:
    """Return the name of each frame -> share of its pixels inside the structure."""
    return {case.name: float(np.mean(read_grey(case.mask) > 0)) for case in cases}


def read_frame(path: Path, limits: InputSpec) -> Image:
    """A frame by the codec of serving; ConfigError names the file that it would refuse."""
    try:
        return raster.decode(path.read_bytes(), limits)
    except (OSError, MedserveError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error


def read_mask(case: FrameCase, shape: tuple[int, int], labels: int = 2) -> npt.NDArray[np.uint8]:
    """The reference mask of a frame, uint8 (H, W): label ids, of one structure 0 and 1.

    Args:
        case: The frame.
        shape: Its rows and columns.
        labels: How many the model has, the background among them.

    Raises:
        ConfigError: it is damaged, has other sides than its frame, or a value that is no label's.
    """
    mask = read_grey(case.mask)
    if mask.shape != shape:
        raise ConfigError(
            f"{case.mask}: expected the sides of its frame, {shape[1]} x {shape[0]} pixels, got "
            f"{mask.shape[1]} x {mask.shape[0]}"
        )
    if labels == 2:
        return (mask > 0).astype(np.uint8)
    if mask.max() >= labels:
        raise ConfigError(
            f"{case.mask}: expected ids of {labels} labels, 0 to {labels - 1}, got {mask.max()}"
        )
    return mask.astype(np.uint8)


def _by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise ConfigError(f"expected a folder {folder} (beside it {IMAGES} or {MASKS})")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in SUFFIXES:
            continue
        if path.stem in found:
            raise ConfigError(f"{folder}: {found[path.stem].name} and {path.name} have one name")
        found[path.stem] = path
    return found


def _patients(data_dir: Path, images: dict[str, Path]) -> dict[str, str]:
    """Name of a frame -> its patient."""
    if (data_dir / MANIFEST).is_file():
        stated = {Path(each.name).stem: each.patient for each in read_manifest(data_dir)}
        return _complete(data_dir / MANIFEST, stated, images)
    for file, name, patient in _TABLES:
        path = data_dir / file
        if not path.is_file():
            continue
        try:
            with path.open(newline="", encoding="utf-8") as stream:
                stated = {Path(row[name]).stem: row[patient] for row in csv.DictReader(stream)}
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{path}: expected the columns {name},{patient}, got others ({error!r})"
            ) from error
        return _complete(path, stated, images)
    _log.warning(
        "%s: no table says whose each frame is, so each counts as its own patient; frames of one "
        "patient on both sides of a split make scores too good (patients.csv: name,patient)",
        data_dir,
    )
    return {name: name for name in images}


def _complete(path: Path, stated: dict[str, str], images: dict[str, Path]) -> dict[str, str]:
    if missing := sorted(set(images) - set(stated)):
        raise ConfigError(
            f"{path}: expected every frame, but {len(missing)} of {len(images)} are missing, the "
            f"first is {missing[0]}"
        )
    return stated
