"""PNG, JPEG and TIFF -> Image, by content; the file's name plays no part.

What the stored numbers mean, and what becomes of them:

- 8 bits a channel, palettes, 1-bit and CMYK are display values: value / 255 exactly, white = 1.
- 16-bit colour is cut to its upper 8 bits and treated the same way.
- One channel of more bits, of signed numbers or of floats carries measurements in a unit that the
  file does not state: `percentile_window` maps the range in use (0.5th to 99.5th percentile) to
  [0, 1].
- Transparent pixels lie on black, the ground of radiographs and of the padding in `fit_grey`, and
  do not count for that range.
- The orientation in EXIF and TIFF is applied, and oblong pixels keep their proportions: their
  aspect is that of pHYs, of JFIF's density or of TIFF's resolutions. Colour profiles are not.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as pillow
from PIL import UnidentifiedImageError

from medserve.errors import InvalidImageError, MedserveError, PayloadTooLargeError
from medserve.imaging.codecs import jpeg_frame, tiff
from medserve.imaging.codecs.payload import Payload, check_size, quietly
from medserve.imaging.image import Image, true_aspect
from medserve.imaging.intensity import full_range, percentile_window
from medserve.spec import InputSpec

__all__ = ["decode", "prepare"]

_FORMATS = ("PNG", "JPEG", "TIFF")
_MEASURED_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_PNG, _PNG_16_BIT_GREY_ALPHA = b"\x89PNG\r\n\x1a\n", b"\x10\x04"  # of IHDR, ISO 15948 11.2.2
_PNG_16_BIT_COLOUR = b"\x10\x02"
_TIFF, _JPEG = (b"II", b"MM"), b"\xff\xd8"
_RAW_COLOUR = "YCbCr"  # the mode in which Pillow leaves the components of a JPEG as they are
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PNG_BLOCK = 2**20
_ADAM7 = (
    (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)
)  # fmt: skip
_PNG_END = b"IEND\xaeB`\x82"  # the empty last chunk and its checksum
_ORIENTATION_TAG = 0x0112  # CIPA DC-008 (EXIF 2.32) section 4.6.4
_START_OF_SCAN = b"\xff\xda"  # ITU-T T.81 table B.1; coded data never hold it (section B.1.1.5)
_TURNED = (5, 6, 7, 8)  # orientations that exchange rows and columns
_X_RESOLUTION, _Y_RESOLUTION = 282, 283  # TIFF 6.0 section 8
_MOST_OBLONG = 5.0
_MOST_SCANS = 100  # libjpeg writes 10 for a progressive colour image
_MOST_PASSES = 16  # over as many pixels as the largest image has


def decode(payload: Payload, limits: InputSpec) -> Image:
    """One picture, upright, as intensities in [0, 1].

    Raises:
        InvalidImageError: not a PNG, JPEG or TIFF, damaged, cut short, too small, several
            frames or planes, values that are not finite, or of a kind that cannot be read exactly.
        PayloadTooLargeError: more pixels than `limits.max_pixels`; known from the header, so no
            pixel of a decompression bomb is decoded. Also a JPEG of so many scans that decoding it
            would take far longer than its size lets expect.
    """
    with quietly():
        try:
            upright, aspect = _decode(payload, limits)
        except MedserveError:
            raise
        except UnidentifiedImageError:
            raise InvalidImageError(
                "expected a PNG, JPEG or TIFF, got bytes whose header cannot be read; "
                "check that the file is whole"
            ) from None
        except (pillow.DecompressionBombError, MemoryError):
            raise PayloadTooLargeError(
                f"expected at most {limits.max_pixels} pixels, got a header that states far "
                "more; send a smaller copy"
            ) from None
        except Exception as error:  # a parser of hostile bytes may raise anything
            raise InvalidImageError(
                "expected a whole PNG, JPEG or TIFF, got one that is damaged or cut short; "
                "copy or export it again"
            ) from error
    return Image(np.ascontiguousarray(upright), true_aspect(aspect))


def _pixel_aspect(picture: pillow.Image, orientation: int) -> float | None:
    """Return the height of a pixel over its width, upright; None where the header has none.

    Read from pHYs of PNG (ISO 15948, 11.3.5.3), the density of JFIF (ITU-T T.871, 10.1) and the
    resolutions of TIFF. What no device has is taken for a slip.
    """
    try:
        across, down = _density(picture)
        aspect = float(across) / float(down)
    except Exception:  # damaged metadata do not make the pixels wrong
        return None
    if not 1 / _MOST_OBLONG <= aspect <= _MOST_OBLONG:
        return None
    return 1 / aspect if orientation in _TURNED else aspect


def _tiff_aspect(payload: Payload) -> float | None:
    try:
        picture = pillow.open(io.BytesIO(payload), formats=("TIFF",))
    except Exception:  # tifffile reads more kinds of TIFF
        return None
    return _pixel_aspect(picture, _orientation(picture))


def _density(picture: pillow.Image) -> tuple[Any, Any]:
    """Pixels to a length across and down, in any unit."""
    if picture.format == "TIFF":
        tags = picture.getexif()
        return tags[_X_RESOLUTION], tags[_Y_RESOLUTION]
    found = picture.info.get("jfif_density", picture.info.get("aspect", picture.info.get("dpi")))
    across, down = found if found is not None else (1, 1)
    return across, down


def prepare() -> None:
    """Load Pillow's readers, which the first damaged file would otherwise wait for."""
    pillow.init()
    tiff.prepare()


