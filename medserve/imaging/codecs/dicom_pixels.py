"""The meaning of stored DICOM pixels: one reader for single images, loops, slices and volumes.

In this order: the frame is decoded; bits beyond BitsStored mean nothing (PS3.5 section 8.1.1) and
are taken off, with the sign where PixelRepresentation has one; the modality table or rescale slope
and intercept of that frame apply. Background are the pixels that only fill up the frame
(PixelPaddingValue and its range, PS3.3 C.7.5.1.1.2, compared bit by bit, whatever sign their VR
claims) and those that are NaN or infinite.
"""

from __future__ import annotations

import importlib
import re
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medserve.errors import InvalidImageError, MedserveError
from medserve.imaging.codecs.dicom_file import DAMAGED, frame_count, syntax_of
from medserve.imaging.codecs.dicom_tables import has_palette, lookup_table, palette
from medserve.imaging.codecs.jpeg_frame import scans_fit
from medserve.imaging.intensity import full_range

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

__all__ = [
    "ELEMENTS",
    "Values",
    "check_syntax",
    "decoded",
    "group",
    "is_big_endian",
    "to_rgb",
    "values_of",
]

ELEMENTS = [
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration",
    "PresentationLUTShape",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData", "PixelData", "FloatPixelData",
    "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
]  # fmt: skip

