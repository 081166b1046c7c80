"""TIFF as stored samples: what one page holds, and the numbers that Pillow would read wrongly.

Pillow reads 8-bit samples of every layout and compression. Of wider ones it misreads planes that
lie apart, signed bytes, unsigned 32 bits and some compressed big-endian files, so these come from
tifffile, which reads the compressions None, Deflate and PackBits. So do big-endian BigTIFF files.
"""

from __future__ import annotations

import functools
import io
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medserve.errors import InvalidImageError
from medserve.imaging.codecs.payload import Payload, check_size
from medserve.spec import InputSpec

__all__ = ["Samples", "prepare", "samples"]

# TIFF 6.0 section 8 and technical notes; what a value stands for.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_GREY, _COLOUR = (_WHITE_IS_ZERO, _BLACK_IS_ZERO), (_RGB, _PALETTE, _CMYK, _YCBCR)
_ALPHA = (1, 2)  # ExtraSamples: associated and unassociated
_READABLE = (1, 8, 32773, 32946)  # Compression: none, Deflate, PackBits, Deflate's old number
# What Pillow reads: also fax, LZW, JPEG, LZMA and Zstandard; its libtiff has no WebP.
_KNOWN = (*_READABLE, 2, 3, 4, 5, 6, 7, 32771, 32809, 34925, 50000)
_PREDICTORS = (1, 2)  # none, horizontal differences; the third is for floats
_ADVICE = "save it as 8-bit or 16-bit PNG"


@dataclass(frozen=True)
class Samples:
    """The numbers of a page.

    Attributes:
        values: (H, W) or (H, W, C), of the type that is stored.
        alpha: Opacity in [0, 1], (H, W); None where everything is opaque.
        white_is_zero: Whether the largest value is black.
        orientation: Of the tag, 1 to 8.
    """

    values: npt.NDArray[Any]
    alpha: npt.NDArray[np.float32] | None
    white_is_zero: bool
    orientation: int


def samples(payload: Payload, limits: InputSpec) -> Samples | None:
    """Return what a TIFF stores, or None where Pillow reads it right.

    Raises:
        InvalidImageError: several planes, a volume, several channels that are no colour, a type
            of samples or a compression that cannot be read exactly.
        PayloadTooLargeError: more pixels than `limits` allow.
    """
    with _tifffile().TiffFile(io.BytesIO(payload)) as file:
        page = file.pages[0]
        check_size(page.imagelength, page.imagewidth, limits)
        _refuse_several_planes(file, page)
        _refuse_missing_segments(page)
        if page.compression not in _KNOWN:
            raise _no(f"a TIFF whose compression ({int(page.compression)}) is not read")
        channels = page.samplesperpixel - len(page.extrasamples)
        _refuse_foreign_channels(page, channels)
        if page.bitspersample <= 8 and page.sampleformat == 1 and not _pillow_is_blind(file):
            return None
        if page.dtype is None or page.bitspersample == 12:
            return None  # of 12 bits in a row Pillow makes the right 16
        _refuse_wide_colour(page, channels)
        if page.compression not in _READABLE or page.predictor not in _PREDICTORS:
            if _pillow_is_right(file, page):
                return None
            raise _no(f"{_spoken(page)} with a compression that cannot be read exactly for it")
        return _read(page, channels)


def prepare() -> None:
    """Import tifffile, which the first file would otherwise wait for."""
    _tifffile()


@functools.cache
def _tifffile() -> Any:
    import tifffile  # half of what it imports is needed by no other kind of file

    logging.getLogger("tifffile").disabled = True  # it quotes what files say
    return tifffile


def _refuse_several_planes(file: Any, page: Any) -> None:
    if len(file.pages) > 1:
        raise InvalidImageError("expected one image, got a TIFF of several pages; send one frame")
    if page.imagedepth > 1:
        raise InvalidImageError(
            f"expected one image, got a TIFF volume of {page.imagedepth} planes; send one plane, "
            "or the volume as NIfTI"
        )
    planes = max((series.size for series in file.series), default=page.size) // max(page.size, 1)
    if planes > 1:
        raise InvalidImageError(
            f"expected one image, got a TIFF whose one page holds several planes ({planes}); "
            "send one plane"
        )