def _decode(payload: Payload, limits: InputSpec) -> tuple[npt.NDArray[np.float32], float | None]:
    """The intensities, upright, and the aspect of a pixel."""
    head = bytes(payload[:2])
    frame = jpeg_frame.frame_of(payload) if head == _JPEG else None
    if frame is not None:
        frame.refuse_unreadable()
        if jpeg_frame.is_followed_by_another(payload):
            raise InvalidImageError("expected one image, got several JPEG in one file; send one")
    samples = tiff.samples(payload, limits) if head in _TIFF else None
    picture = pillow.open(io.BytesIO(payload), formats=_FORMATS) if samples is None else None
    if picture is None:
        assert samples is not None  # one of the two has read it
        return _upright(_of_samples(samples), samples.orientation), _tiff_aspect(payload)
    check_size(picture.height, picture.width, limits)
    _refuse_several_frames(picture)
    _refuse_many_scans(picture, payload, limits)
    if frame is not None and frame.is_rgb_read_as_ycbcr:
        picture.draft(_RAW_COLOUR, None)  # the whole size
    _check_transparency(picture, payload)
    picture.load()
    _refuse_missing_end(picture, payload)
    if frame is not None and not jpeg_frame.scans_fit(payload):
        raise EOFError("a scan with too few or too many data")
    turn = _orientation(picture)  # of a TIFF Pillow has undone it
    aspect = _tiff_aspect(payload) if head in _TIFF else _pixel_aspect(picture, turn)
    return _upright(_intensities(picture), turn), aspect


def _refuse_several_frames(picture: pillow.Image) -> None:
    # A JPEG may hide a preview behind the photograph (MPO); the first picture is the photograph.
    if picture.format != "PNG":
        return
    try:
        picture.seek(1)
    except EOFError:
        return
    raise InvalidImageError("expected one image, got an animated PNG; send one frame")


def _check_transparency(picture: pillow.Image, payload: Payload) -> None:
    # Pillow drops 8 of the 16 bits, in which a measurement of 12 bits is almost black, and other
    # colours are like the transparent one.
    if bytes(payload[:8]) != _PNG:
        return
    kind = bytes(payload[24:26])
    found = "grey with an alpha channel" if kind == _PNG_16_BIT_GREY_ALPHA else ""
    if kind == _PNG_16_BIT_COLOUR and "transparency" in picture.info:
        found = "colour with a transparent one"
    if found:
        raise InvalidImageError(
            f"expected an image that can be read exactly, got a PNG of 16-bit {found}; save it "
            "without"
        )
    depth = kind[0]
    if picture.mode == "L" and depth in (2, 4) and "transparency" in picture.info:
        # Pillow spreads the pixels to 8 bits, but not the grey that is transparent.
        picture.info["transparency"] *= 255 // (2**depth - 1)