_JPEG, _JPEG_EXTENDED = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
_HUFFMAN = (_JPEG, _JPEG_EXTENDED, "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_RLE = "1.2.840.10008.1.2.5"
_SURPLUS_RUNS = re.compile(r"The decoded RLE segment .* (\d+) vs\. (\d+) bytes expected")
_OF_ALL_FRAMES = (
    "PixelData", "NumberOfFrames", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
)  # fmt: skip
_MOST_PADDING = 2  # bytes of a segment
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # PS3.5 table A.4-1, in both byte orders
_ONE_SAMPLE = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_POLARITIES = {"INVERSE": "MONOCHROME1", "IDENTITY": "MONOCHROME2"}  # PS3.3 C.8.11.3.1
_J2K = ("pylibjpeg", "pillow")
# Which of pydicom's plugins decode a syntax, the first that is installed; others are native.
_PLUGINS: dict[str, tuple[str, ...]] = {
    _JPEG: ("pillow",),
    _JPEG_EXTENDED: ("pillow",),
    "1.2.840.10008.1.2.4.57": ("gdcm",),
    "1.2.840.10008.1.2.4.70": ("gdcm",),
    "1.2.840.10008.1.2.4.80": ("pyjpegls", "gdcm"),
    "1.2.840.10008.1.2.4.81": ("pyjpegls", "gdcm"),
    "1.2.840.10008.1.2.4.90": _J2K,
    "1.2.840.10008.1.2.4.91": _J2K,
    "1.2.840.10008.1.2.4.201": ("pylibjpeg",),
    "1.2.840.10008.1.2.4.202": ("pylibjpeg",),
    "1.2.840.10008.1.2.4.203": ("pylibjpeg",),
    _RLE: ("pydicom",),
}
_PACKAGES = {"gdcm": "python-gdcm", "pylibjpeg": "pylibjpeg-openjpeg", "pyjpegls": "pyjpegls"}


@dataclass(frozen=True, eq=False)
class Values:
    """One grey frame after the modality transformation.

    Attributes:
        array: (H, W); integers where nothing was rescaled, else float32. Background is undefined.
        background: True where a pixel shows nothing; None where all of them count.
        limits: What the smallest and largest number that can be stored become.
        is_rescaled: Whether a table or a rescale other than 1 and 0 was applied.
    """

    array: npt.NDArray[Any] = field(repr=False)
    background: npt.NDArray[np.bool_] | None = field(repr=False)
    limits: tuple[float, float]
    is_rescaled: bool

    def inverted(self) -> npt.NDArray[Any]:
        """The values of MONOCHROME1 with white for more signal, in the same range."""
        total = sum(self.limits)
        if self.array.dtype.kind == "f":
            return np.asarray(np.float32(total) - self.array)
        wide = np.int64(total) - self.array.astype(np.int64)
        return wide.astype(self.array.dtype)


def values_of(dataset: Dataset, index: int) -> Values:
    """One grey frame as numbers in the unit of its modality.

    Raises:
        InvalidImageError: damaged, compressed in a way that is not read, a rescale slope of 0,
            or a rescale beyond the numbers that float32 holds.
    """
    raw = decoded(dataset, index)
    if raw.dtype.kind == "f":
        stored, limits = raw, (0.0, 0.0)
        finite = np.isfinite(raw)
        background = None if finite.all() else ~finite
    else:
        stored = _without_unused_bits(raw, dataset)
        background = _padding(raw, stored, dataset)
        limits = _limits(dataset)
    return _modality(stored, background, limits, dataset, index)


def group(dataset: Dataset, index: int, sequence: str, element: str) -> Dataset:
    """The data set where `element` of a frame stands.

    In an enhanced object that is an item of its own, else of all frames' functional groups
    (PS3.3 C.7.6.16); elsewhere it is the header itself.
    """
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for item in (*own[index : index + 1], *shared[:1]):
        if item.get(sequence) and element in item[sequence].value[0]:
            found: Dataset = item[sequence].value[0]
            return found
    return dataset


def is_big_endian(dataset: Dataset) -> bool:
    """Whether words in the header were written with their higher byte first."""
    syntax = syntax_of(dataset)
    return syntax is not None and syntax.is_transfer_syntax and not syntax.is_little_endian


def to_rgb(dataset: Dataset, index: int) -> npt.NDArray[np.float32]:
    """RGB (H, W, 3) in [0, 1] of a frame that is stored in colours or has a palette.

    Raises:
        InvalidImageError: damaged, or compressed in a way that is not read.
    """
    stored = decoded(dataset, index)
    if stored.ndim == 2:
        if not has_palette(dataset):
            raise InvalidImageError(DAMAGED.format(part="palette"))
        indices = _without_unused_bits(stored, dataset)
        return palette(indices, dataset, signed=_signed(dataset), big_endian=is_big_endian(dataset))
    return full_range(stored, 2 ** int(dataset.BitsStored) - 1)


def decoded(dataset: Dataset, index: int) -> npt.NDArray[Any]:
    """Decoded pixel data (H, W) or (H, W, 3) of one frame; YBR is RGB already.

    Raises:
        InvalidImageError: damaged, or compressed in a way that is not read.
    """
    from medserve.imaging.codecs.jpeg_headers import check_codestream

    syntax = syntax_of(dataset)
    if syntax is None:
        raise InvalidImageError(
            "expected a DICOM file that states its transfer syntax, got none; "
            "save it as a DICOM Part 10 file"
        )
    check_syntax(syntax)
    _refuse_contradictions(dataset, syntax)
    try:
        _refuse_long_runs(dataset, syntax)
        precision = check_codestream(dataset, syntax, index)
        array = _array(dataset, syntax, index, precision)
        if syntax in _HUFFMAN:
            _refuse_damaged_scan(dataset, syntax, index, array)
        return array
    except MedserveError:
        raise
    except Exception:  # pydicom quotes values in what it raises
        raise InvalidImageError(DAMAGED.format(part="pixel data")) from None


def _array(dataset: Dataset, syntax: UID, index: int, precision: int | None) -> npt.NDArray[Any]:
    """One frame as its decoder gives it; `precision` are the bits that its codestream states."""
    from pydicom.pixels.decoders.base import get_decoder

    if syntax in (_JPEG, _JPEG_EXTENDED) and precision != 8:
        return _of_12_bits(dataset, index)
    options: dict[str, Any] = {
        "decoding_plugin": check_syntax(syntax),
        "correct_unused_bits": False,
    }
    if syntax in (_JPEG, _JPEG_EXTENDED) and int(dataset.BitsAllocated) > 8:
        # The codestream is one of bytes, whatever the header allocates for it.
        options |= {"bits_allocated": 8, "bits_stored": min(8, int(dataset.BitsStored))}
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        array = get_decoder(syntax).as_array(dataset, index=index, **options)[0]
    for each in found:
        _refuse_surplus(str(each.message))
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _refuse_surplus(warning: str) -> None:
    """Refuse run lengths of more pixels than a frame has, but for what fills them up."""
    if match := _SURPLUS_RUNS.match(warning):
        found, expected = (int(number) for number in match.groups())
        if found - expected > _MOST_PADDING:
            raise ValueError("run lengths of more pixels than the frame has")


def _refuse_damaged_scan(
    dataset: Dataset, syntax: UID, index: int, array: npt.NDArray[Any]
) -> None:
    """Refuse a JPEG with too few or too many coded data, of which decoders only warn."""
    from pydicom.dataset import Dataset as Copy
    from pydicom.encaps import encapsulate, get_frame

    frame = get_frame(dataset.PixelData, index, number_of_frames=frame_count(dataset))
    precision = int(array.dtype.itemsize * 8)

    def decode(codestream: bytes) -> bytes:
        other = Copy()  # which shares elements: to set one of them would change the source, too
        other.update({each.tag: each for each in dataset if each.keyword not in _OF_ALL_FRAMES})
        other.file_meta = dataset.file_meta
        other.PixelData = encapsulate([codestream])
        return _array(other, syntax, 0, precision).tobytes()

    if not scans_fit(frame, array.tobytes(), decode):
        raise ValueError("a scan with too few or too many data")


def _of_12_bits(dataset: Dataset, index: int) -> npt.NDArray[Any]:
    """One grey frame of JPEG with 12 bits a sample, which Pillow and GDCM do not decode."""
    from pydicom.encaps import get_frame

    try:  # by name, as archives require what they import: 26 MB, seldom needed, an extra
        jpeg8_decode = importlib.import_module("imagecodecs").jpeg8_decode
    except ImportError:
        raise InvalidImageError(
            "expected JPEG of 8 bits, got transfer syntax JPEG Extended or Baseline with 12 bits, "
            "for which there is no decoder; install imagecodecs, or decompress it first, for "
            "example with dcmdjpeg"
        ) from None
    frame = get_frame(dataset.PixelData, index, number_of_frames=frame_count(dataset))
    array = np.asarray(jpeg8_decode(frame))
    if array.shape != (int(dataset.Rows), int(dataset.Columns)) or array.dtype != np.uint16:
        raise ValueError("expected one grey frame of 12 bits")
    return array


def check_syntax(syntax: UID) -> str:
    """Return the decoder for a transfer syntax; empty where pydicom needs none.

    Raises:
        InvalidImageError: nothing that is installed decodes it; the error names what would.
    """
    from pydicom.pixels.decoders.base import get_decoder

    name = syntax.name if syntax.name != syntax else "one that is not known"
    known = syntax.is_transfer_syntax and not syntax.is_encapsulated
    if known and syntax.name != syntax:
        return ""
    plugins = _PLUGINS.get(str(syntax), ())
    installed = {plugin for plugin in plugins if plugin in get_decoder(syntax).available_plugins}
    for plugin in plugins:
        if plugin in installed:
            return plugin
    missing = [_PACKAGES[plugin] for plugin in plugins if plugin in _PACKAGES]
    advice = f"install {missing[0]}, or " if missing else ""
    raise InvalidImageError(
        f"expected pixel data that can be decoded here, got transfer syntax {name}; {advice}"
        "decompress it first, for example with gdcmconv --raw"
    )


def _refuse_contradictions(dataset: Dataset, syntax: UID) -> None:
    """Refuse headers of which one element says that the pixels mean something else than another."""
    if not syntax.is_encapsulated and bytes(dataset.get("PixelData", b"")[:4]) in _ITEMS:
        raise InvalidImageError(
            "expected pixel data as the transfer syntax says, uncompressed, got data in the items "
            "of compressed ones; export the file again from the archive"
        )
    samples = int(dataset.get("SamplesPerPixel") or 1)
    meaning = str(dataset.get("PhotometricInterpretation"))
    if samples != (1 if meaning in _ONE_SAMPLE else 3):
        raise InvalidImageError(
            "expected as many samples a pixel as the photometric interpretation has, got "
            f"{samples}; export the file again from the archive"
        )
    polarity = _POLARITIES.get(str(dataset.get("PresentationLUTShape")), meaning)
    if meaning in _POLARITIES.values() and polarity != meaning:
        raise InvalidImageError(
            "expected a presentation LUT shape that fits the photometric interpretation (INVERSE "
            "for MONOCHROME1, IDENTITY for MONOCHROME2), got the other one, so that white may "
            "mean either; correct the header"
        )


def _refuse_long_runs(dataset: Dataset, syntax: UID) -> None:
    """Of bytes beyond the frames, run lengths would still be unpacked, to 64 times their size."""
    samples = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel") or 1)
    whole = frame_count(dataset) * samples * int(dataset.get("BitsAllocated") or 8) // 8
    if syntax == _RLE and len(dataset.PixelData) > 2 * whole + 4096:
        raise ValueError("run lengths of more bytes than the frames have")


def _signed(dataset: Dataset) -> bool:
    return bool(int(dataset.get("PixelRepresentation") or 0))


def _limits(dataset: Dataset) -> tuple[float, float]:
    """The smallest and the largest number that BitsStored bits hold."""
    bits = int(dataset.BitsStored)
    if _signed(dataset):
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    return 0.0, 2.0**bits - 1


def _without_unused_bits(raw: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[Any]:
    """The BitsStored bits up to HighBit; of compressed frames the lowest ones."""
    allocated, stored = raw.dtype.itemsize * 8, int(dataset.BitsStored)
    syntax = syntax_of(dataset)
    is_native = syntax is not None and not syntax.is_encapsulated
    high = int(dataset.get("HighBit") or stored - 1) if is_native else stored - 1
    above = allocated - 1 - high
    if not 0 <= above <= allocated - stored or stored >= allocated:
        return raw
    kind = np.dtype(f"{'i' if _signed(dataset) else 'u'}{raw.dtype.itemsize}")
    return np.asarray((raw.view(kind) << above) >> (allocated - stored))


def _padding(
    raw: npt.NDArray[Any], stored: npt.NDArray[Any], dataset: Dataset
) -> npt.NDArray[np.bool_] | None:
    """True where a pixel only fills up the frame; None where none of them does."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    bounds = [_reread(each, raw.dtype) for each in (value, limit) if isinstance(each, int)]
    mask = (stored >= min(bounds)) & (stored <= max(bounds))
    if raw is not stored:  # a number that BitsStored bits cannot hold is compared as it lies there
        mask |= raw == bounds[0]
    return mask if mask.any() else None


def _reread(value: int, dtype: np.dtype[Any]) -> int:
    """The bits of a header's number, of VR US or SS, as a number of the pixels' type."""
    bits = int(dtype.itemsize) * 8
    word = value & ((1 << bits) - 1)
    return word - (1 << bits) if dtype.kind == "i" and word >> (bits - 1) else word


def _modality(
    stored: npt.NDArray[Any],
    background: npt.NDArray[np.bool_] | None,
    limits: tuple[float, float],
    dataset: Dataset,
    index: int,
) -> Values:
    if dataset.get("ModalityLUTSequence"):
        table = lookup_table(
            dataset.ModalityLUTSequence[0],
            signed=_signed(dataset),
            big_endian=is_big_endian(dataset),
        )
        reached = (float(table.entries.min()), float(table.entries.max()))
        return Values(table(stored), background, reached, is_rescaled=True)
    transform = group(dataset, index, "PixelValueTransformationSequence", "RescaleSlope")
    slope = _number(transform.get("RescaleSlope"), 1.0)
    intercept = _number(transform.get("RescaleIntercept"), 0.0)
    if slope == 0.0:
        raise InvalidImageError(
            "expected a rescale slope other than 0, which makes all pixels alike, got 0; "
            "send the original image"
        )
    if (slope, intercept) == (1.0, 0.0):
        return Values(stored, background, limits, is_rescaled=False)
    with np.errstate(over="ignore"):
        array = (stored * np.float64(slope) + intercept).astype(np.float32)
    if not np.isfinite(array if background is None else array[~background]).all():
        raise InvalidImageError(
            "expected finite pixel values, got a rescale that leads to NaN or infinity; "
            "correct the header"
        )
    low, high = (slope * limit + intercept for limit in limits)
    return Values(array, background, (low, high), is_rescaled=True)


def _number(value: Any, default: float) -> float:
    """The first of possibly several values; the default for none or an empty one."""
    if value is None or value == "":
        return default
    if isinstance(value, str | int | float):
        return float(value)
    return float(value[0]) if len(value) else default
