"""What a caller may ask of a model that segments frames: the input `params`, checked.

    output             mask (default), overlay, json; of a packed call json alone
    format             png, nifti, dicom-seg, json; by default what fits file and output
    overlay            a JSON answer also carries the picture
    view               how frames lie in a NIfTI array: stored, swapped, axial, coronal, sagittal
    spacing_mm         two numbers: between rows, between columns; of a file that states none
    step_mm            from one frame of a stack to the next; of a file that states none
    length_mm          third diameter of the ellipsoid, measured elsewhere
    flips              average with the mirror image
    largest_component  keep only the largest piece in each frame
    fill_holes         fill what it encloses

Errors never quote values: a caller may have put anything there.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace

from handlers.params import flag, length, lengths, one_of, refuse_unknown
from medserve.errors import InvalidRequestError
from medserve.imaging.codecs.frame_file import FrameReading
from medserve.imaging.frames import GivenSpacing, View
from medserve.inference.frame_pipeline import FrameOptions

__all__ = ["FrameParams", "FramePart"]


class FramePart(enum.StrEnum):
    """Something that an answer may hold."""

    MASK = "mask"  # PNG of a single frame, .nii.gz of a stack
    PNG = "png"  # the mask of a single frame
    NIFTI = "nifti"  # the mask as .nii.gz, of a single frame, too
    DICOM_SEG = "dicom-seg"  # the mask as DICOM Segmentation
    OVERLAY = "overlay"  # PNG


_JSON = "json"
_OUTPUTS = ("mask", "overlay", _JSON)
_FORMATS = ("png", "nifti", "dicom-seg", _JSON)
# (output, format) -> the part, and whether it comes as a member of a JSON object.
_WANTED: dict[tuple[str, str | None], tuple[FramePart, bool]] = {
    ("mask", None): (FramePart.MASK, False),
    ("mask", "png"): (FramePart.PNG, False),
    ("mask", "nifti"): (FramePart.NIFTI, False),
    ("mask", "dicom-seg"): (FramePart.DICOM_SEG, False),
    ("mask", _JSON): (FramePart.MASK, True),
    ("overlay", None): (FramePart.OVERLAY, False),
    ("overlay", "png"): (FramePart.OVERLAY, False),
    ("overlay", _JSON): (FramePart.OVERLAY, True),
    (_JSON, None): (FramePart.MASK, True),
    (_JSON, _JSON): (FramePart.MASK, True),
    (_JSON, "dicom-seg"): (FramePart.DICOM_SEG, True),
}
_KNOWN = (
    *("fill_holes", "flips", "format", "largest_component", "length_mm", "output", "overlay"),
    *("spacing_mm", "step_mm", "view"),
)


@dataclass(frozen=True)
class FrameParams:
    """One call's wishes.

    Attributes:
        part: What the answer holds; a JSON answer always holds mask and measurements, too.
        as_json: Whether the answer is a JSON object; None: only if the call is packed.
        with_overlay: Whether a JSON answer carries the picture.
        reading: What the caller says of the file.
        length_mm: The third diameter, measured elsewhere.
        options: What the pipeline is to do.
    """

    part: FramePart
    as_json: bool | None
    with_overlay: bool
    reading: FrameReading
    length_mm: float | None
    options: FrameOptions

    @classmethod
    def parse(cls, params: Mapping[str, object], defaults: FrameOptions) -> FrameParams:
        """Check and parse; `defaults` are the model's own.

        Raises:
            InvalidRequestError: names the known keys, or what the key takes.
        """
        refuse_unknown(params, _KNOWN)
        part, as_json = _wanted(params)
        with_overlay = flag(params, "overlay", False)
        if with_overlay and as_json is False:
            raise InvalidRequestError(
                "params: expected overlay with the output json, got it with a bare file; ask for "
                "json, or for the output overlay"
            )
        return cls(
            part=part,
            as_json=True if with_overlay else as_json,
            with_overlay=with_overlay or (part is FramePart.OVERLAY and bool(as_json)),
            reading=FrameReading(
                GivenSpacing(_spacing(params), length(params, "step_mm")), _view(params)
            ),
            length_mm=length(params, "length_mm"),
            options=replace(
                defaults,
                flips=flag(params, "flips", defaults.flips),
                largest_component=flag(params, "largest_component", defaults.largest_component),
                fill_holes=flag(params, "fill_holes", defaults.fill_holes),
            ),
        )

    def of_call(self, *, packed: bool) -> FrameParams:
        """Settle `as_json` for a call; InvalidRequestError for bare files in a packed one."""
        if packed and self.as_json is False:
            raise InvalidRequestError(
                "params: expected the output json for several files in one call, got another "
                "output; ask for json, or send one file a call"
            )
        return replace(self, as_json=packed if self.as_json is None else self.as_json)


def _wanted(params: Mapping[str, object]) -> tuple[FramePart, bool | None]:
    """The part that output and format name, and whether it comes in JSON; None: left open."""
    output, form = one_of(params, "output", _OUTPUTS), one_of(params, "format", _FORMATS)
    if output is None and form is None:
        return FramePart.MASK, None
    if output is None:
        output = _JSON if form == _JSON else "mask"
    if (output, form) not in _WANTED:
        fitting = [each for of, each in _WANTED if of == output and each is not None]
        raise InvalidRequestError(
            f"params: format: expected {' or '.join(fitting)} for the output {output}, "
            "got another one"
        )
    return _WANTED[output, form]


def _spacing(params: Mapping[str, object]) -> tuple[float, float] | None:
    found = lengths(params, "spacing_mm", 2)
    return None if found is None else (found[0], found[1])


def _view(params: Mapping[str, object]) -> View | None:
    found = one_of(params, "view", tuple(View))
    return None if found is None else View(found)
