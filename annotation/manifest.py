"""A folder of frames: `images/`, `masks/` where somebody drew them, and `manifest.csv`.

The manifest says where each frame comes from without saying whose it is: patients and files go by
keyed hashes (HMAC-SHA256, RFC 2104). The key, the salt, is a file of its own outside the folder;
without it nobody can try names or numbers until a hash fits.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import hmac
import io
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as pillow

from medserve.errors import ConfigError
from medserve.inference.frame_pipeline import FrameBox
from training.core.files import require_folder

__all__ = [
    "IMAGES",
    "MANIFEST",
    "MASKS",
    "FrameEntry",
    "Pseudonyms",
    "encode_grey",
    "new_folder",
    "read_grey",
    "read_manifest",
    "write_grey",
    "write_manifest",
]

IMAGES, MASKS, MANIFEST = "images", "masks", "manifest.csv"
_SALT_BYTES = 32
_HASH_DIGITS = 12  # hexadecimal: two of a thousand patients share a hash once in 500 million sets


@dataclass(frozen=True)
class FrameEntry:
    """One row of the manifest.

    Attributes:
        name: Of the PNG in `images` (and in `masks`).
        patient: Keyed hash; frames of one patient must stay in one part of a split.
        source: Keyed hash of the file that the frame was in.
        frame: Its index in that file, from 0.
        source_height: Rows of the frame in that file.
        source_width: Columns.
        crop: What of it the PNG shows.
        spacing_mm: Between rows and between columns; None where the file does not state it.
        overlay_pixels: Writing that was found inside the fan and is still in the picture.
        sha256: Of the PNG.
    """

    name: str
    patient: str
    source: str
    frame: int
    source_height: int
    source_width: int
    crop: FrameBox
    spacing_mm: tuple[float, float] | None
    overlay_pixels: int
    sha256: str

    def to_source(self, mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """A mask of the PNG, in its place in the source frame; 0 elsewhere."""
        if mask.shape != self.crop.shape:
            raise ValueError(f"expected a mask of shape {self.crop.shape}, got {mask.shape}")
        whole = np.zeros((self.source_height, self.source_width), dtype=np.uint8)
        whole[self.crop.slices] = mask
        return whole


_PLAIN = ("name", "patient", "source", "frame", "source_height", "source_width")
_CROP = ("top", "left", "bottom", "right")
_COLUMNS = (
    *_PLAIN,
    *(f"crop_{side}" for side in _CROP),
    "spacing_row_mm",
    "spacing_column_mm",
    "overlay_pixels",
    "sha256",
)


def write_manifest(folder: Path, entries: Sequence[FrameEntry]) -> None:
    """Write `manifest.csv`, one row a frame, sorted by name."""
    with (folder / MANIFEST).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for entry in sorted(entries, key=lambda each: each.name):
            spacing = ("", "") if entry.spacing_mm is None else entry.spacing_mm
            crop = dataclasses.astuple(entry.crop)
            plain = [getattr(entry, name) for name in _PLAIN]
            writer.writerow([*plain, *crop, *spacing, entry.overlay_pixels, entry.sha256])


def read_manifest(folder: Path) -> tuple[FrameEntry, ...]:
    """What `write_manifest` wrote.

    Raises:
        ConfigError: no manifest, or one that lacks columns, repeats names or has impossible values.
    """
    path = require_folder(folder, "--data-dir") / MANIFEST
    if not path.is_file():
        raise ConfigError(f"expected {MANIFEST} in {folder}; write it with the command prepare")
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            entries = tuple(_entry(row) for row in csv.DictReader(stream))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: expected the columns {', '.join(_COLUMNS)}, got a row that does not fit "
            f"({error!r}); write it anew with the command prepare"
        ) from error
    names = [entry.name for entry in entries]
    if repeated := len(names) - len(set(names)):
        raise ConfigError(f"{path}: expected each name once, got {repeated} repeated")
    if not entries:
        raise ConfigError(f"{path}: expected at least one frame, got none")
    return entries


def _entry(row: dict[str, str]) -> FrameEntry:
    spacing = (row["spacing_row_mm"], row["spacing_column_mm"])
    if Path(row["name"]).name != row["name"]:
        raise ValueError("a name with folders")
    top, left, bottom, right = (int(row[f"crop_{side}"]) for side in _CROP)
    return FrameEntry(
        row["name"], row["patient"], row["source"], int(row["frame"]), int(row["source_height"]),
        int(row["source_width"]), FrameBox(top, left, bottom, right),
        (float(spacing[0]), float(spacing[1])) if all(spacing) else None,
        int(row["overlay_pixels"]), row["sha256"],
    )  # fmt: skip


@dataclass(frozen=True)
class Pseudonyms:
    """Names that say nothing, and are the same each time for the same patient and salt."""

    salt: bytes = dataclasses.field(repr=False)

    @classmethod
    def from_file(cls, path: Path, apart_from: Path) -> Pseudonyms:
        """Read the salt, or draw one and write it for this user's eyes only.

        Raises:
            ConfigError: the file lies inside `apart_from`, or is no salt.
        """
        if path.resolve().is_relative_to(apart_from.resolve()):
            raise ConfigError(
                "expected --salt-file outside --out-dir, which is handed on, got one inside; "
                "whoever has both can find out names"
            )
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(secrets.token_bytes(_SALT_BYTES))
        salt = path.read_bytes()
        if len(salt) < _SALT_BYTES // 2:
            raise ConfigError(
                f"expected at least {_SALT_BYTES // 2} random bytes in {path}, got {len(salt)}"
            )
        return cls(salt)

    def patient(self, identity: str) -> str:
        """Of a patient's identifier."""
        return "p" + self._digest(b"patient", identity.encode())

    def source(self, content: bytes) -> str:
        """Of a file's bytes."""
        return "s" + self._digest(b"source", content)

    def _digest(self, kind: bytes, content: bytes) -> str:
        # What kind of thing it is goes in, so that no patient and no file share a hash.
        whole = hmac.new(self.salt, kind + b"\0" + content, hashlib.sha256)
        return whole.hexdigest()[:_HASH_DIGITS]


@contextmanager
def new_folder(out_dir: Path) -> Iterator[Path]:
    """A folder to fill that becomes `out_dir` when all went well, and vanishes otherwise.

    Raises:
        ConfigError: there is something at `out_dir` already.
    """
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ConfigError(
            f"expected --out-dir to be new or empty, but there is something: {out_dir}"
        )
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    working = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    try:
        yield working
        if out_dir.exists():
            out_dir.rmdir()
        working.chmod(0o755)  # mkdtemp keeps others out
        working.rename(out_dir)
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise


def encode_grey(image: npt.NDArray[np.uint8]) -> bytes:
    """A grey (H, W) picture as PNG without any metadata."""
    stream = io.BytesIO()
    pillow.fromarray(image, mode="L").save(stream, "PNG")
    return stream.getvalue()


def write_grey(path: Path, image: npt.NDArray[np.uint8]) -> str:
    """Write a grey (H, W) PNG; return its SHA-256."""
    content = encode_grey(image)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def read_grey(path: Path) -> npt.NDArray[np.uint8]:
    """A picture as grey uint8 (H, W); ConfigError where there is none or it is damaged."""
    try:
        with pillow.open(path) as picture:
            return np.asarray(picture.convert("L"))
    except FileNotFoundError:
        raise ConfigError(f"expected a picture at {path}, found none") from None
    except Exception as error:  # a parser of damaged bytes may raise anything
        raise ConfigError(f"expected a whole picture at {path}, got a damaged one") from error
