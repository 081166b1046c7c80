"""The part of a model's description that only models of whole volumes have."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from medserve.errors import ConfigError
from medserve.spec.section import Section
from medserve.spec.seen import SeenSpec

__all__ = [
    "CodedTerm",
    "NormalisationKind",
    "NormalisationSpec",
    "RoiKind",
    "RoiSpec",
    "SegmentCoding",
    "VolumeSpec",
]

_ORIENTATIONS = {
    "".join(codes)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for codes in itertools.product(*axes)
}


class NormalisationKind(enum.StrEnum):
    """What the scale of intensities is taken from."""

    PERCENTILE = "percentile"  # of the volume itself: MR and ultrasound, which have no unit
    WINDOW = "window"  # fixed values: CT, whose unit is the Hounsfield
    Z_SCORE = "z_score"  # mean and standard deviation of the volume itself


class NormalisationSpec(Section, frozen=True):
    """How intensities become what the network was trained on."""

    kind: Annotated[NormalisationKind, Meta(description="What the scale is taken from.")] = (
        NormalisationKind.PERCENTILE
    )
    low: Annotated[
        float,
        Meta(description="Percentile (0 to 100) or value that becomes 0; unused by the z-score."),
    ] = 0.5
    high: Annotated[float, Meta(description="Percentile or value that becomes 1.")] = 99.5
    foreground_only: Annotated[
        bool,
        Meta(
            description="Take percentiles, mean and deviation from the voxels above the volume's "
            "minimum: an image that was cut out of its surroundings is mostly padding."
        ),
    ] = False

    def __post_init__(self) -> None:
        if self.kind is not NormalisationKind.Z_SCORE and not self.low < self.high:
            raise ConfigError(f"normalisation: expected low < high, got {self.low}, {self.high}")
        if self.kind is NormalisationKind.PERCENTILE and (self.low < 0 or self.high > 100):
            raise ConfigError(
                f"normalisation: expected percentiles from 0 to 100, got {self.low}, {self.high}"
            )


class RoiKind(enum.StrEnum):
    """How the part of a volume that the network sees is found."""

    NONE = "none"  # the whole volume
    OTSU = "otsu"  # the box around what is brighter than Otsu's threshold
    THRESHOLD = "threshold"  # the box around what is brighter than a fixed value, as in CT


class RoiSpec(Section, frozen=True):
    """The region of interest; outside of it everything is background."""

    kind: RoiKind = RoiKind.NONE
    threshold: Annotated[
        float, Meta(description="In the volume's own unit; only for the kind of that name.")
    ] = 0.0
    margin_mm: Annotated[float, Meta(description="Kept around the box.")] = 8.0
    largest_only: Annotated[bool, Meta(description="Look at the largest bright piece alone.")] = (
        False
    )


class CodedTerm(Section, frozen=True):
    """A concept of a coding scheme (DICOM PS3.3 section 8.8): SNOMED CT is "SCT"."""

    value: str
    meaning: str
    scheme: str = "SCT"


class SegmentCoding(Section, frozen=True):
    """What a label stands for, as DICOM Segmentation states it."""

    kind: Annotated[
        CodedTerm,
        Meta(
            description='The structure itself, such as 5366008 "Hippocampus" of DICOM PS3.16 CID '
            "7153."
        ),
    ]
    modifier: Annotated[
        CodedTerm | None,
        Meta(description='Which part of it, such as 255549009 "Anterior" of CID 2.'),
    ] = None
    category: Annotated[CodedTerm, Meta(description="Of CID 7150.")] = CodedTerm(
        "91723000", "Anatomical Structure"
    )


class VolumeSpec(Section, frozen=True):
    """The way of a volume to the network and back; `input.size` is the sliding window."""

    spacing_mm: Annotated[
        tuple[float, ...],
        Meta(description="Voxels that the network sees, along the axes of `orientation`."),
    ]
    orientation: Annotated[
        str, Meta(description="Axis codes in which the network sees every volume.")
    ] = "RAS"
    normalisation: Annotated[
        NormalisationSpec,
        Meta(description="How intensities become what the network was trained on."),
    ] = NormalisationSpec()
    roi: Annotated[RoiSpec, Meta(description="Which part of the volume the network sees.")] = (
        RoiSpec()
    )
    overlap: Annotated[
        float, Meta(description="Share of a window that its neighbour covers too.")
    ] = 0.5
    window_batch: Annotated[int, Meta(description="Windows in one call of the network.")] = 4
    flips: Annotated[
        bool,
        Meta(
            description="Whether scores are averaged over mirrored windows unless a caller says "
            "otherwise."
        ),
    ] = False
    flip_axes: Annotated[
        tuple[int, ...],
        Meta(
            description="Axes of the network's grid that are mirrored then, in every combination."
        ),
    ] = (0,)  # in RAS left and right, in which bodies are alike
    largest_component: Annotated[
        bool, Meta(description="Whether only the largest piece of each label stays, by default.")
    ] = False
    fill_holes: Annotated[
        bool, Meta(description="Whether holes inside a label are filled, by default.")
    ] = False
    modalities: Annotated[
        tuple[str, ...],
        Meta(description="Values of DICOM's Modality that are accepted; all where it is empty."),
    ] = ()
    max_memory_bytes: Annotated[
        int, Meta(description="What one volume may take at its peak; larger ones are refused.")
    ] = 1536 * 2**20
    network_bytes: Annotated[
        int,
        Meta(description="What the network itself takes for one batch of windows, as measured."),
    ] = 256 * 2**20
    snomed: Annotated[
        Mapping[str, SegmentCoding],
        Meta(description="For each label but the background its meaning; needed for DICOM-SEG."),
    ] = msgspec.field(default_factory=dict)
    seen: Annotated[
        SeenSpec | None,
        Meta(description="What training saw; an answer for something else asks for a review."),
    ] = None

    def __post_init__(self) -> None:
        if len(self.spacing_mm) != 3 or not min(self.spacing_mm) > 0:
            raise ConfigError(f"volume: expected 3 spacings above 0, got {self.spacing_mm}")
        if self.orientation not in _ORIENTATIONS:
            raise ConfigError(f"volume: expected axis codes such as RAS, got {self.orientation!r}")
        if not set(self.flip_axes) <= {0, 1, 2}:
            raise ConfigError(f"volume: expected flip_axes among 0, 1, 2, got {self.flip_axes}")
