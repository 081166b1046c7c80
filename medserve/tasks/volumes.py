"""Volumes: a mask for each volume, on the volume's own grid."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Self

import msgspec
from msgspec import Meta

from medserve.errors import InvalidImageError, InvalidRequestError
from medserve.spec import ModelSpec
from medserve.tasks.options import Options
from medserve.tasks.result import Doubt, Result, Value

__all__ = [
    "SEGMENTATIONS",
    "LabelMeasure",
    "VolumeFormat",
    "VolumeOptions",
    "VolumeOutput",
    "VolumePart",
    "VolumeResult",
    "case_and_number",
    "channel_keys",
]

# nnU-Net's rule: the number of the channel stands behind the name of the case. A folder or archive
# with a DICOM series may have such a name; slices of a series often have it and are no channels.
_OF_A_CHANNEL = re.compile(
    r"(.+)_([0-9]{4})(?:\.(?:nii|nii\.gz|nrrd|mha|mgh|mgz|npy|zip|tar|tar\.gz|tgz))?", re.I
)

Millimetres = Annotated[float, Meta(gt=0)]


class VolumeOutput(enum.StrEnum):
    """The main thing that an answer holds."""

    MASK = "mask"
    PROBABILITIES = "probabilities"
    UNCERTAINTY = "uncertainty"
    OVERLAY = "overlay"
    JSON = "json"  # mask and measurements


class VolumeFormat(enum.StrEnum):
    """The form in which it is written."""

    NIFTI = "nifti"
    DICOM_SEG = "dicom-seg"  # one bit for each label
    DICOM_LABELMAP = "dicom-labelmap"  # one number for each voxel: smaller, known to few programs
    PNG = "png"
    JSON = "json"


class VolumePart(enum.StrEnum):
    """One file that an answer may hold."""

    MASK = "mask"  # .nii.gz
    PROBABILITIES = "probabilities"  # .nii.gz, four-dimensional
    UNCERTAINTY = "uncertainty"  # .nii.gz
    OVERLAY = "overlay"  # PNG
    DICOM_SEG = "dicom-seg"  # DICOM Segmentation
    DICOM_LABELMAP = "dicom-labelmap"  # DICOM Label Map Segmentation


SEGMENTATIONS = frozenset({VolumePart.DICOM_SEG, VolumePart.DICOM_LABELMAP})

_Wanted = tuple[VolumeOutput, VolumeFormat]
_BARE: dict[_Wanted, VolumePart] = {
    (VolumeOutput.MASK, VolumeFormat.NIFTI): VolumePart.MASK,
    (VolumeOutput.MASK, VolumeFormat.DICOM_SEG): VolumePart.DICOM_SEG,
    (VolumeOutput.MASK, VolumeFormat.DICOM_LABELMAP): VolumePart.DICOM_LABELMAP,
    (VolumeOutput.PROBABILITIES, VolumeFormat.NIFTI): VolumePart.PROBABILITIES,
    (VolumeOutput.UNCERTAINTY, VolumeFormat.NIFTI): VolumePart.UNCERTAINTY,
    (VolumeOutput.OVERLAY, VolumeFormat.PNG): VolumePart.OVERLAY,
}
_IN_JSON: dict[_Wanted, VolumePart] = {
    (VolumeOutput.JSON, VolumeFormat.JSON): VolumePart.MASK,
    (VolumeOutput.JSON, VolumeFormat.DICOM_SEG): VolumePart.DICOM_SEG,
    (VolumeOutput.JSON, VolumeFormat.DICOM_LABELMAP): VolumePart.DICOM_LABELMAP,
    (VolumeOutput.MASK, VolumeFormat.JSON): VolumePart.MASK,
    (VolumeOutput.PROBABILITIES, VolumeFormat.JSON): VolumePart.PROBABILITIES,
    (VolumeOutput.UNCERTAINTY, VolumeFormat.JSON): VolumePart.UNCERTAINTY,
    (VolumeOutput.OVERLAY, VolumeFormat.JSON): VolumePart.OVERLAY,
}
_FORMAT_OF = {
    VolumeOutput.MASK: VolumeFormat.NIFTI,
    VolumeOutput.PROBABILITIES: VolumeFormat.NIFTI,
    VolumeOutput.UNCERTAINTY: VolumeFormat.NIFTI,
    VolumeOutput.OVERLAY: VolumeFormat.PNG,
    VolumeOutput.JSON: VolumeFormat.JSON,
}
_OUTPUT_OF = {
    VolumeFormat.NIFTI: VolumeOutput.MASK,
    VolumeFormat.DICOM_SEG: VolumeOutput.MASK,
    VolumeFormat.DICOM_LABELMAP: VolumeOutput.MASK,
    VolumeFormat.PNG: VolumeOutput.OVERLAY,
    VolumeFormat.JSON: VolumeOutput.JSON,
}


class VolumeOptions(Options, frozen=True, kw_only=True):
    """What a caller may ask of a model that segments volumes."""

    output: Annotated[
        VolumeOutput | None,
        Meta(description="What the answer holds; a mask unless the format says otherwise."),
    ] = None
    format: Annotated[
        VolumeFormat | None,
        Meta(description="How it is written; what fits the output if left out."),
    ] = None
    channel: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="Which volume of a four-dimensional file, from 0."),
    ] = None
    spacing_mm: Annotated[
        tuple[Millimetres, Millimetres, Millimetres] | None,
        Meta(description="Size of a voxel of an NPY array, which states none, in millimetres."),
    ] = None
    select: Annotated[
        str | None,
        Meta(
            description="Which of several series and acquisitions of a DICOM folder, such as "
            "series=5,echo_time=30; the error that refuses the folder lists them."
        ),
    ] = None
    flips: Annotated[
        bool | None,
        Meta(
            description="Average over mirror images: a little better, several times the work; the "
            "model's own choice if left out."
        ),
    ] = None
    largest_component: Annotated[
        bool | None,
        Meta(
            description="Keep only the largest piece of each label; the model's own choice if left "
            "out."
        ),
    ] = None
    fill_holes: Annotated[
        bool | None,
        Meta(description="Fill what a label encloses; the model's own choice if left out."),
    ] = None
    overlay: Annotated[
        bool, Meta(description="A JSON answer also carries a picture of the mask on the volume.")
    ] = False
    uncertainty: Annotated[
        bool,
        Meta(
            description="A JSON answer also carries a map of where the model hesitates (entropy)."
        ),
    ] = False

    def check(self) -> None:
        """Refuse output, format and extras that do not go together."""
        if self._wanted not in _BARE | _IN_JSON:
            output = self._wanted[0]
            fitting = [each for of, each in (*_BARE, *_IN_JSON) if of is output]
            raise InvalidRequestError(
                f"params: format: expected {' or '.join(fitting)} for the output {output}, "
                "got another one"
            )
        if not self.as_json and len(self.parts) > 1:
            raise InvalidRequestError(
                "params: expected overlay and uncertainty with the output json, got one with a "
                "bare file; ask for json, or for that output alone"
            )

    @property
    def parts(self) -> frozenset[VolumePart]:
        """The files of the answer; exactly one where it is no JSON."""
        parts = {(_BARE | _IN_JSON)[self._wanted]}
        if self.overlay:
            parts.add(VolumePart.OVERLAY)
        if self.uncertainty:
            parts.add(VolumePart.UNCERTAINTY)
        return frozenset(parts)

    @property
    def as_json(self) -> bool:
        """Whether the answer is a JSON object; that always holds mask and measurements."""
        return self._wanted in _IN_JSON

    def in_json(self) -> Self:
        """Return the options of a JSON answer, which always holds mask and measurements."""
        if self.output not in (None, VolumeOutput.MASK, VolumeOutput.JSON):
            return msgspec.structs.replace(self, format=VolumeFormat.JSON)
        kept = self.format if self.parts & SEGMENTATIONS else None
        return msgspec.structs.replace(self, output=VolumeOutput.JSON, format=kept)

    def filled(self, spec: ModelSpec) -> Self:
        """Refuse what the model cannot do."""
        assert spec.volume is not None  # every model of this task has the section
        if self.parts & SEGMENTATIONS and not spec.volume.snomed:
            raise no_dicom_seg()
        return self

    @property
    def _wanted(self) -> _Wanted:
        """Output and format, each taken from the other where it is left out."""
        output, form = self.output, self.format
        if output is None:
            output = VolumeOutput.MASK if form is None else _OUTPUT_OF[form]
        return output, _FORMAT_OF[output] if form is None else form


def no_dicom_seg() -> InvalidRequestError:
    """Return the refusal of a DICOM-SEG for which the model's configuration lacks codes."""
    return InvalidRequestError(
        "params: format: expected one that this model has, got dicom-seg, for which its "
        "configuration lacks codes; ask for nifti"
    )


