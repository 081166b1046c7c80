"""Read what the headers of a JPEG state of its samples (ITU-T T.81, annex B)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from simplejpeg import decode_jpeg

from medserve.errors import InvalidImageError
from medserve.imaging.codecs.payload import Payload

__all__ = ["JpegFrame", "frame_of", "is_followed_by_another", "scans_fit"]

_FRAME_HEADERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 without DHT, JPG, DAC
_READABLE = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # baseline, extended, progressive; Huffman, arithmetic
_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}
_JPEG_LS = 0xF7
_SCAN, _END, _TABLES, _INDEX = 0xDA, 0xD9, 0xDB, 0xE2
_ARITHMETIC = {0xC9, 0xCA, 0xCB}
_HUFFMAN_DCT = {0xC0, 0xC1, 0xC2}
_SMALLEST = 8  # the largest divisor of the sides that libjpeg-turbo knows
_SURPLUS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
_TOLD = ("Corrupt JPEG data", "Premature end")  # as libjpeg's jerror.h puts it
_FILLER = bytes.fromhex("6ca9534d952be21c") * 4  # no markers, and no code that ends a block early
_INVERSE = bytes(255 - each for each in _FILLER)
_FILLING_UP = b"\xff\0"  # put before a marker by some writers
_SPARE = 8  # bytes that a whole JPEG needs some bit of
_RESTART = re.compile(rb"\xff+[\xd0-\xd7]")
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


def is_followed_by_another(codestream: Payload) -> bool:
    """Tell whether another JPEG begins right behind the first, as in a film of them.

    What an index of pictures (MPF, CIPA DC-007) speaks of, a preview among them, does not count.
    """
    content = bytes(codestream)
    for marker, at, segment in _segments(content):
        if marker == _INDEX and segment.startswith(b"MPF\0"):
            return False
        if marker == _END:
            return content[at + 2 : at + 5] == b"\xff\xd8\xff"
    return False


def scans_fit(
    codestream: Payload, pixels: bytes = b"", decode: Callable[[bytes], bytes] | None = None
) -> bool:
    """Tell whether a JPEG needs all of its coded data for its pixels, and no more.

    Decoders go on where data are missing, or left over, and only warn; of steps of 0 they make
    grey. Of 8 bits by cosine transform libjpeg-turbo says so. For others the decoder is watched:
    data put behind each interval change no pixel of a JPEG that is whole; of one that has lost
    some, they do. Where the last bytes may be any, the decoder was done before them.

    Args:
        codestream: The JPEG.
        pixels: What it decodes to.
        decode: The decoder; it may raise for data that it cannot decode. Without it, only what
            libjpeg-turbo reads is looked at.
    """
    content = bytes(codestream)
    if _has_step_of_zero(content):
        return False
    frame = frame_of(content)
    if frame is None or frame.process in _ARITHMETIC:  # which may end without its last zeros
        return True
    if frame.process in _HUFFMAN_DCT and frame.bits == 8:
        return not _is_warned_of(content, len(frame.components))
    if decode is None:
        return True
    ends, end = _ends(content)
    pieces = [content[a:b] for a, b in itertools.pairwise([0, *ends, len(content)])]
    if _decoded(decode, _FILLER.join(pieces)) != pixels:
        return False
    kept = len(content[:end].rstrip(_FILLING_UP)) - _SPARE
    others = (content[:kept] + filler + content[end:] for filler in (_FILLER, _INVERSE))
    return any(_decoded(decode, each) != pixels for each in others)


def _is_warned_of(content: bytes, components: int) -> bool:
    """Tell whether libjpeg-turbo finds coded data that are missing, damaged or left over.

    Every code is read, an eighth of the pixels is computed. What else it warns of or cannot read,
    such as odd parameters of a scan, changes no pixel.
    """
    try:
        decode_jpeg(
            content, "CMYK" if components == 4 else "GRAY", fastdct=True, min_height=1,
            min_width=1, min_factor=_SMALLEST, strict=True,
        )  # fmt: skip
    except ValueError as error:
        if surplus := _SURPLUS.search(str(error)):
            end = _ends(content)[1]
            return int(surplus[1]) > end - len(content[:end].rstrip(_FILLING_UP))
        return any(told in str(error) for told in _TOLD)
    return False


def _has_step_of_zero(content: bytes) -> bool:
    """Tell whether a step of any quantisation table is 0, which none may be (T.81, B.2.4.1)."""
    for marker, _, segment in _segments(content):
        while marker == _TABLES and segment:
            width = 2 if segment[0] >> 4 else 1
            table, segment = segment[1 : 1 + 64 * width], segment[1 + 64 * width :]
            high = table[::2] if width == 2 else bytes(64)
            low = table[1::2] if width == 2 else table
            if 0 in low and any(not (a or b) for a, b in zip(high, low, strict=False)):
                return True
    return False


def _decoded(decode: Callable[[bytes], bytes], codestream: bytes) -> bytes | None:
    try:
        return decode(codestream)
    except Exception:  # made-up data need not be decodable
        return None


def _ends(content: bytes) -> tuple[list[int], int]:
    """Return where coded data end, at each marker behind them, and where those of all scans do."""
    ends: list[int] = []
    scan = end = len(content)
    for marker, at, segment in _segments(content):
        if scan < at:
            ends += [scan + match.start() for match in _RESTART.finditer(content[scan:at])]
            end = scan + len(content[scan:at].rstrip(b"\xff"))  # which fill up before a marker
            ends.append(end)
            scan = len(content)
        if marker == _SCAN:
            scan = at + 4 + len(segment)
        elif marker == _END:
            break
    return ends, end


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
