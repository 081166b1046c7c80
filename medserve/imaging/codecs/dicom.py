"""Frames of a DICOM image -> Image, as a viewer would show them first (PS3.3 C.11, C.7.6.3).

Stored values go through the modality transform (rescale slope and intercept, or its table), then
the first display window, or the VOI table where there is no window. Without either, values of at
most 8 bits count as display values; wider ones are mapped by `percentile_window`. MONOCHROME1 is
inverted, so white always means more signal; padding pixels are black; RGB, YBR and palette
colour come out as RGB. The aspect of oblong pixels is kept beside them. What stored values mean is
told in `medserve.imaging.codecs.dicom_pixels`.

No element of the file is quoted in an error: headers carry names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medserve.errors import InvalidImageError, MedserveError
from medserve.imaging.codecs import dicom_file, dicom_pixels, dicom_regions
from medserve.imaging.codecs.dicom_file import (
    DAMAGED,
    PIXEL_DATA,
    check_stored_frames,
    frame_count,
)
from medserve.imaging.codecs.dicom_pixels import Values, group
from medserve.imaging.codecs.dicom_tables import lookup_table
from medserve.imaging.codecs.payload import Payload, check_size, quietly
from medserve.imaging.image import Image
from medserve.imaging.intensity import clipped, full_range, percentile_window
from medserve.spec import InputSpec

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["check", "decode", "frame_image", "prepare", "read"]

# What is read; everything else in the header, names included, is skipped.
_ELEMENTS = (
    *dicom_pixels.ELEMENTS,
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
)
_PHOTOMETRIC = (
    "MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422",
    "YBR_RCT", "YBR_ICT",
)  # fmt: skip


def decode(payload: Payload, limits: InputSpec) -> Image:
    """The one frame of a DICOM file as intensities in [0, 1].

    Raises:
        InvalidImageError: no DICOM, damaged, without pixels, several frames, too small, or
            compressed in a way that is not supported.
        PayloadTooLargeError: more pixels than `limits.max_pixels`; known from the header.
    """
    with quietly():
        try:
            dataset = read(bytes(payload), dicom_regions.ELEMENTS)
            check(dataset, limits)
            _refuse_several_frames(dataset)
            check_stored_frames(dataset)
            image = frame_image(dataset)
            return Image(image.array, dicom_regions.image_aspect(dataset))
        except MedserveError:
            raise
        except Exception:  # pydicom quotes values in what it raises
            raise InvalidImageError(DAMAGED.format(part="header")) from None


def prepare() -> None:
    """Import pydicom, which the first DICOM file would otherwise wait for (0.4 s)."""
    import pydicom.pixels  # noqa: F401


def read(payload: Payload, elements: Sequence[str] = ()) -> Dataset:
    """The parts of a file that its pixels need, and the top-level `elements`; names stay unread."""
    return dicom_file.read(payload, [*_ELEMENTS, *elements])


def check(dataset: Dataset, limits: InputSpec) -> None:
    """Everything that can be refused from the header alone, but for the number of frames.

    Raises:
        InvalidImageError: no pixels, a photometric interpretation that is not known, too small.
        PayloadTooLargeError: more pixels in a frame than `limits.max_pixels`.
    """
    has_pixels = any(name in dataset for name in PIXEL_DATA)
    if not has_pixels or not dataset.get("Rows") or not dataset.get("Columns"):
        raise InvalidImageError(
            f"expected a DICOM image, got {dicom_file.kind_without_pixels(dataset)}, without pixel "
            "data; send an image object"
        )
    if str(dataset.get("PhotometricInterpretation")) not in _PHOTOMETRIC:
        raise InvalidImageError(
            "expected a grey, RGB, YBR or palette DICOM, got another photometric "
            "interpretation; convert it to MONOCHROME2 or RGB"
        )
    check_size(int(dataset.Rows), int(dataset.Columns), limits)


def frame_image(dataset: Dataset, index: int = 0) -> Image:
    """One frame of a checked dataset; only its pixels are decoded.

    Raises:
        InvalidImageError: damaged, or compressed in a way that is not supported.
    """
    try:
        if _is_colour(dataset):
            return Image(dicom_pixels.to_rgb(dataset, index))
        return Image(_grey(dataset, index))
    except MedserveError:
        raise
    except Exception:  # pydicom quotes values in what it raises
        raise InvalidImageError(DAMAGED.format(part="header")) from None


def _refuse_several_frames(dataset: Dataset) -> None:
    if (frames := frame_count(dataset)) != 1:
        raise InvalidImageError(
            f"expected a single-frame DICOM, got {frames} frames; send one frame, or use a "
            "model that takes volumes or cine loops"
        )


def _is_colour(dataset: Dataset) -> bool:
    is_palette = dataset.PhotometricInterpretation == "PALETTE COLOR"
    return is_palette or int(dataset.get("SamplesPerPixel") or 1) > 1


def _grey(dataset: Dataset, index: int) -> npt.NDArray[np.float32]:
    """One frame (H, W) as intensities in [0, 1]; white is more signal, background black."""
    values = dicom_pixels.values_of(dataset, index)
    background = values.background
    if background is not None and background.all():
        if values.array.dtype.kind != "f" or values.is_rescaled:
            return np.zeros(values.array.shape, np.float32)  # a frame of padding alone
        raise InvalidImageError(
            "expected finite pixel values, got NaN or infinity all over; send the original image"
        )
    intensities = _displayed(values, dataset, index)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        intensities = 1.0 - intensities
    if background is not None:
        intensities[background] = 0.0
    return intensities


def _displayed(values: Values, dataset: Dataset, index: int) -> npt.NDArray[np.float32]:
    array, background = values.array, values.background
    if array.dtype.kind == "f" and background is not None:
        array = np.where(background, array[~background].min(), array)
    window = _window(array, group(dataset, index, "FrameVOILUTSequence", "WindowCenter"))
    if window is not None:
        return window
    voi = group(dataset, index, "FrameVOILUTSequence", "VOILUTSequence")
    if voi.get("VOILUTSequence"):
        table = lookup_table(
            voi.VOILUTSequence[0],
            signed=min(values.limits) < 0,
            big_endian=dicom_pixels.is_big_endian(dataset),
        )
        return table.shown(array)
    bits = int(dataset.get("BitsStored") or 32)
    if bits <= 8 and not values.is_rescaled and not int(dataset.get("PixelRepresentation") or 0):
        return full_range(array, 2**bits - 1)
    return percentile_window(array, None if background is None else ~background)


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


def _first(value: Any, default: float) -> Any:
    """The first of possibly several values; the default for none or an empty one."""
    if value is None or value == "":
        return default
    if isinstance(value, str | int | float):
        return value
    return value[0] if len(value) else default
