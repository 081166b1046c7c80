"""What a compressed DICOM frame says of its own size, before a decoder believes it."""

from __future__ import annotations

import struct

from pydicom import Dataset
from pydicom.encaps import generate_frames, get_frame
from pydicom.uid import UID, RLELossless

__all__ = ["check_codestream", "check_codestreams"]

# Markers SOF0 to SOF15 of JPEG without DHT, JPG and DAC, and SOF55 of JPEG-LS.
_FRAME_HEADERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xF7}


def check_codestreams(dataset: Dataset, syntax: UID) -> None:
    """Refuse frames whose own header states another size: decoders would allocate it first.

    Raises:
        ValueError: a frame's header and the image's Rows and Columns differ.
    """
    if _has_none(syntax):
        return
    frames = int(dataset.get("NumberOfFrames") or 1)
    for frame in generate_frames(dataset.PixelData, number_of_frames=frames):
        _check(frame, dataset)


def check_codestream(dataset: Dataset, syntax: UID, index: int) -> None:
    """The same for one frame alone, so that a bad one says nothing of the others."""
    if _has_none(syntax):
        return
    frames = int(dataset.get("NumberOfFrames") or 1)
    _check(get_frame(dataset.PixelData, index, number_of_frames=frames), dataset)


def _has_none(syntax: UID) -> bool:
    return not syntax.is_encapsulated or syntax == RLELossless  # RLE: bounded by Rows and Columns


def _check(frame: bytes, dataset: Dataset) -> None:
    if _stated_size(frame) != (int(dataset.Rows), int(dataset.Columns)):
        raise ValueError("a frame states another size than the image")


def _stated_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns by a codestream's own header; None where it has none.

    JPEG (ITU-T T.81, B.2.2) and JPEG-LS (T.87, C.2.2) share their frame header; JPEG 2000 has SIZ
    (T.800, A.5.1).
    """
    if frame[:4] == b"\xff\x4f\xff\x51":
        columns, rows, left, top = struct.unpack_from(">4I", frame, 8)
        return rows - top, columns - left
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker in _FRAME_HEADERS:
            rows, columns = struct.unpack_from(">2H", frame, at + 5)
            return rows, columns
        at += 2 + length
    return None