class LabelMeasure(Value, frozen=True):
    """One label of a mask, measured.

    Attributes:
        label: Its name.
        label_id: Its number in the mask.
        voxels: How many carry it.
        volume_ml: Voxels times the volume of one.
        centroid_mm: Mean position in the world (RAS+), None where the label is absent.
        box_start: First voxel of the bounding box, with `box_stop`, which lies behind the last.
        box_stop: None with `box_start` where the label is absent.
        touches_border: Whether it reaches the edge of the grid, so that a part may be missing.
        predicted_dice: Overlap with a reference to expect, from 0 to 1, for an input like the
            training data; None where the label is absent or the model does not tell.
        volume_interval_ml: Lower and upper end of what a reference's volume is in 90 % of cases;
            None likewise.
    """

    spoken: ClassVar[str] = "the measurements of a label"

    label: str
    label_id: int
    voxels: int
    volume_ml: float
    centroid_mm: tuple[float, float, float] | None
    box_start: tuple[int, int, int] | None
    box_stop: tuple[int, int, int] | None
    touches_border: bool
    predicted_dice: float | None = None
    volume_interval_ml: tuple[float, float] | None = None


Row = tuple[float, float, float, float]


class VolumeResult(Result, frozen=True, kw_only=True):
    """A segmentation with its mask on the grid of the volume that was sent.

    Attributes:
        labels: Names by number in the mask, the background's first.
        shape: Voxels along each axis (I, J, K): those of the input.
        affine: 4 x 4, voxel index to world, RAS+ in millimetres.
        spacing_mm: Size of a voxel along each axis.
        measures: Every label but the background.
        mask_nifti: The mask as .nii.gz, with the header of the file that was sent if it had one.
        volumes_ml: Volume of every label but the background.
        review: Whether a person should look, for any of the reasons in `doubts`.
        unlike_training: Whether the volume itself is unlike the training data, so that its mask
            means little.
        doubts: What lies outside of the training data. Empty also where the model's description
            says nothing about them.
        probabilities_nifti: Probabilities of each label as .nii.gz, where they were asked for.
        entropy_nifti: Where the model hesitates as .nii.gz, where it was asked for.
        overlay_png: The mask drawn on the volume, where it was asked for.
        dicom_seg: The mask as DICOM Segmentation, where it was asked for.
    """

    spoken: ClassVar[str] = "a segmentation with its mask"

    labels: tuple[str, ...]
    shape: tuple[int, int, int]
    affine: tuple[Row, Row, Row, Row]
    spacing_mm: tuple[float, float, float]
    measures: tuple[LabelMeasure, ...]
    mask_nifti: bytes
    volumes_ml: dict[str, float] = msgspec.field(default_factory=dict)
    review: bool = False
    unlike_training: bool = False
    doubts: tuple[Doubt, ...] = ()
    probabilities_nifti: bytes | None = None
    entropy_nifti: bytes | None = None
    overlay_png: bytes | None = None
    dicom_seg: bytes | None = None

    def table(self) -> Iterator[Sequence[str]]:
        """Yield a line for each label, and one for each doubt."""
        yield "label", "ml", "in 90 %", "voxels", "predicted Dice", "note"
        for each in self.measures:
            note = "reaches the edge" if each.touches_border else ""
            dice = "" if each.predicted_dice is None else f"{each.predicted_dice:.2f}"
            ends = each.volume_interval_ml
            interval = "" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"
            yield each.label, f"{each.volume_ml:.3f}", interval, str(each.voxels), dice, note
        for doubt in self.doubts:
            yield "review", "", "", "", "", f"{doubt.reason}: {doubt.message}"

    def pictures(self) -> Iterator[bytes]:
        """Yield the mask drawn on the volume, where it was asked for."""
        return iter(() if self.overlay_png is None else (self.overlay_png,))


