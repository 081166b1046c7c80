"""Raw frames of a machine -> pictures that may be sent to annotators.

    python -m training.trus_prostate prepare --data-dir RAW --out-dir PREPARED

DICOM files (single and multi-frame), folders of PNG, JPEG, TIFF, and NIfTI stacks become 8-bit
grey PNG of the fan alone. Headers are not carried over, what lies outside the fan is black, names
are keyed hashes. What had to be left out is counted, and listed beside the folder, not in it: the
list holds file names, which may be names of patients. So is each frame in which writing was seen
inside the fan, and each of which nothing can be said: a single picture has no motion by which
writing stands out.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from rich.progress import track

from annotation.fan import FoundFan, find_fan, moves
from annotation.manifest import (
    IMAGES,
    FrameEntry,
    Pseudonyms,
    encode_grey,
    new_folder,
    write_manifest,
)
from annotation.thumbnails import write_sheet
from medserve.errors import ConfigError, InvalidImageError, MedserveError
from medserve.imaging.codecs import frame_file
from medserve.imaging.codecs.payload import quietly
from medserve.imaging.frames import FrameLimits, FrameStack
from medserve.imaging.image import Image
from medserve.imaging.ultrasound_check import looks_like_ultrasound
from medserve.inference.frame_pipeline import FrameBox
from medserve.spec import InputKind, InputSpec
from training.core.config import Setting
from training.core.files import files_below, require_folder

__all__ = ["UNDECIDED", "WRITTEN", "PrepareConfig", "Prepared", "prepare"]

_log = logging.getLogger(__name__)

_LIMITS = FrameLimits(
    InputSpec(
        kinds=(InputKind.RASTER, InputKind.DICOM, InputKind.NIFTI), size=(1, 1), min_side=32,
        max_payload_bytes=4 * 2**30,
    ),
    max_frames=20_000,
)  # fmt: skip
_LOOKED_AT = 16  # frames of a loop that the fan is found from
WRITTEN = "looks as if writing lay inside the fan (overlay_pixels); look at the frame"
UNDECIDED = "no motion tells writing from tissue: small letters may lie in it; look at the frame"
_SHEET = 48  # thumbnails for a person to check


@dataclass(frozen=True)
class PrepareConfig:
    """Turn raw frames into pictures for annotation, without names."""

    data_dir: Annotated[Path, Setting("folder of DICOM files and pictures")] = Path("raw")
    out_dir: Annotated[Path, Setting("receives the frames; new or empty")] = Path("prepared")
    salt_file: Annotated[
        Path | None,
        Setting("key of the hashes, made when missing; default: OUT_DIR.salt, beside the folder"),
    ] = None
    every: Annotated[int, Setting("take each Nth frame of a loop", minimum=1)] = 1
    crop: Annotated[bool, Setting("cut to the fan; otherwise keep the frame's size")] = True
    mask: Annotated[bool, Setting("make black what lies outside the fan")] = True
    patient_pattern: Annotated[
        str,
        Setting(
            "regular expression whose first group is the patient in a picture's path; default: "
            "the first folder, or the file itself"
        ),
    ] = ""
    strict: Annotated[bool, Setting("write nothing if any file had to be left out")] = False


@dataclass
class Prepared:
    """What became of the frames.

    Attributes:
        entries: Those that were written.
        notes: File, frame (empty: the whole file), and why it was left out or needs a look.
        left_out: How many of the notes are about something left out.
    """

    entries: list[FrameEntry] = dataclasses.field(default_factory=list)
    notes: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    left_out: int = 0

    def leave_out(self, file: str, frame: str, why: str) -> None:
        """Note something that is not in the folder."""
        self.notes.append((file, frame, why))
        self.left_out += 1

    def writing(self) -> str:
        """Return what is known of writing inside the fan, in one sentence."""
        counts = self.counts()
        written, undecided = counts[WRITTEN], counts[UNDECIDED]
        files = len({file for file, _, why in self.notes if why == UNDECIDED})
        moving = len(self.entries) - written - undecided
        return (
            f"writing inside the fan: seen in {written} frames; not decided for {undecided} frames "
            f"of {files} files, look at each; not seen in {moving} frames of moving loops"
        )

    def counts(self) -> Counter[str]:
        """How often each note was made."""
        return Counter(why for _, _, why in self.notes)


def prepare(config: PrepareConfig) -> Prepared:
    """Write the folder, or nothing.

    Raises:
        ConfigError: no usable frame; with `strict`, anything that had to be left out.
    """
    files = files_below(require_folder(config.data_dir, "--data-dir"))
    if not files:
        raise ConfigError(f"expected DICOM files or pictures in {config.data_dir}, found no file")
    salt_file = config.salt_file or config.out_dir.with_name(config.out_dir.name + ".salt")
    with new_folder(config.out_dir) as folder:
        (folder / IMAGES).mkdir()
        run = _Run(config, Pseudonyms.from_file(salt_file, config.out_dir), folder)
        for path in track(files, "preparing"):
            run.add(path)
        prepared = run.prepared
        _write_notes(config.out_dir.with_name(config.out_dir.name + ".notes.csv"), prepared)
        summary = "; ".join(f"{count} x {why}" for why, count in prepared.counts().most_common(8))
        if not prepared.entries:
            raise ConfigError(
                f"expected at least one usable frame, got none of {len(files)} files: {summary}"
            )
        if config.strict and prepared.left_out:
            raise ConfigError(
                f"expected every frame to be usable, left out {prepared.left_out}: {summary}; "
                "nothing was written, --no-strict writes the rest"
            )
        write_manifest(folder, prepared.entries)
        write_sheet(folder / "sheet.png", folder, prepared.entries, _SHEET)
    patients = len({entry.patient for entry in prepared.entries})
    _log.info("wrote %d frames of %d patients", len(prepared.entries), patients)
    _log.info("%s", prepared.writing())
    if prepared.notes:
        _log.warning("%d left out, %d notes: %s", prepared.left_out, len(prepared.notes), summary)
    return prepared


def _write_notes(path: Path, prepared: Prepared) -> None:
    path.unlink(missing_ok=True)
    if prepared.notes:
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("file", "frame", "note"))
            writer.writerows(prepared.notes)


class _Run:
    """One call of `prepare`: what is known across files."""

    def __init__(self, config: PrepareConfig, pseudonyms: Pseudonyms, folder: Path) -> None:
        self._config = config
        self._pseudonyms = pseudonyms
        self._folder = folder
        self._patient_of: dict[str, str] = {}  # SHA-256 of a picture -> whose it is
        self.prepared = Prepared()

    def add(self, path: Path) -> None:
        """Write the frames of one file; what is wrong with it becomes a note."""
        relative = path.relative_to(self._config.data_dir).as_posix()
        try:
            payload = path.read_bytes()
            stack = frame_file.decode(payload, _LIMITS)
            patient = self._pseudonyms.patient(self._identity(relative, payload, stack))
            fan = _fan_of(stack)
        except (MedserveError, OSError) as error:
            self.prepared.leave_out(relative, "", str(error))
            return
        source = self._pseudonyms.source(payload)
        for index in range(0, stack.grid.count, self._config.every):
            try:
                self._write(stack, index, fan, (patient, source, relative))
            except MedserveError as error:
                self.prepared.leave_out(relative, str(index), str(error))

    def _identity(self, relative: str, payload: bytes, stack: FrameStack) -> str:
        """Whose the file is: by its header, or by where it lies."""
        if stack.kind is InputKind.DICOM:
            identity = _dicom_identity(payload)
            if identity is not None:
                return identity
        if self._config.patient_pattern:
            try:
                match = re.search(self._config.patient_pattern, relative)
            except re.error as error:
                raise ConfigError(f"--patient-pattern: no regular expression: {error}") from error
            if match is None or not match.groups() or match.group(1) is None:
                raise InvalidImageError(
                    "expected a patient by --patient-pattern in the path, got none"
                )
            return f"path {match.group(1)}"
        return f"path {relative.split('/')[0]}"

    def _write(
        self, stack: FrameStack, index: int, found: _LoopFan, whose: tuple[str, str, str]
    ) -> None:
        patient, source, relative = whose
        image = stack.read(index)
        grey = _bytes(image.grey())
        if not looks_like_ultrasound(image):
            note = "does not look like ultrasound; look at it in sheet.png"
            self.prepared.notes.append((relative, str(index), note))
        if self._config.mask:
            grey = np.where(found.fan.mask, grey, np.uint8(0))
        box = found.fan.box if self._config.crop else FrameBox(0, 0, *grey.shape)
        cropped = np.ascontiguousarray(grey[box.slices])
        if int(cropped.max()) == 0:
            raise InvalidImageError("expected a picture, got a black frame")
        content = encode_grey(cropped)
        digest = hashlib.sha256(content).hexdigest()
        if digest in self._patient_of:
            other = self._patient_of[digest] != patient
            raise InvalidImageError(
                "expected each picture once, got an exact copy of one of "
                + ("another patient" if other else "the same patient")
            )
        name = f"{patient}_{source}_{index:05d}.png"
        (self._folder / IMAGES / name).write_bytes(content)
        self._patient_of[digest] = patient
        still = not moves(found.varying)
        overlay = found.fan.overlay_pixels(
            _bytes(image.grey()) if still else found.brightest, found.varying, _chroma(image)
        )
        if overlay:
            self.prepared.notes.append((relative, str(index), WRITTEN))
        elif still:
            self.prepared.notes.append((relative, str(index), UNDECIDED))
        height, width = grey.shape
        entry = FrameEntry(
            name, patient, source, index, height, width, box, stack.grid.spacing_mm,
            overlay, digest,
        )  # fmt: skip
        self.prepared.entries.append(entry)


@dataclass(frozen=True, eq=False)
class _LoopFan:
    fan: FoundFan
    brightest: npt.NDArray[np.uint8]
    varying: npt.NDArray[np.uint8] | None


def _fan_of(stack: FrameStack) -> _LoopFan:
    """The fan of a file, from frames spread over it."""
    chosen = np.unique(np.linspace(0, stack.grid.count - 1, _LOOKED_AT).round().astype(int))
    brightest = darkest = None
    for grey in _readable(stack, chosen):
        brightest = grey if brightest is None else np.maximum(brightest, grey)
        darkest = grey if darkest is None else np.minimum(darkest, grey)
    if brightest is None or darkest is None:
        raise InvalidImageError("expected frames that can be decoded, got none")
    varying = brightest - darkest if stack.grid.count > 1 else None
    return _LoopFan(find_fan(brightest, varying), brightest, varying)


def _readable(stack: FrameStack, chosen: npt.NDArray[np.intp]) -> Iterator[npt.NDArray[np.uint8]]:
    for index in chosen:
        try:
            yield _bytes(stack.read(int(index)).grey())
        except MedserveError:
            continue  # noted when its turn comes


def _bytes(grey: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Intensities in [0, 1] -> the stored values of an 8-bit picture, exactly."""
    return np.rint(grey * np.float32(255)).astype(np.uint8)


def _chroma(image: Image) -> npt.NDArray[np.uint8] | None:
    if not image.is_colour:
        return None
    return _bytes(image.array.max(axis=2) - image.array.min(axis=2))


def _dicom_identity(payload: bytes) -> str | None:
    """Patient and issuer, or the study where the patient is left out; None without either."""
    names = ["PatientID", "IssuerOfPatientID", "StudyInstanceUID"]
    with quietly():
        try:
            header = dcmread(
                io.BytesIO(payload), stop_before_pixels=True, specific_tags=list(names)
            )
            patient, issuer, study = (str(header.get(name) or "").strip() for name in names)
        except Exception:  # pydicom quotes values in what it raises
            return None
    if patient:
        return f"patient {issuer} {patient}"
    return f"study {study}" if study else None
