"""Frames: a mask for each frame of a picture, a cine loop or a stack, on the frame's own pixels."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Self

import msgspec
from msgspec import Meta

from medserve.errors import InvalidRequestError
from medserve.spec import ModelSpec
from medserve.tasks.options import Options
from medserve.tasks.result import Doubt, Result, Value
from medserve.tasks.volumes import LabelMeasure, Millimetres, Row, no_dicom_seg

__all__ = [
    "FailedFrame",
    "FrameFormat",
    "FrameMeasure",
    "FrameOptions",
    "FrameOutput",
    "FramePart",
    "FrameResult",
    "MeasuredFrame",
    "StackGrid",
    "StackMeasure",
    "Structure",
    "View",
]


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
    """What a caller may ask of a model that segments frames."""

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

    def check(self) -> None:
        """Refuse output, format and extras that do not go together."""
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

    def in_json(self) -> Self:
        """Return the options of a JSON answer, which always holds masks and measurements."""
        if self.output == FrameOutput.OVERLAY:
            return msgspec.structs.replace(self, format=FrameFormat.JSON)
        kept = self.format if self.format == FrameFormat.DICOM_SEG else None
        return msgspec.structs.replace(self, output=FrameOutput.JSON, format=kept)

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


class FrameMeasure(Value, frozen=True):
    """The structure in one frame, measured; of several structures their union, or one of them.

    Attributes:
        pixels: How many belong to it.
        area_cm2: None where the spacing is unknown.
        width_mm: Extent along the rows, from edge to edge; None where unknown or absent.
        height_mm: Extent along the columns.
        centroid: Mean row and column; None where it is absent.
        box_start: First row and column, with `box_stop`, which lies behind the last.
        box_stop: None with `box_start` where it is absent.
        touches_border: Whether it reaches the edge of what the model saw: a part may be missing.
        predicted_dice: Overlap with a reference to expect, from 0 to 1, for a frame like the
            training data; None where the structure is absent or the model does not tell.
    """

    spoken: ClassVar[str] = "the measurements of a frame"

    pixels: int
    area_cm2: float | None
    width_mm: float | None
    height_mm: float | None
    centroid: tuple[float, float] | None
    box_start: tuple[int, int] | None
    box_stop: tuple[int, int] | None
    touches_border: bool
    predicted_dice: float | None = None


class StackMeasure(Value, frozen=True):
    """The structure in all frames together, measured.

    Attributes:
        frames_found: In how many frames it is.
        largest_frame: The one with its largest area; None where it is in none.
        area_cm2: That area.
        width_mm: Diameters in that frame: along the rows, and with `height_mm` along the columns.
        height_mm: See there.
        length_mm: From the first to the last frame that shows it, or what the caller stated.
        volume_ml: Areas times step; None where a length is unknown or a frame in between failed.
        ellipsoid_ml: By the three diameters.
    """

    spoken: ClassVar[str] = "the measurements of a stack"

    frames_found: int
    largest_frame: int | None
    area_cm2: float | None
    width_mm: float | None
    height_mm: float | None
    length_mm: float | None
    volume_ml: float | None
    ellipsoid_ml: float | None


class Structure(Value, frozen=True):
    """One of several structures, measured.

    Attributes:
        label: Its name.
        label_id: Its id in the masks.
        stack: It in all frames together.
        frames: It in each frame, in order; None for a frame without a mask.
    """

    spoken: ClassVar[str] = "the measurements of a structure"

    label: str
    label_id: int
    stack: StackMeasure
    frames: tuple[FrameMeasure | None, ...]


class StackGrid(Value, frozen=True):
    """Size, number and distances of the frames; a distance that nobody stated is None."""

    spoken: ClassVar[str] = "the grid of a stack"

    rows: int
    columns: int
    frames: int
    spacing_mm: tuple[float, float] | None = None
    step_mm: float | None = None


class MeasuredFrame(FrameMeasure, frozen=True, kw_only=True, tag_field="status", tag="ok"):
    """A frame with its mask.

    Attributes:
        index: Its place in the stack.
        unlike_ultrasound: Whether it does not look like B-mode ultrasound, so that its mask means
            little.
    """

    spoken: ClassVar[str] = "a frame"

    index: int
    unlike_ultrasound: bool = False

    @property
    def measure(self) -> FrameMeasure:
        """The measurements alone."""
        return FrameMeasure(*(getattr(self, name) for name in FrameMeasure.__struct_fields__))


class FailedFrame(Value, frozen=True, kw_only=True, tag_field="status", tag="error"):
    """A frame without a mask; `error` has its code and its message."""

    spoken: ClassVar[str] = "a frame"

    index: int
    error: dict[str, str]


class FrameResult(Result, frozen=True, kw_only=True):
    """The masks of frames, each on the pixels of its own frame.

    `labels`, `shape`, `affine`, `spacing_mm`, `measures` and `mask_nifti` mean what they mean for
    volumes; lengths count only where `grid` states them.

    Attributes:
        view: How the frames lie in the array of `mask_nifti`.
        grid: Size, number and distances of the frames.
        stack: The structure in all frames together; of several structures their union.
        frames: Every frame, in order, measured as `stack` is.
        structures: Each structure by itself, of a model that finds several; empty for one.
        review: Whether a person should look, for any of the reasons in `doubts`.
        unlike_training: Whether most frames do not look like ultrasound, so that their masks mean
            little.
        doubts: What is out of the ordinary in the file as a whole.
        mask_png: The mask of a file with a single frame, white on black; of several structures
            the label ids.
        overlay_png: The mask drawn on the frame, or on up to twelve frames of a stack, where it
            was asked for.
        dicom_seg: The masks as DICOM Segmentation, where it was asked for.
    """

    spoken: ClassVar[str] = "the masks of frames"

    labels: tuple[str, ...]
    shape: tuple[int, int, int]
    affine: tuple[Row, Row, Row, Row]
    spacing_mm: tuple[float, float, float]
    measures: tuple[LabelMeasure, ...]
    view: View
    grid: StackGrid
    stack: StackMeasure
    frames: tuple[MeasuredFrame | FailedFrame, ...]
    mask_nifti: bytes
    structures: tuple[Structure, ...] = ()
    review: bool = False
    unlike_training: bool = False
    doubts: tuple[Doubt, ...] = ()
    mask_png: bytes | None = None
    overlay_png: bytes | None = None
    dicom_seg: bytes | None = None

    @property
    def stacks(self) -> dict[str, StackMeasure]:
        """What was measured of each structure over all frames, by its label."""
        if self.structures:
            return {each.label: each.stack for each in self.structures}
        return {self.labels[1]: self.stack}

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Volume of each structure whose lengths are known, by its label."""
        found = ((label, stack.volume_ml) for label, stack in self.stacks.items())
        return {label: volume_ml for label, volume_ml in found if volume_ml is not None}

    def table(self) -> Iterator[Sequence[str]]:
        """Yield a line for each frame, of several structures for each of them, and the doubts."""
        if self.structures:
            yield from self._structures()
            return
        yield "frame", "cm²", "pixels", "predicted Dice", "note"
        for each in self.frames:
            if isinstance(each, FailedFrame):
                yield str(each.index), "", "", "", each.error.get("message", "failed")
                continue
            area = "" if each.area_cm2 is None else f"{each.area_cm2:.2f}"
            note = "unlike ultrasound" if each.unlike_ultrasound else ""
            note = note or ("reaches the edge" if each.touches_border else "")
            dice = "" if each.predicted_dice is None else f"{each.predicted_dice:.2f}"
            yield str(each.index), area, str(each.pixels), dice, note
        for doubt in self.doubts:
            yield "review", "", "", "", f"{doubt.reason}: {doubt.message}"

    def _structures(self) -> Iterator[Sequence[str]]:
        """Yield a line for each structure in each frame, and one for each doubt."""
        yield "frame", "structure", "cm²", "pixels", "note"
        for place, frame in enumerate(self.frames):
            if isinstance(frame, FailedFrame):
                yield str(frame.index), "", "", "", frame.error.get("message", "failed")
                continue
            for each in self.structures:
                found = each.frames[place]
                assert found is not None  # the frame has not failed
                area = "" if found.area_cm2 is None else f"{found.area_cm2:.2f}"
                note = "reaches the edge" if found.touches_border else ""
                yield str(frame.index), each.label, area, str(found.pixels), note
        for doubt in self.doubts:
            yield "review", "", "", "", f"{doubt.reason}: {doubt.message}"

    def pictures(self) -> Iterator[bytes]:
        """Yield the mask drawn on the frame where it was asked for, else the mask of one."""
        found = self.overlay_png or self.mask_png
        return iter(() if found is None else (found,))