def _refuse_missing_segments(page: Any) -> None:
    # Of sparse files tifffile makes zeros, which are white or black by the page's own rule.
    is_plain = page.compression == 1  # where old writers state no lengths
    if not all(page.dataoffsets) or not (is_plain or all(page.databytecounts)):
        raise InvalidImageError(
            "expected a whole TIFF, got one of which strips or tiles were never written; "
            "export it again"
        )


def _refuse_foreign_channels(page: Any, channels: int) -> None:
    alphas = [each for each in page.extrasamples if each in _ALPHA]
    if page.photometric not in (*_GREY, *_COLOUR):
        raise _no("a TIFF in a colour space other than grey, palette, RGB, CMYK and YCbCr")
    wanted = {_RGB: 3, _YCBCR: 3, _CMYK: 4}.get(page.photometric, 1)
    if channels != wanted or len(alphas) < len(page.extrasamples) or len(alphas) > 1:
        raise InvalidImageError(
            f"expected grey or colour, got a TIFF of {page.samplesperpixel} channels that are not "
            "said to be colours; send one channel, or save it as RGB"
        )


def _refuse_wide_colour(page: Any, channels: int) -> None:
    if channels > 1 and (page.dtype not in (np.uint8, np.uint16) or page.photometric != _RGB):
        raise _no(f"{_spoken(page)} in colour")
    if page.photometric == _PALETTE or page.dtype.kind not in "uif":
        raise _no(_spoken(page))


def _pillow_is_blind(file: Any) -> bool:
    """Tell whether Pillow knows no such file: its own reader has no big-endian BigTIFF."""
    return bool(file.is_bigtiff and file.byteorder == ">")


def _pillow_is_right(file: Any, page: Any) -> bool:
    """Tell whether Pillow, through libtiff, has been seen to read these samples exactly."""
    if _pillow_is_blind(file):
        return False
    together = page.samplesperpixel == 1 or page.planarconfig == 1
    if page.dtype == np.uint16 and together and page.photometric != _WHITE_IS_ZERO:
        return page.samplesperpixel in (1, 3)
    little = file.byteorder == "<" and page.photometric == _BLACK_IS_ZERO
    return little and page.samplesperpixel == 1 and page.dtype in (np.int16, np.int32, np.float32)


def _read(page: Any, channels: int) -> Samples:
    if not all(page.databytecounts):
        raise _no(f"{_spoken(page)} that states no lengths of its strips")
    values: npt.NDArray[Any] = page.asarray()
    if page.samplesperpixel > 1:
        values = np.moveaxis(values, 0, -1) if page.planarconfig == 2 else values
    alpha = None
    if page.extrasamples:
        most = np.iinfo(values.dtype).max if values.dtype.kind in "ui" else 1.0
        alpha = np.clip(values[..., channels] / np.float32(most), 0, 1).astype(np.float32)
        values = values[..., 0] if channels == 1 else values[..., :channels]
    stated = page.tags.get("Orientation")
    return Samples(
        values,
        alpha,
        page.photometric == _WHITE_IS_ZERO,
        1 if stated is None else int(stated.value),
    )


def _spoken(page: Any) -> str:
    kind = {1: "unsigned integers", 2: "signed integers", 3: "floats"}.get(
        page.sampleformat, "numbers of another kind"
    )
    planes = " in separate planes" if page.planarconfig == 2 and page.samplesperpixel > 1 else ""
    return f"a TIFF of {page.bitspersample}-bit {kind}{planes}"


def _no(found: str) -> InvalidImageError:
    return InvalidImageError(f"expected an image that can be read exactly, got {found}; {_ADVICE}")