def _refuse_many_scans(picture: pillow.Image, payload: Payload, limits: InputSpec) -> None:
    # The decoder passes over all blocks once a scan, and an empty scan takes some 20 bytes.
    if picture.format not in ("JPEG", "MPO"):
        return
    scans = bytes(payload).count(_START_OF_SCAN)
    most = min(_MOST_SCANS, _MOST_PASSES * limits.max_pixels // (picture.height * picture.width))
    if scans > most:
        raise PayloadTooLargeError(
            f"This JPEG has {scans} scans; one of its size may have at most {most}. Save it as a "
            "baseline JPEG or as PNG."
        )


def _refuse_missing_end(picture: pillow.Image, payload: Payload) -> None:
    # Pillow shows a PNG without its last chunk, though nobody can tell how much was cut.
    if picture.format == "PNG":
        _refuse_damaged_png(bytes(payload))


def _refuse_damaged_png(content: bytes) -> None:
    # Pillow leaves rows black that were never written, and passes over a second picture.
    end = content.find(_PNG_END)
    if end < 0:
        raise EOFError("no IEND chunk")
    if _PNG in content[end:]:
        raise InvalidImageError("expected one image, got several PNG in one file; send one")
    width, height, depth, kind, interlaced = struct.unpack_from(">IIBB2xB", content, 16)
    bits = depth * _PNG_CHANNELS[kind]
    needed = sum(
        rows * (1 + (columns * bits + 7) // 8)
        for rows, columns in _png_passes(height, width, is_interlaced=bool(interlaced))
        if rows and columns
    )
    expander, found, at = zlib.decompressobj(), 0, len(_PNG)
    while at < end:
        length = int.from_bytes(content[at : at + 4], "big")
        if content[at + 4 : at + 8] == b"IDAT":
            data = content[at + 8 : at + 8 + length]
            while data and found <= needed:
                found += len(expander.decompress(data, _PNG_BLOCK))
                data = expander.unconsumed_tail
        at += 12 + length
    if not needed <= found <= needed + width * bits // 8:
        raise EOFError("another number of rows than stated")


def _png_passes(height: int, width: int, *, is_interlaced: bool) -> Iterator[tuple[int, int]]:
    """Yield rows and columns of each pass; interlaced ones by Adam7 (ISO 15948, 8.2)."""
    if not is_interlaced:
        yield height, width
        return
    for top, left, down, across in _ADAM7:
        yield (height - top + down - 1) // down, (width - left + across - 1) // across


def _intensities(picture: pillow.Image) -> npt.NDArray[np.float32]:
    """Pixels of a loaded picture -> float32 (H, W) or (H, W, 3) in [0, 1]."""
    if picture.mode in _MEASURED_MODES:
        values = np.asarray(picture)
        ground = picture.info.get("transparency")  # of a 16-bit grey PNG: the value that is clear
        return _measured(values, None if ground is None else values != ground)
    if picture.mode == _RAW_COLOUR:
        return full_range(np.asarray(picture), 255)
    is_grey = picture.mode in ("1", "L", "LA", "La")
    if picture.has_transparency_data:
        layers = full_range(np.asarray(picture.convert("LA" if is_grey else "RGBA")), 255)
        colour = layers[..., :-1] * layers[..., -1:]  # over black
        return colour[..., 0] if is_grey else colour
    return full_range(np.asarray(picture.convert("L" if is_grey else "RGB")), 255)


def _of_samples(samples: tiff.Samples) -> npt.NDArray[np.float32]:
    """What a TIFF stores -> float32 (H, W) or (H, W, 3) in [0, 1]."""
    values, alpha = samples.values, samples.alpha
    if values.ndim == 3:
        colour = full_range(values >> 8 if values.dtype == np.uint16 else values, 255)
        return colour if alpha is None else colour * alpha[..., np.newaxis]
    if values.dtype == np.uint8:
        intensities = full_range(values, 255)
    else:
        intensities = _measured(values, None if alpha is None else alpha > 0)
    if samples.white_is_zero:
        intensities = 1.0 - intensities
    return intensities if alpha is None else intensities * alpha


def _measured(
    values: npt.NDArray[Any], seen: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.float32]:
    """Measurements -> [0, 1]; what is not seen is black and does not set the contrast."""
    if not np.isfinite(values).all():
        raise InvalidImageError(
            "expected finite intensities, got NaN or infinity; replace them before sending"
        )
    intensities = percentile_window(values, seen)
    return intensities if seen is None else intensities * seen


def _orientation(picture: pillow.Image) -> int:
    """EXIF orientation 1..8; upright where the metadata are missing or cannot be read."""
    try:
        return int(picture.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged metadata do not make the pixels wrong
        return 1


def _upright(array: npt.NDArray[np.float32], orientation: int) -> npt.NDArray[np.float32]:
    """Undo the stated orientation: rows go down, columns to the right."""
    if orientation in _TURNED:  # rows and columns are exchanged
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array
