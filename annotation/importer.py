"""Outlines drawn in an annotation tool -> masks on the frames that were prepared for it.

    python -m training.trus_prostate import --data-dir PREPARED --annotations EXPORT --out-dir DIR

Tools rename, resize, pad, flip and turn pictures on their way out. Each exported picture is
brought back to its frame by name where the name survived, by its speckle where it did not, and
always checked against the frame's own speckle. Either all of an export fits, or nothing is
written and one message counts what does not.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from rich.progress import track

from annotation.exports import ExportFormat, read_export
from annotation.lookup import FrameLookup
from annotation.manifest import (
    IMAGES,
    MASKS,
    FrameEntry,
    new_folder,
    read_grey,
    read_manifest,
    write_grey,
    write_manifest,
)
from annotation.model import Annotation, Problems
from annotation.outlines import Mask
from annotation.placing import LEAST_LIKENESS, Placement, brought_back, place
from annotation.thumbnails import write_sheet
from medserve.errors import ConfigError
from training.core.config import Setting

__all__ = ["SOURCE_MASKS", "ImportConfig", "Imported", "import_annotations", "plain_name"]

_log = logging.getLogger(__name__)

SOURCE_MASKS = "source_masks"  # at the size of the frames before they were cropped
_DECORATION = re.compile(r"\.rf\.[0-9a-zA-Z]+$")  # Roboflow's, before the suffix
_FORMER_SUFFIX = re.compile(r"[._](png|jpe?g|tiff?|bmp|webp)$", re.IGNORECASE)
_WHOLE = 0.99  # share of a frame that an export must show for an outline at its edge to count
_SAME = 0.9  # Dice of two outlines of one frame that are the same outline
_SHEET = 48  # thumbnails for a person to check


@dataclass(frozen=True)
class ImportConfig:
    """Bring outlines from an annotation tool back to the prepared frames."""

    data_dir: Annotated[Path, Setting("folder that prepare wrote")] = Path("prepared")
    annotations: Annotated[Path, Setting("unpacked export of the annotation tool")] = Path("export")
    out_dir: Annotated[Path, Setting("receives frames and masks; new or empty")] = Path("data/trus")
    form: Annotated[ExportFormat, Setting("how the outlines are written down")] = ExportFormat.AUTO
    label: Annotated[
        str | None, Setting("which label's outlines; needed where the export has several")
    ] = None
    skip_problems: Annotated[bool, Setting("import the rest where something does not fit")] = False


@dataclass(frozen=True)
class Imported:
    """What became of an export.

    Attributes:
        entries: Frames that have a mask now.
        without: Prepared frames that the export says nothing about.
        problems: What did not fit.
        estimated: Masks that came back by an estimated map, so not exactly.
    """

    entries: tuple[FrameEntry, ...]
    without: int
    problems: Problems
    estimated: int


@dataclass(frozen=True, eq=False)
class _Candidate:
    annotation: Annotation
    placement: Placement
    mask: Mask

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """Whole pictures first, then exact ones, then the most alike."""
        likeness = self.placement.likeness
        whole = self.placement.coverage >= _WHOLE
        return whole, self.placement.exact, 1.0 if likeness is None else likeness


def import_annotations(config: ImportConfig) -> Imported:
    """Write images, masks and manifest of the annotated frames, or nothing.

    Raises:
        ConfigError: no usable manifest or export; without `skip_problems`, anything that does
            not fit.
    """
    entries = read_manifest(config.data_dir)
    problems = Problems()
    annotations = read_export(config.annotations, config.label, problems, config.form)
    lookup = FrameLookup(config.data_dir, entries)
    placed: dict[FrameEntry, list[_Candidate]] = defaultdict(list)
    for annotation in track(annotations, "bringing back"):
        found = _find(annotation, lookup, problems)
        if found is not None:
            placed[found[0]].append(found[1])
    best = {entry: each for entry, found in placed.items()
            if (each := _best(found, problems)) is not None}  # fmt: skip
    if len(problems) and not config.skip_problems:
        raise ConfigError(
            f"expected every outline to fit, got {len(problems)} problems: {problems}; nothing was "
            "written: correct the export, or take the rest with --skip-problems"
        )
    if not best:
        raise ConfigError(
            f"expected at least one annotated frame, got none"
            f"{f': {problems}' if len(problems) else ''}"
        )
    _write(config, best)
    estimated = sum(not each.placement.exact for each in best.values())
    imported = Imported(tuple(best), len(entries) - len(best), problems, estimated)
    _log.info(
        "wrote %d masks, %d of them by an estimated map; %d frames have no annotation",
        len(best), estimated, imported.without,
    )  # fmt: skip
    if len(problems):
        _log.warning("left out: %s", problems)
    return imported


def plain_name(name: str) -> str:
    """The stem that a picture had before tools added to it: `a_png.rf.0f3c.jpg` -> `a`."""
    stem = _FORMER_SUFFIX.sub("", Path(name.replace("\\", "/")).name)
    return _FORMER_SUFFIX.sub("", _DECORATION.sub("", stem)).lower()


def _find(
    annotation: Annotation, lookup: FrameLookup, problems: Problems
) -> tuple[FrameEntry, _Candidate] | None:
    """The frame that an exported picture shows, and the outlines on it."""
    picture = None if annotation.picture is None else read_grey(annotation.picture)
    if picture is not None and picture.shape != annotation.shape:
        problems.add("picture of another size than its annotation states", annotation.name)
        return None
    names = [plain_name(each) for each in (annotation.original, annotation.name) if each]
    entry = next((found for name in names if (found := lookup.named(name))), None)
    if entry is not None:
        placement = place(annotation.shape, picture, lookup.frame(entry))
        kind = ("picture that does not show the frame of its name" if picture is not None
                else "picture of other proportions, without which it cannot be placed")  # fmt: skip
    else:
        entry, placement = _by_speckle(annotation, picture, lookup)
        kind = "annotation of a picture that is not in the manifest"
    if entry is None or placement is None:
        problems.add(kind, annotation.name)
        return None
    mask = brought_back(annotation, placement, lookup.frame(entry).shape)
    return entry, _Candidate(annotation, placement, mask)


def _by_speckle(
    annotation: Annotation, picture: npt.NDArray[np.uint8] | None, lookup: FrameLookup
) -> tuple[FrameEntry | None, Placement | None]:
    best: tuple[FrameEntry | None, Placement | None] = (None, None)
    likeness = LEAST_LIKENESS
    for entry in lookup.alike(picture) if picture is not None else ():
        placement = place(annotation.shape, picture, lookup.frame(entry), turned=False)
        if placement is not None and (placement.likeness or 0.0) > likeness:
            likeness, best = placement.likeness or 0.0, (entry, placement)
    return best


def _best(found: Sequence[_Candidate], problems: Problems) -> _Candidate | None:
    """The version of a frame that says most; None with a note where versions contradict."""
    best = max(found, key=lambda each: each.rank)
    name = best.annotation.name
    if best.placement.coverage < _WHOLE and _at_edge(best.annotation):
        problems.add("outline cut off by the export's crop", name)
        return None
    exact = [each for each in found if each.placement.exact and each.placement.coverage >= _WHOLE]
    if any(_dice(best.mask, each.mask) < _SAME for each in exact):
        problems.add("frame annotated twice, with different outlines", name)
        return None
    return best


def _at_edge(annotation: Annotation) -> bool:
    drawn = annotation.drawn()
    return bool(drawn[[0, -1]].any() or drawn[:, [0, -1]].any())


def _dice(first: Mask, second: Mask) -> float:
    total = int(first.sum()) + int(second.sum())
    return 1.0 if total == 0 else 2 * int((first & second).sum()) / total


def _write(config: ImportConfig, best: dict[FrameEntry, _Candidate]) -> None:
    with new_folder(config.out_dir) as folder:
        (folder / IMAGES).mkdir()
        for entry, candidate in best.items():
            source = config.data_dir / IMAGES / entry.name
            if hashlib.sha256(source.read_bytes()).hexdigest() != entry.sha256:
                raise ConfigError(
                    f"expected {source} as it was prepared, got a changed one; prepare it anew"
                )
            shutil.copyfile(source, folder / IMAGES / entry.name)
            mask = np.where(candidate.mask, np.uint8(255), np.uint8(0))
            write_grey(folder / MASKS / entry.name, mask)
            write_grey(folder / SOURCE_MASKS / entry.name, entry.to_source(mask))
        entries = list(best)
        write_manifest(folder, entries)
        write_sheet(folder / "sheet.png", folder, entries, _SHEET)
