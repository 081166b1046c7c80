"""Read what the headers of a JPEG state of its samples (ITU-T T.81, annex B)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from medserve.errors import InvalidImageError
from medserve.imaging.codecs.payload import Payload

__all__ = ["JpegFrame", "frame_of", "with_longer_scan"]

_FRAME_HEADERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 without DHT, JPG, DAC
_READABLE = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # baseline, extended, progressive; Huffman, arithmetic
_PROGRESSIVE = (0xC2, 0xCA)
_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}
_JPEG_LS = 0xF7
_SCAN, _END = 0xDA, 0xD9
_LONGER = bytes(1024)
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xDA)}  # TEM, RSTn, SOI, EOI
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # coded data hold stuffing and RSTn alone
_RGB_IDS = (b"RGB", b"rgb")


@dataclass(frozen=True)
class JpegFrame:
    """The frame header and the marks of applications before it.

    Attributes:
        process: The marker's second byte: 0xC0 baseline, 0xC2 progressive, 0xC3 lossless …
        bits: Of a sample.
        components: Their identifiers, one byte each.
        has_jfif: Whether an APP0 segment says JFIF, which is YCbCr.
        has_adobe: Whether an APP14 segment of Adobe names the colour transform.
    """

    process: int
    bits: int
    components: bytes
    has_jfif: bool
    has_adobe: bool

    @property
    def is_progressive(self) -> bool:
        """Whether the picture comes in several scans, each with more details."""
        return self.process in _PROGRESSIVE

    @property
    def is_rgb_read_as_ycbcr(self) -> bool:
        """Whether components are called R, G and B, and libjpeg takes them for YCbCr all the same.

        libjpeg believes JFIF before the identifiers, and knows capital letters only.
        """
        if self.has_adobe or self.components not in _RGB_IDS:
            return False
        return self.has_jfif or self.components.islower()

    def refuse_unreadable(self) -> None:
        """Refuse by name what the decoder cannot read.

        Raises:
            InvalidImageError: lossless, hierarchical, more than 8 bits, or two components.
        """
        found = None
        if self.process in _LOSSLESS:
            found = "a lossless JPEG"
        elif self.process == _JPEG_LS:
            found = "a JPEG-LS"
        elif self.bits != 8:
            found = f"a JPEG of {self.bits} bits a sample"
        elif self.process not in _READABLE:
            found = "a hierarchical JPEG"
        elif len(self.components) not in (1, 3, 4):
            found = f"a JPEG of {len(self.components)} components"
        if found is not None:
            raise InvalidImageError(
                f"expected a JPEG of 8 bits in grey or colour, got {found}, which cannot be read; "
                "save it as PNG, of 16 bits where it has more than 8"
            )


def frame_of(payload: Payload) -> JpegFrame | None:
    """Return what the first frame header states; None where there is none."""
    has_jfif = has_adobe = False
    for marker, _, segment in _segments(bytes(payload)):
        if marker in _FRAME_HEADERS or marker == _JPEG_LS:
            components = segment[6::3][: segment[5]] if len(segment) > 5 else b""
            bits = segment[0] if segment else 0
            return JpegFrame(marker, bits, components, has_jfif, has_adobe)
        has_jfif |= marker == 0xE0 and segment.startswith(b"JFIF\0")
        has_adobe |= marker == 0xEE and segment.startswith(b"Adobe")
    return None


def with_longer_scan(codestream: Payload) -> bytes:
    """Return a JPEG with zeros at the end of its last scan, or as it is where no end is found.

    A decoder passes over them where the scan is whole. Of one that was cut, before an end was put
    behind it, they become pixels, which else are filled up with mid-grey and without an error.
    """
    content = bytes(codestream)
    ends = (at for marker, at, _ in _segments(content) if marker == _END)
    end = next(ends, len(content))
    return content[:end] + _LONGER + content[end:] if end < len(content) else content


def _segments(content: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield marker, place and content of each segment, until something else stands in its place.

    What a segment holds, a small picture of Exif among it, is not walked.
    """
    at = 2
    while at + 2 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # fills up
            at += 1
            continue
        length = 0
        if marker not in _WITHOUT_LENGTH:
            length = int.from_bytes(content[at + 2 : at + 4], "big")
        yield marker, at, content[at + 4 : at + 2 + length]
        at += 2 + length
        if marker == _SCAN:
            following = _AFTER_SCAN.search(content, at)
            at = following.start() if following else len(content)