def case_and_number(name: str) -> tuple[str, int] | None:
    """Return case and channel of a file such as `brain_0001.nii.gz`; None of another name."""
    found = _OF_A_CHANNEL.fullmatch(name)
    return (found[1], int(found[2])) if found else None


def channel_keys(names: Sequence[str]) -> list[str]:
    """Return the keys of a call under which the files of one case travel, in the order given.

    Args:
        names: Of the files: a single one of any name, or several that `case_and_number` reads.

    Raises:
        InvalidImageError: Several files that are not the channels 0, 1, … of one case.
    """
    if len(names) == 1:
        return ["data"]
    read = [case_and_number(name) for name in names]
    found = [each for each in read if each is not None]
    numbers = [number for _, number in found]
    if len(found) < len(names) or len({case for case, _ in found}) > 1:
        raise InvalidImageError(
            "expected the images of one case, each with its number behind the case's name as in "
            "case_0000.nii.gz, got other names; rename them or name the channel of each"
        )
    if sorted(numbers) != list(range(len(numbers))):
        missing = next(number for number in range(len(numbers)) if number not in numbers)
        raise InvalidImageError(
            f"expected the images _0000 to _{len(numbers) - 1:04d} of one case, each once, got no "
            f"_{missing:04d}"
        )
    return [f"data.{number}" for number in numbers]
