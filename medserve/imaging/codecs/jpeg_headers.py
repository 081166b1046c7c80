"""What a compressed DICOM frame says of itself, before a decoder believes it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pydicom import Dataset
from pydicom.encaps import get_frame
from pydicom.uid import (
    UID,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

__all__ = ["check_codestream"]

# Markers SOF0 to SOF15 of JPEG without DHT, JPG and DAC, and SOF55 of JPEG-LS.
_FRAME_HEADERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xF7}
_NEED_END = (JPEGLSLossless, JPEGLSNearLossless, JPEGLossless, JPEGLosslessSV1)
_MOST_SCANS = 200  # of a progressive JPEG; each is work for the whole frame (libjpeg: -maxscans)
_SIZ = b"\xff\x4f\xff\x51"  # start of codestream, size
_SCAN, _END = b"\xff\xda", b"\xff\xd9"
_PADDING = 64  # the end of a frame and what fills it up


@dataclass(frozen=True)
class _Stated:
    """A codestream's own header.

    Attributes:
        size: Rows and columns.
        components: Samples a pixel.
        precision: Bits a sample.
    """

    size: tuple[int, int]
    components: int
    precision: int


def check_codestream(dataset: Dataset, syntax: UID, index: int) -> int | None:
    """Refuse a frame whose own header states another size: decoders would allocate it first.

    Returns:
        Bits of a sample; None where frames have no header of their own.

    Raises:
        ValueError: the frame's header and the image's differ.
    """
    if _has_none(syntax):
        return None
    frames = int(dataset.get("NumberOfFrames") or 1)
    frame = get_frame(dataset.PixelData, index, number_of_frames=frames)
    return _check(frame, dataset, syntax)


def _has_none(syntax: UID) -> bool:
    return not syntax.is_encapsulated or syntax == RLELossless  # RLE: bounded by Rows and Columns


def _check(frame: bytes, dataset: Dataset, syntax: UID) -> int:
    stated = _stated(frame)
    if stated is None or stated.size != (int(dataset.Rows), int(dataset.Columns)):
        raise ValueError("a frame states another size than the image")
    if stated.components != int(dataset.get("SamplesPerPixel") or 1):
        raise ValueError("a frame states other samples a pixel than the image")
    is_jpeg = syntax in (JPEGBaseline8Bit, JPEGExtended12Bit)
    # Without an end CharLS searches for seconds, and libjpeg fills up 12 bits and lossless ones.
    needs_end = stated.precision != 8 if is_jpeg else syntax in _NEED_END
    tail = frame[-_PADDING:]
    if _END not in tail and (needs_end or not any(tail)):  # OpenJPEG reads zeros as data
        raise ValueError("a frame without its end")
    if is_jpeg and frame.count(_SCAN) > _MOST_SCANS:
        raise ValueError("a frame of more scans than any encoder makes")
    return stated.precision


def _stated(frame: bytes) -> _Stated | None:
    """A codestream's own header; None where it has none.

    JPEG (ITU-T T.81, B.2.2) and JPEG-LS (T.87, C.2.2) share their frame header; JPEG 2000 has SIZ
    (T.800, A.5.1).
    """
    if frame[4:8] == b"jP  ":  # a JP2 file in place of its codestream (T.800, annex I)
        frame = frame[max(0, frame.find(_SIZ)) :]
    if frame[:4] == _SIZ:
        columns, rows, left, top = struct.unpack_from(">4I", frame, 8)
        components, precision = struct.unpack_from(">HB", frame, 40)
        return _Stated((rows - top, columns - left), components, (precision & 0x7F) + 1)
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker in _FRAME_HEADERS:
            precision, rows, columns, components = struct.unpack_from(">B2HB", frame, at + 4)
            return _Stated((rows, columns), components, precision)
        at += 2 + length
    return None
