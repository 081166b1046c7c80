"""Read what the headers of a JPEG state of its samples (ITU-T T.81, annex B)."""

from __future__ import annotations

from dataclasses import dataclass

from medserve.errors import InvalidImageError
from medserve.imaging.codecs.payload import Payload

__all__ = ["JpegFrame", "frame_of", "with_longer_scan"]

_FRAME_HEADERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 without DHT, JPG, DAC
_READABLE = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # baseline, extended, progressive; Huffman, arithmetic
_PROGRESSIVE = (0xC2, 0xCA)
_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}
_JPEG_LS = 0xF7
_SCAN, _END = b"\xff\xda", b"\xff\xd9"
_LONGER = bytes(1024)
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}  # TEM, RSTn, SOI
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
    content, at = memoryview(payload), 2
    has_jfif = has_adobe = False
    while at + 4 <= len(content):
        if content[at] != 0xFF:
            return None
        marker = content[at + 1]
        if marker == 0xFF or marker in _WITHOUT_LENGTH:  # fill bytes, and markers that stand alone
            at += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        segment = bytes(content[at + 4 : at + 2 + length])
        if marker in _FRAME_HEADERS or marker == _JPEG_LS:
            components = segment[6::3][: segment[5]] if len(segment) > 5 else b""
            bits = segment[0] if segment else 0
            return JpegFrame(marker, bits, components, has_jfif, has_adobe)
        has_jfif |= marker == 0xE0 and segment.startswith(b"JFIF\0")
        has_adobe |= marker == 0xEE and segment.startswith(b"Adobe")
        at += 2 + length
    return None


def with_longer_scan(codestream: Payload) -> bytes:
    """Return a JPEG with zeros at the end of its last scan, or as it is where no end is found.

    A decoder passes over them where the scan is whole. Of one that was cut, before an end was put
    behind it, they become pixels, which else are filled up with mid-grey and without an error.
    """
    content = bytes(codestream)
    end = content.find(_END, max(0, content.find(_SCAN)))
    return content if end < 0 else content[:end] + _LONGER + content[end:]
