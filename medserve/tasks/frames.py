"""Frames: a mask for each frame of a picture, a cine loop or a stack, on the frame's own pixels."""

from __future__ import annotations

import enum
from typing import Annotated, Self

from msgspec import Meta

from medserve.errors import InvalidRequestError
from medserve.spec import ModelSpec
from medserve.tasks.options import Options
from medserve.tasks.volumes import Millimetres, no_dicom_seg

__all__ = ["FrameFormat", "FrameOptions", "FrameOutput", "FramePart", "View"]


class View(enum.StrEnum):
    """How a frame lies in a NIfTI array."""

    STORED = "stored"  # columns along the first axis, rows along the second: what viewers assume
    SWAPPED = "swapped"  # rows along the first axis: numpy arrays (rows, columns, frames)
    AXIAL = "axial"  # the last three by the affine, as a radiologist looks at them
    CORONAL = "coronal"
    SAGITTAL = "sagittal"


class FrameOutput(enum.StrEnum):
    """The main thing that an answer holds."""

    MASK = "mask"
    OVERLAY = "overlay"
    JSON = "json"  # masks and measurements


class FrameFormat(enum.StrEnum):
    """The form in which it is written."""

    PNG = "png"
    NIFTI = "nifti"
    DICOM_SEG = "dicom-seg"
    JSON = "json"


class FramePart(enum.StrEnum):
    """One file that an answer may hold."""

    MASK = "mask"  # PNG of a single frame, .nii.gz of a stack
    PNG = "png"  # the mask of a single frame
    NIFTI = "nifti"  # the mask as .nii.gz, of a single frame, too
    DICOM_SEG = "dicom-seg"  # the mask as DICOM Segmentation
    OVERLAY = "overlay"  # PNG


# (output, format) -> the part, and whether it comes as a member of a JSON object.
_WANTED: dict[tuple[FrameOutput, FrameFormat | None], tuple[FramePart, bool]] = {
    (FrameOutput.MASK, None): (FramePart.MASK, False),
    (FrameOutput.MASK, FrameFormat.PNG): (FramePart.PNG, False),
    (FrameOutput.MASK, FrameFormat.NIFTI): (FramePart.NIFTI, False),
    (FrameOutput.MASK, FrameFormat.DICOM_SEG): (FramePart.DICOM_SEG, False),
    (FrameOutput.MASK, FrameFormat.JSON): (FramePart.MASK, True),
    (FrameOutput.OVERLAY, None): (FramePart.OVERLAY, False),
    (FrameOutput.OVERLAY, FrameFormat.PNG): (FramePart.OVERLAY, False),
    (FrameOutput.OVERLAY, FrameFormat.JSON): (FramePart.OVERLAY, True),
    (FrameOutput.JSON, None): (FramePart.MASK, True),
    (FrameOutput.JSON, FrameFormat.JSON): (FramePart.MASK, True),
    (FrameOutput.JSON, FrameFormat.DICOM_SEG): (FramePart.DICOM_SEG, True),
}


class FrameOptions(Options, frozen=True, kw_only=True):
    """What a caller may ask of a model that segments frames.

    Raises:
        InvalidRequestError: output, format and overlay do not go together.
    """

    output: Annotated[
        FrameOutput | None,
        Meta(description="What the answer holds; of several files in one call json alone."),
    ] = None
    format: Annotated[
        FrameFormat | None,
        Meta(description="How it is written; what fits file and output if left out."),
    ] = None
    view: Annotated[
        View | None, Meta(description="How the frames lie in a NIfTI array; stored if left out.")
    ] = None
    spacing_mm: Annotated[
        tuple[Millimetres, Millimetres] | None,
        Meta(
            description="Distance between rows and between columns of a file that states none, in "
            "millimetres."
        ),
    ] = None
    step_mm: Annotated[
        Millimetres | None,
        Meta(
            description="Distance from one frame of a stack to the next, of a file that states "
            "none, in millimetres."
        ),
    ] = None
    length_mm: Annotated[
        Millimetres | None,
        Meta(
            description="Third diameter for the ellipsoid's volume, measured elsewhere, in "
            "millimetres."
        ),
    ] = None
    flips: Annotated[
        bool | None,
        Meta(
            description="Average with the mirror image: a little better, twice the work; the "
            "model's own choice if left out."
        ),
    ] = None
    largest_component: Annotated[
        bool | None,
        Meta(
            description="Keep only the largest piece in each frame; the model's own choice if left "
            "out."
        ),
    ] = None
    fill_holes: Annotated[
        bool | None,
        Meta(description="Fill what a piece encloses; the model's own choice if left out."),
    ] = None
    overlay: Annotated[
        bool,
        Meta(
            description="A JSON answer also carries a picture of the mask on the frame, or on up "
            "to twelve frames of a stack."
        ),
    ] = False

    def __post_init__(self) -> None:
        if (wanted := self._wanted) is not None and wanted not in _WANTED:
            fitting = [each for of, each in _WANTED if of is wanted[0] and each is not None]
            raise InvalidRequestError(
                f"params: format: expected {' or '.join(fitting)} for the output {wanted[0]}, "
                "got another one"
            )
        if self.overlay and wanted is not None and not _WANTED[wanted][1]:
            raise InvalidRequestError(
                "params: expected overlay with the output json, got it with a bare file; ask for "
                "json, or for the output overlay"
            )

    @property
    def part(self) -> FramePart:
        """What the answer holds; a JSON answer always holds masks and measurements, too."""
        return FramePart.MASK if self._wanted is None else _WANTED[self._wanted][0]

    @property
    def with_overlay(self) -> bool:
        """Whether a JSON answer carries the picture."""
        return self.overlay or self.part is FramePart.OVERLAY

    def as_json(self, *, packed: bool) -> bool:
        """Tell whether the answer is a JSON object, in a call of one file or of several.

        Raises:
            InvalidRequestError: a bare file is asked of a packed call.
        """
        if self.overlay or self._wanted is None:
            return packed or self.overlay
        if not _WANTED[self._wanted][1] and packed:
            raise InvalidRequestError(
                "params: expected the output json for several files in one call, got another "
                "output; ask for json, or send one file a call"
            )
        return _WANTED[self._wanted][1]

    def filled(self, spec: ModelSpec) -> Self:
        """Refuse what the model cannot do."""
        assert spec.frame is not None  # every model of this task has the section
        if self.part is FramePart.DICOM_SEG and not spec.frame.snomed:
            raise no_dicom_seg()
        return self

    @property
    def _wanted(self) -> tuple[FrameOutput, FrameFormat | None] | None:
        """Output and format; None where both are left open."""
        if self.output is not None:
            return self.output, self.format
        if self.format is None:
            return None
        is_json = self.format is FrameFormat.JSON
        return FrameOutput.JSON if is_json else FrameOutput.MASK, self.format
