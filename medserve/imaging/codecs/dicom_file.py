"""Bytes of a DICOM file -> pydicom's Dataset: one reader for single images, loops and series.

The transfer syntax is taken from the file meta information (PS3.10 section 7.1), where it stands,
and a deflated data set is expanded no further than a stated number of bytes.
No element of the file is quoted in an error: headers carry names.
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from medserve.errors import InvalidImageError, PayloadTooLargeError
from medserve.imaging.codecs.payload import Payload

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

__all__ = [
    "DAMAGED",
    "PIXEL_DATA",
    "check_stored_frames",
    "frame_count",
    "is_dicom",
    "is_directory",
    "kind_without_pixels",
    "read",
    "stored_frames",
    "surplus_frames",
    "syntax_of",
    "without_pixels",
]

PIXEL_DATA = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
DAMAGED = (
    "expected a whole DICOM image, got one whose {part} is damaged or cut short; "
    "export it again from the archive"
)
_MAGIC_AT, _MAGIC = 128, b"DICM"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_EXPLICIT = b"1.2.840.10008.1.2.1".ljust(len(_DEFLATED), b"\0")
_DIRECTORY = b"1.2.840.10008.1.3.10"  # Media Storage Directory Storage: a DICOMDIR
_META_GROUP, _SYNTAX, _CLASS = 0x0002, 0x0010, 0x0002
_LONG_FORMS = (b"OB", b"OW", b"UN", b"UT", b"SQ", b"OF", b"OD", b"OL", b"UC", b"UR")
_MAX_INFLATED_BYTES = 2**30
_CODESTREAMS = (b"\xff\xd8", b"\xff\x4f")  # how frames of JPEG, JPEG-LS and JPEG 2000 begin
_RLE = "1.2.840.10008.1.2.5"
_IMAGE_CLASS = "Image Storage"  # how the names of all classes with pixels end (PS3.6 annex A)


def is_dicom(payload: Payload) -> bool:
    """Whether the bytes begin as a DICOM Part 10 file does; nothing else is checked."""
    return bytes(payload[_MAGIC_AT : _MAGIC_AT + 4]) == _MAGIC


def is_directory(payload: Payload) -> bool:
    """Whether the bytes are a DICOMDIR, which lists the images of a medium and holds none."""
    return is_dicom(payload) and _meta(payload)[0].get(_CLASS) == _DIRECTORY


def kind_without_pixels(dataset: Dataset) -> str:
    """Return what an object without pixel data is, for people: by its class where that is known."""
    from pydicom.uid import UID

    meta = getattr(dataset, "file_meta", {})
    kind = UID(str(meta.get("MediaStorageSOPClassUID") or ""))
    if str(kind.name).endswith(_IMAGE_CLASS):
        return "an image without its pixels"
    known = f": {kind.name.removesuffix(' Storage')}" if kind.name != kind else ""
    return f"a DICOM object that is no image{known}"


def read(payload: Payload, elements: Sequence[str] | None = None) -> Dataset:
    """The data set of a file: all of it, or the top-level `elements` alone.

    Raises:
        InvalidImageError: no DICOM Part 10 file.
        PayloadTooLargeError: a deflated one that would take more than 1 GiB.
        Exception: whatever pydicom raises for a damaged header; it may quote the header.
    """
    from pydicom import dcmread

    if not is_dicom(payload):
        raise InvalidImageError(
            "expected a DICOM Part 10 file, got bytes that do not begin as one; save it as one"
        )
    content = bytes(payload)
    meta, end = _meta(content)
    if meta.get(_SYNTAX) == _DEFLATED:
        content = content[:end].replace(_DEFLATED, _EXPLICIT) + _inflated(content[end:])
    return dcmread(io.BytesIO(content), specific_tags=None if elements is None else [*elements])


def frame_count(dataset: Dataset) -> int:
    """How many frames the header states."""
    return int(dataset.get("NumberOfFrames") or 1)


def stored_frames(dataset: Dataset) -> int | None:
    """How many frames the pixel data hold, of compressed ones at most; None where unknown.

    Fewer than the header states are a cut file, or a wrong number.
    """
    syntax = syntax_of(dataset)
    if syntax is None or not syntax.is_transfer_syntax or "PixelData" not in dataset:
        return None
    return _encapsulated(dataset) if syntax.is_encapsulated else _native(dataset)


def surplus_frames(dataset: Dataset) -> int:
    """How many frames the pixel data hold beyond those that the header states, as far as is known.

    They are frames that nobody would look at: NumberOfFrames is missing, or wrong.
    """
    syntax, stated = syntax_of(dataset), frame_count(dataset)
    if syntax is None or not syntax.is_transfer_syntax or "PixelData" not in dataset:
        return 0
    if syntax.is_encapsulated:
        return max(0, _begun(dataset, syntax) - stated)
    found = _native(dataset)
    surplus = memoryview(dataset.PixelData)[len(dataset.PixelData) * stated // max(found, 1) :]
    return found - stated if found > stated and any(bytes(surplus)) else 0  # zeros fill up


def check_stored_frames(dataset: Dataset) -> None:
    """Compare the frames that are stored with those that the header states.

    Raises:
        InvalidImageError: there are fewer, of a cut file, or more, of which some would be
            passed over.
    """
    stated, found = frame_count(dataset), stored_frames(dataset)
    if found is not None and found < stated:
        raise InvalidImageError(
            f"expected {stated} frames, as the header states, got pixel data of {found}; the "
            "file is damaged or cut short: export it again"
        )
    if surplus := surplus_frames(dataset):
        raise InvalidImageError(
            f"expected pixel data of {stated} frames, as the header states, got "
            f"{stated + surplus}; correct NumberOfFrames, or export the file again"
        )


def syntax_of(dataset: Dataset) -> UID | None:
    """How the pixel data are encoded; None where the file does not say."""
    return getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)


def without_pixels(dataset: Dataset) -> Dataset:
    """The same dataset, lighter: headers are what an answer in DICOM needs of its source."""
    for name in PIXEL_DATA:
        if name in dataset:
            delattr(dataset, name)
    return dataset


def _native(dataset: Dataset) -> int:
    samples = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel") or 1)
    if str(dataset.get("PhotometricInterpretation")) == "YBR_FULL_422":
        samples = samples * 2 // 3  # two pixels share their colour (PS3.3 C.7.6.3.1.2)
    bits = samples * int(dataset.get("BitsAllocated") or 8)
    return len(dataset.PixelData) * 8 // max(bits, 1)


def _encapsulated(dataset: Dataset) -> int:
    from pydicom.encaps import generate_fragments, parse_basic_offsets

    offsets = parse_basic_offsets(dataset.PixelData)
    if any(a >= b for a, b in itertools.pairwise(offsets)):
        raise InvalidImageError(
            "expected a basic offset table that rises from frame to frame, got another, so that "
            "the order of the frames is not known; export the file again from the archive"
        )
    fragments = sum(1 for fragment in generate_fragments(dataset.PixelData) if fragment)
    return min(len(offsets), fragments) if offsets else fragments  # a frame has one at least


def _begun(dataset: Dataset, syntax: UID) -> int:
    """How many compressed frames begin in the pixel data; 0 where that cannot be told."""
    from pydicom.encaps import generate_fragments, parse_basic_offsets

    if offsets := parse_basic_offsets(dataset.PixelData):
        return len(offsets)
    starts = [bytes(fragment[:2]) for fragment in generate_fragments(dataset.PixelData) if fragment]
    if syntax == _RLE:
        return len(starts)  # a fragment for each frame (PS3.5 section A.4.2)
    return sum(start in _CODESTREAMS for start in starts)


def _meta(payload: Payload) -> tuple[dict[int, bytes], int]:
    """Values of the file meta information by element number, and where the data set begins."""
    found: dict[int, bytes] = {}
    at = _MAGIC_AT + len(_MAGIC)
    while at + 8 <= len(payload):
        group, element = struct.unpack_from("<2H", payload, at)
        if group != _META_GROUP:
            break
        kind, start = bytes(payload[at + 4 : at + 6]), at + 8
        length = int.from_bytes(payload[at + 6 : at + 8], "little")
        if kind in _LONG_FORMS:
            start, length = at + 12, int.from_bytes(payload[at + 8 : at + 12], "little")
        found[element] = bytes(payload[start : start + length]).rstrip(b"\0 ")
        at = start + length
    return found, at


def _inflated(deflated: bytes) -> bytes:
    expander = zlib.decompressobj(-zlib.MAX_WBITS)
    content = expander.decompress(deflated, _MAX_INFLATED_BYTES)
    if expander.unconsumed_tail:
        raise PayloadTooLargeError(
            f"expected a deflated DICOM file of at most {_MAX_INFLATED_BYTES} bytes when "
            "expanded, got more; send it uncompressed, in parts"
        )
    if not expander.eof:
        raise InvalidImageError(DAMAGED.format(part="deflated data set"))
    return content
