"""The one door to the volume codecs: what kind of file some bytes are is told by their content."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from medserve.errors import InvalidImageError, InvalidRequestError
from medserve.imaging.codecs import dicom_series, nifti, npy, research_volumes, sniff
from medserve.imaging.codecs.payload import Payload
from medserve.imaging.volume import Volume, VolumeLimits
from medserve.spec import InputKind
from medserve.tasks.volumes import VolumeOptions

__all__ = ["ReadOptions", "decode"]

_SPOKEN = {
    InputKind.NIFTI: "NIfTI",
    InputKind.DICOM: "a DICOM series (zip, tar or multi-frame)",
    InputKind.NPY: "NPY",
}


@dataclass(frozen=True)
class ReadOptions:
    """What a request may say about its file.

    Attributes:
        channel: Which volume of a four-dimensional file.
        spacing_mm: Of an NPY array, which states none.
        select: Which of several series and acquisitions of DICOM images.
        modalities: DICOM modalities that the model takes; all where it is empty.
    """

    channel: int | None = None
    spacing_mm: tuple[float, float, float] | None = None
    select: str | None = None
    modalities: tuple[str, ...] = ()

    @classmethod
    def asked(cls, options: VolumeOptions, modalities: tuple[str, ...] = ()) -> ReadOptions:
        """Return what the options of a call say about its file."""
        return cls(options.channel, options.spacing_mm, options.select, modalities)


def decode(
    payload: Payload,
    kinds: Collection[InputKind],
    limits: VolumeLimits | None = None,
    options: ReadOptions | None = None,
) -> Volume:
    """The volume in the bytes, if the model takes that kind of file.

    Raises:
        InvalidImageError: another kind of file, or one that its codec refuses.
        InvalidRequestError: an option that this kind of file has no use for.
        PayloadTooLargeError: above `limits`.
    """
    options = options or ReadOptions()
    kind = _kind(payload)
    if kind is None or kind not in kinds:
        spoken = " or ".join(text for each, text in _SPOKEN.items() if each in kinds)
        found = sniff.kind(payload)
        advice = found.advice if found.input_kind is None else "send a volume in one of these"
        raise InvalidImageError(f"expected {spoken}, got {found.name}; {advice}")
    if options.channel is not None and kind is not InputKind.NIFTI:
        raise InvalidRequestError(
            "expected no channel, which only NIfTI and other files of several volumes have, got "
            "one; leave it out"
        )
    if options.spacing_mm is not None and kind is not InputKind.NPY:
        raise InvalidRequestError(
            "expected no spacing_mm, which the file states itself, got one; leave it out"
        )
    if options.select is not None and kind is not InputKind.DICOM:
        raise InvalidRequestError(
            "expected no select, which only DICOM images need, got one; leave it out"
        )
    if kind is InputKind.NIFTI and research_volumes.recognises(payload):
        return research_volumes.decode(payload, limits, options.channel)
    if kind is InputKind.NIFTI:
        return nifti.decode(payload, limits, options.channel)
    if kind is InputKind.DICOM:
        return dicom_series.decode(payload, limits, options.modalities, options.select)
    return npy.decode(payload, limits, options.spacing_mm or (1.0, 1.0, 1.0))


def _kind(payload: Payload) -> InputKind | None:
    if nifti.recognises(payload) or research_volumes.recognises(payload):
        return InputKind.NIFTI
    if npy.recognises(payload):
        return InputKind.NPY
    return InputKind.DICOM if dicom_series.recognises(payload) else None
