"""Frames of a DICOM image -> Image, as a viewer would show them first (PS3.3 C.11, C.7.6.3).

Stored values go through the modality transform (rescale slope and intercept, or its table), then
the first display window, or the VOI table where there is no window. Without either, values of at
most 8 bits count as display values; wider ones are mapped by `percentile_window`. MONOCHROME1 is
inverted, so white always means more signal; padding pixels are black; RGB, YBR and palette
colour come out as RGB. Pixel data may be uncompressed, RLE, JPEG baseline or JPEG 2000.

No element of the file is quoted in an error: headers carry names.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medserve.errors import InvalidImageError, MedserveError
from medserve.imaging.codecs.payload import Payload, check_size, quietly
from medserve.imaging.image import Image
from medserve.imaging.intensity import clipped, full_range, percentile_window
from medserve.spec import InputSpec

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

__all__ = [
    "DAMAGED",
    "check",
    "decode",
    "frame_count",
    "frame_image",
    "prepare",
    "read",
    "syntax_of",
]

# What is read; everything else in the header, names included, is skipped.
_ELEMENTS = [
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData", "PixelData", "FloatPixelData",
    "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
]  # fmt: skip
_PHOTOMETRIC = (
    "MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422",
    "YBR_RCT", "YBR_ICT",
)  # fmt: skip
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_RLE = "1.2.840.10008.1.2.5"
DAMAGED = (
    "expected a whole DICOM image, got one whose {part} is damaged or cut short; "
    "export it again from the archive"
)


def decode(payload: Payload, limits: InputSpec) -> Image:
    """The one frame of a DICOM file as intensities in [0, 1].

    Raises:
        InvalidImageError: no DICOM, damaged, without pixels, several frames, too small, or
            compressed in a way that is not supported.
        PayloadTooLargeError: more pixels than `limits.max_pixels`; known from the header.
    """
    with quietly():
        try:
            dataset = read(bytes(payload))
            check(dataset, limits)
            _refuse_several_frames(dataset)
            return frame_image(dataset)
        except MedserveError:
            raise
        except Exception:  # pydicom quotes values in what it raises
            raise InvalidImageError(DAMAGED.format(part="header")) from None


def prepare() -> None:
    """Import pydicom, which the first DICOM file would otherwise wait for (0.4 s)."""
    import pydicom.pixels  # noqa: F401


def read(payload: bytes, elements: Sequence[str] = ()) -> Dataset:
    """The parts of a file that its pixels need, and the top-level `elements`; names stay unread."""
    from pydicom import dcmread

    # A deflated file could unpack to any size before its header can be read.
    if _DEFLATED in payload:
        raise InvalidImageError(
            "expected an uncompressed DICOM header, got Deflated Explicit VR Little Endian; "
            "store it uncompressed, for example with dcmconv"
        )
    return dcmread(io.BytesIO(payload), specific_tags=[*_ELEMENTS, *elements])


def check(dataset: Dataset, limits: InputSpec) -> None:
    """Everything that can be refused from the header alone, but for the number of frames.

    Raises:
        InvalidImageError: no pixels, a photometric interpretation that is not known, too small.
        PayloadTooLargeError: more pixels in a frame than `limits.max_pixels`.
    """
    pixels = [name for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
              if name in dataset]  # fmt: skip
    if not pixels or not dataset.get("Rows") or not dataset.get("Columns"):
        raise InvalidImageError(
            "expected a DICOM image, got a DICOM object without pixel data (a report, a "
            "structure set, a directory); send an image object"
        )
    if str(dataset.get("PhotometricInterpretation")) not in _PHOTOMETRIC:
        raise InvalidImageError(
            "expected a grey, RGB, YBR or palette DICOM, got another photometric "
            "interpretation; convert it to MONOCHROME2 or RGB"
        )
    check_size(int(dataset.Rows), int(dataset.Columns), limits)
    # Of bytes beyond the frame, run lengths would still be unpacked, 64 times their size.
    samples = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel") or 1)
    whole = frame_count(dataset) * samples * int(dataset.get("BitsAllocated") or 8) // 8
    if syntax_of(dataset) == _RLE and len(dataset.PixelData) > 2 * whole + 4096:
        raise InvalidImageError(DAMAGED.format(part="pixel data"))


def frame_count(dataset: Dataset) -> int:
    """How many frames the header states."""
    return int(dataset.get("NumberOfFrames") or 1)


def frame_image(dataset: Dataset, index: int = 0) -> Image:
    """One frame of a checked dataset; only its pixels are decoded.

    Raises:
        InvalidImageError: damaged, or compressed in a way that is not supported.
    """
    stored = _stored_values(dataset, index)
    colour = _colour(stored, dataset)
    return Image(_grey(stored, dataset) if colour is None else colour)


def _refuse_several_frames(dataset: Dataset) -> None:
    if (frames := frame_count(dataset)) != 1:
        raise InvalidImageError(
            f"expected a single-frame DICOM, got {frames} frames; send one frame, or use a "
            "model that takes volumes or cine loops"
        )


def _stored_values(dataset: Dataset, index: int) -> npt.NDArray[Any]:
    """Decoded pixel data (H, W) or (H, W, 3) of one frame; YBR is RGB already."""
    from pydicom.pixels.decoders.base import get_decoder

    from medserve.imaging.codecs.jpeg_headers import check_codestream

    syntax = syntax_of(dataset)
    if syntax is None:
        raise InvalidImageError(
            "expected a DICOM file that states its transfer syntax, got none; "
            "save it as a DICOM Part 10 file"
        )
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    if decoder is None or not decoder.is_available:
        name = syntax.name if syntax.name != syntax else "one that is not known"
        raise InvalidImageError(
            "expected uncompressed, RLE, JPEG baseline or JPEG 2000 pixel data, got transfer "
            f"syntax {name}; decompress it first, for example with gdcmconv --raw"
        )
    try:
        check_codestream(dataset, syntax, index)
        return decoder.as_array(dataset, index=index)[0]
    except Exception:  # pydicom quotes values in what it raises
        raise InvalidImageError(DAMAGED.format(part="pixel data")) from None


def syntax_of(dataset: Dataset) -> UID | None:
    """How the pixel data are encoded; None where the file does not say."""
    return getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)


def _colour(stored: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[np.float32] | None:
    """RGB (H, W, 3) of a colour image; None for a grey one."""
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        table_output = apply_color_lut(stored, dataset)[..., :3]
        return full_range(table_output, int(np.iinfo(table_output.dtype).max))
    if stored.ndim == 3:
        return full_range(stored, 2 ** int(dataset.BitsStored) - 1)
    return None


def _grey(stored: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[np.float32]:
    """Stored values (H, W) -> intensities in [0, 1]; white is more signal, padding black."""
    padding = _padding(stored, dataset)
    intensities = _displayed(stored, padding, dataset)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        intensities = 1.0 - intensities
    if padding is not None:
        intensities[padding] = 0.0
    return intensities


def _displayed(
    stored: npt.NDArray[Any], padding: npt.NDArray[np.bool_] | None, dataset: Dataset
) -> npt.NDArray[np.float32]:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    transform = _macro(dataset, "PixelValueTransformationSequence", "RescaleSlope")
    if "ModalityLUTSequence" in dataset:
        values = apply_modality_lut(stored, dataset)
        rescaled = True
    else:
        slope = float(_first(transform.get("RescaleSlope"), 1.0))
        intercept = float(_first(transform.get("RescaleIntercept"), 0.0))
        rescaled = (slope, intercept) != (1.0, 0.0)
        values = stored * np.float32(slope) + np.float32(intercept) if rescaled else stored
    if not np.isfinite(values).all():
        raise InvalidImageError(
            "expected finite pixel values, got NaN or infinity; replace them before sending"
        )
    voi = _macro(dataset, "FrameVOILUTSequence", "WindowCenter")
    window = _window(values, voi)
    if window is not None:
        return window
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return full_range(apply_voi(values.astype(np.int32), dataset), 2**bits - 1)
    bits = int(dataset.get("BitsStored") or 32)
    if bits <= 8 and not rescaled and not int(dataset.get("PixelRepresentation") or 0):
        return full_range(values, 2**bits - 1)
    return percentile_window(values, None if padding is None else ~padding)


def _window(values: npt.NDArray[Any], voi: Dataset) -> npt.NDArray[np.float32] | None:
    """The first window, by its stated function (PS3.3 C.11.2.1.2); None where there is none.

    A window without a width that its function allows is a flaw that many files have; it counts
    as no window.
    """
    centre = float(_first(voi.get("WindowCenter"), math.nan))
    width = float(_first(voi.get("WindowWidth"), math.nan))
    function = str(voi.get("VOILUTFunction") or "LINEAR")
    if not math.isfinite(centre) or not math.isfinite(width) or width <= 0:
        return None
    x = values.astype(np.float32)
    if function == "SIGMOID":
        shown = 1.0 / (1.0 + np.exp(np.clip(-4.0 * (x - centre) / width, -80.0, 80.0)))
    elif function == "LINEAR_EXACT":
        shown = (x - centre) / width + 0.5
    elif width < 1:
        return None
    elif width == 1:  # a threshold
        shown = x > centre - 0.5
    else:
        shown = (x - (centre - 0.5)) / (width - 1) + 0.5
    return clipped(shown)


def _padding(stored: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[np.bool_] | None:
    """True where a pixel only fills up the frame (PS3.3 C.7.5.1.1.2); None where none does."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    other = limit if isinstance(limit, int) else value
    mask = (stored >= min(value, other)) & (stored <= max(value, other))
    return mask if mask.any() and not mask.all() else None


def _macro(dataset: Dataset, sequence: str, element: str) -> Dataset:
    """Where `element` stands: in the header, or in an enhanced object's functional groups."""
    if element in dataset:
        return dataset
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for item in dataset.get(groups) or []:
            if item.get(sequence):
                found: Dataset = item[sequence].value[0]
                return found
    return dataset


def _first(value: Any, default: float) -> Any:
    """The first of possibly several values; the default for none or an empty one."""
    if value is None or value == "":
        return default
    if isinstance(value, str | int | float):
        return value
    return value[0] if len(value) else default
