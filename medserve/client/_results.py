"""What the client returns; plain values, no protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medserve.errors import MedserveError
from medserve.results.segmentation import Segmentation
from medserve.tasks.classification import Classification
from medserve.tasks.result import Provenance

__all__ = [
    "ItemResult",
    "ModelStatus",
    "SegmentationOptions",
    "SegmentationResult",
    "VolumeResult",
]


@dataclass(frozen=True)
class ItemResult:
    """What became of one image: a classification, or the error that stands in its place.

    Attributes:
        outcome: Exactly one of the two.
        provenance: Which archive answered; without version and digest where none did.
    """

    outcome: Classification | MedserveError
    provenance: Provenance

    @property
    def classification(self) -> Classification | None:
        """The answer, or None where the image failed."""
        return self.outcome if isinstance(self.outcome, Classification) else None

    @property
    def error(self) -> MedserveError | None:
        """Why the image failed, or None where it did not."""
        return self.outcome if isinstance(self.outcome, MedserveError) else None

    def unwrap(self) -> Classification:
        """The answer; raises the error where the image failed."""
        if isinstance(self.outcome, MedserveError):
            raise self.outcome
        return self.outcome


@dataclass(frozen=True)
class ModelStatus:
    """One version of one model on a server."""

    name: str
    version: str
    default: bool  # whether a request without a version comes here
    workers: int
    workers_ready: int
    batch_size: int
    pending: int  # requests that wait in its queue

    @property
    def ready(self) -> bool:
        """Whether a worker has proven itself and takes requests."""
        return self.workers_ready > 0


@dataclass(frozen=True)
class SegmentationOptions:
    """What to ask of a model that segments volumes; None leaves it to the model.

    Attributes:
        channel: Which volume of a four-dimensional NIfTI file.
        spacing_mm: Of an NPY array, which states none.
        flips: Average over mirror images: a little better, several times the work.
        largest_component: Keep only the largest piece of each label.
        fill_holes: Fill what a label encloses.
        overlay: Also a picture of the mask on the volume.
        uncertainty: Also a map of where the model hesitates.
        dicom_seg: Also the mask as DICOM Segmentation, for a DICOM series.
    """

    channel: int | None = None
    spacing_mm: tuple[float, float, float] | None = None
    flips: bool | None = None
    largest_component: bool | None = None
    fill_holes: bool | None = None
    overlay: bool = False
    uncertainty: bool = False
    dicom_seg: bool = False

    def to_params(self) -> dict[str, Any]:
        """The input `params` of a call that is answered in JSON."""
        params: dict[str, Any] = {"output": "json"}
        if self.dicom_seg:
            params["format"] = "dicom-seg"
        for name in ("overlay", "uncertainty"):
            if getattr(self, name):
                params[name] = True
        for name in ("channel", "flips", "largest_component", "fill_holes"):
            if (value := getattr(self, name)) is not None:
                params[name] = value
        if self.spacing_mm is not None:
            params["spacing_mm"] = list(self.spacing_mm)
        return params


@dataclass(frozen=True, eq=False)
class SegmentationResult:
    """A mask on the grid of the volume that was sent, and the files that came with it.

    Attributes:
        segmentation: Mask, grid, labels and measurements.
        provenance: Which archive answered.
        mask_nifti: The mask as .nii.gz, its header that of the file that was sent.
        overlay_png: The picture, where it was asked for.
        entropy_nifti: The map of uncertainty as .nii.gz, where it was asked for.
        dicom_seg: The mask as DICOM Segmentation, where it was asked for.
    """

    segmentation: Segmentation
    provenance: Provenance
    mask_nifti: bytes = field(repr=False)
    overlay_png: bytes | None = field(default=None, repr=False)
    entropy_nifti: bytes | None = field(default=None, repr=False)
    dicom_seg: bytes | None = field(default=None, repr=False)

    @property
    def volumes_ml(self) -> Mapping[str, float]:
        """Volume of every label but the background."""
        return self.segmentation.volumes_ml


@dataclass(frozen=True, eq=False)
class VolumeResult:
    """What became of one of several volumes.

    Attributes:
        outcome: The answer, or the error that stands in its place.
    """

    outcome: SegmentationResult | MedserveError

    @property
    def result(self) -> SegmentationResult | None:
        """The answer, or None where the volume failed."""
        return self.outcome if isinstance(self.outcome, SegmentationResult) else None

    @property
    def error(self) -> MedserveError | None:
        """Why the volume failed, or None where it did not."""
        return self.outcome if isinstance(self.outcome, MedserveError) else None

    def unwrap(self) -> SegmentationResult:
        """The answer; raises the error where the volume failed."""
        if isinstance(self.outcome, MedserveError):
            raise self.outcome
        return self.outcome
