"""Frames: what to ask for, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from medserve.client import _answers
from medserve.errors import MedserveError
from medserve.results.frame_segmentation import FrameSegmentation
from medserve.tasks import frames
from medserve.tasks.frames import StackMeasure, View
from medserve.tasks.result import Provenance

__all__ = ["FrameAnswer", "FrameOptions", "FrameResult", "View", "frame_answer", "frame_result"]


@dataclass(frozen=True)
class FrameOptions:
    """What to ask of a model that segments frames; None leaves it to the model.

    Attributes:
        view: How frames lie in a NIfTI array.
        spacing_mm: Between rows, between columns; of a file that states none.
        step_mm: From one frame of a stack to the next; of a file that states none.
        length_mm: Third diameter for the ellipsoid's volume, measured elsewhere.
        flips: Average with the mirror image: a little better, twice the work.
        largest_component: Keep only the largest piece in each frame.
        fill_holes: Fill what it encloses.
        overlay: Also a picture of the mask on the frame, or of up to twelve frames of a stack.
        dicom_seg: Also the mask as DICOM Segmentation, for a DICOM file.
    """

    view: View | None = None
    spacing_mm: tuple[float, float] | None = None
    step_mm: float | None = None
    length_mm: float | None = None
    flips: bool | None = None
    largest_component: bool | None = None
    fill_holes: bool | None = None
    overlay: bool = False
    dicom_seg: bool = False

    def to_params(self) -> dict[str, Any]:
        """The input `params` of a call that is answered in JSON."""
        params: dict[str, Any] = {"output": "json"}
        if self.dicom_seg:
            params["format"] = "dicom-seg"
        if self.overlay:
            params["overlay"] = True
        if self.view is not None:
            params["view"] = self.view.value
        if self.spacing_mm is not None:
            params["spacing_mm"] = list(self.spacing_mm)
        for name in ("step_mm", "length_mm", "flips", "largest_component", "fill_holes"):
            if (value := getattr(self, name)) is not None:
                params[name] = value
        return params


@dataclass(frozen=True, eq=False)
class FrameAnswer:
    """The masks of one file, each on the pixels of its frame, and the files that came with them.

    Attributes:
        segmentation: Masks, measurements and the status of every frame.
        provenance: Which archive answered.
        mask_nifti: The masks as .nii.gz, with the header of the file that was sent if it had one.
        mask_png: The mask of a file with a single frame, white on black.
        overlay_png: The picture, where it was asked for.
        dicom_seg: The masks as DICOM Segmentation, where it was asked for.
    """

    segmentation: FrameSegmentation
    provenance: Provenance
    mask_nifti: bytes = field(repr=False)
    mask_png: bytes | None = field(default=None, repr=False)
    overlay_png: bytes | None = field(default=None, repr=False)
    dicom_seg: bytes | None = field(default=None, repr=False)

    @property
    def stack(self) -> StackMeasure:
        """The structure in all frames together: area, diameters, volumes."""
        return self.segmentation.stack


@dataclass(frozen=True, eq=False)
class FrameResult:
    """What became of one of several files.

    Attributes:
        outcome: The answer, or the error that stands in its place.
    """

    outcome: FrameAnswer | MedserveError

    @property
    def result(self) -> FrameAnswer | None:
        """The answer, or None where the file failed."""
        return self.outcome if isinstance(self.outcome, FrameAnswer) else None

    @property
    def error(self) -> MedserveError | None:
        """Why the file failed, or None where it did not."""
        return self.outcome if isinstance(self.outcome, MedserveError) else None

    def unwrap(self) -> FrameAnswer:
        """The answer; raises the error where the file failed."""
        if isinstance(self.outcome, MedserveError):
            raise self.outcome
        return self.outcome


def frame_answer(prediction: bytes) -> FrameAnswer:
    """The answer to one file; raises where it is an error in JSON or something else."""
    result = frames.FrameResult.decode(prediction)
    return FrameAnswer(
        segmentation=FrameSegmentation.from_result(result),
        provenance=result.provenance,
        mask_nifti=result.mask_nifti,
        mask_png=result.mask_png,
        overlay_png=result.overlay_png,
        dicom_seg=result.dicom_seg,
    )


def frame_result(outcome: bytes | MedserveError) -> FrameResult:
    """The result of one of several files; raises what concerns all of them."""
    if isinstance(outcome, MedserveError):
        return FrameResult(_answers.of_one(outcome))
    try:
        return FrameResult(frame_answer(outcome))
    except MedserveError as error:
        return FrameResult(_answers.of_one(error))
