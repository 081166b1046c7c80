"""The one door to files of frames: what kind some bytes are is told by their content."""

from __future__ import annotations

from dataclasses import dataclass, field

from medserve.errors import InvalidImageError, InvalidRequestError, PayloadTooLargeError
from medserve.imaging.codecs import dicom_frames, nifti_frames, raster, sniff
from medserve.imaging.codecs.payload import Payload
from medserve.imaging.frames import (
    FrameGrid,
    FrameLimits,
    FrameStack,
    GivenSpacing,
    SingleFrame,
)
from medserve.spec import InputKind
from medserve.tasks.frames import View

__all__ = ["FrameReading", "decode"]

_SPOKEN = {
    InputKind.RASTER: "PNG, JPEG, TIFF",
    InputKind.DICOM: "DICOM",
    InputKind.NIFTI: "NIfTI",
}


@dataclass(frozen=True)
class FrameReading:
    """What a request may say about its file.

    Attributes:
        stated: Distances that the file does not state.
        view: How the frames lie in a NIfTI array; None: as stored.
    """

    stated: GivenSpacing = field(default_factory=GivenSpacing)
    view: View | None = None


def decode(
    payload: Payload, limits: FrameLimits, options: FrameReading | None = None
) -> FrameStack:
    """The frames in the bytes, if the model takes that kind of file.

    Raises:
        InvalidImageError: another kind of file, or one that its codec refuses.
        InvalidRequestError: an option that this file has no use for.
        PayloadTooLargeError: above `limits`.
    """
    options = options or FrameReading()
    most = limits.plane.max_payload_bytes
    if len(payload) > most:
        raise PayloadTooLargeError(
            f"expected at most {most} bytes a file, got {len(payload)}; compress it or send a "
            "part of it"
        )
    found = sniff.kind(payload)
    if found.input_kind not in limits.plane.kinds or found.input_kind not in _SPOKEN:
        spoken = ", ".join(_SPOKEN[each] for each in limits.plane.kinds if each in _SPOKEN)
        raise InvalidImageError(f"expected one of {spoken}, got {found.name}; {_advice(found)}")
    if options.view is not None and found.input_kind is not InputKind.NIFTI:
        raise InvalidRequestError(
            "expected no view, which only NIfTI files need, got one; leave it out"
        )
    stack = _decode(payload, limits, found.input_kind, options.view or View.STORED)
    stack.grid = stack.grid.with_given(options.stated)
    return stack


def _decode(payload: Payload, limits: FrameLimits, kind: InputKind, view: View) -> FrameStack:
    if kind is InputKind.NIFTI:
        return nifti_frames.decode(payload, limits, view)
    if kind is InputKind.DICOM:
        return dicom_frames.decode(payload, limits)
    image = raster.decode(payload, limits.plane)
    grid = FrameGrid((image.height, image.width), pixel_aspect=image.aspect)
    return SingleFrame(image, kind, grid)


def _advice(found: sniff.FileKind) -> str:
    if found.input_kind is None:
        return found.advice
    return "send the frames in one of these"
