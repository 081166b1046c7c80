"""The part of a model's description that only models of whole volumes have."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

from medserve.errors import ConfigError

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


@dataclass(frozen=True)
class NormalisationSpec:
    """How intensities become what the network was trained on.

    Attributes:
        kind: What the scale is taken from.
        low: Percentile (0 to 100) or value that becomes 0; unused by the z-score.
        high: Percentile or value that becomes 1.
        foreground_only: Take percentiles, mean and deviation from the voxels above the volume's
            minimum: an image that was cut out of its surroundings is mostly padding.
    """

    kind: NormalisationKind = NormalisationKind.PERCENTILE
    low: float = 0.5
    high: float = 99.5
    foreground_only: bool = False

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


@dataclass(frozen=True)
class RoiSpec:
    """The region of interest; outside of it everything is background."""

    kind: RoiKind = RoiKind.NONE
    threshold: float = 0.0  # in the volume's own unit; only for the kind of that name
    margin_mm: float = 8.0  # kept around the box
    largest_only: bool = False  # look at the largest bright piece alone


@dataclass(frozen=True)
class CodedTerm:
    """A concept of a coding scheme (DICOM PS3.3 section 8.8): SNOMED CT is "SCT"."""

    value: str
    meaning: str
    scheme: str = "SCT"


@dataclass(frozen=True)
class SegmentCoding:
    """What a label stands for, as DICOM Segmentation states it.

    Attributes:
        kind: The structure itself, such as 5366008 "Hippocampus" of DICOM PS3.16 CID 7153.
        modifier: Which part of it, such as 255549009 "Anterior" of CID 2.
        category: Of CID 7150.
    """

    kind: CodedTerm
    modifier: CodedTerm | None = None
    category: CodedTerm = CodedTerm("91723000", "Anatomical Structure")


@dataclass(frozen=True)
class VolumeSpec:
    """The way of a volume to the network and back; `input.size` is the sliding window.

    Attributes:
        spacing_mm: Voxels that the network sees, along the axes of `orientation`.
        orientation: Axis codes in which the network sees every volume.
        normalisation: How intensities become what the network was trained on.
        roi: Which part of the volume the network sees.
        overlap: Share of a window that its neighbour covers too.
        window_batch: Windows in one call of the network.
        flips: Whether scores are averaged over mirrored windows unless a caller says otherwise.
        flip_axes: Axes of the network's grid that are mirrored then, in every combination.
        largest_component: Whether only the largest piece of each label stays, by default.
        fill_holes: Whether holes inside a label are filled, by default.
        modalities: Values of DICOM's Modality that are accepted; all where it is empty.
        max_memory_bytes: What one volume may take at its peak; larger ones are refused.
        network_bytes: What the network itself takes for one batch of windows, as measured.
        snomed: For each label but the background its meaning; needed for DICOM-SEG.
    """

    spacing_mm: tuple[float, ...]
    orientation: str = "RAS"
    normalisation: NormalisationSpec = field(default_factory=NormalisationSpec)
    roi: RoiSpec = field(default_factory=RoiSpec)
    overlap: float = 0.5
    window_batch: int = 4
    flips: bool = False
    flip_axes: tuple[int, ...] = (0,)  # in RAS left and right, in which bodies are alike
    largest_component: bool = False
    fill_holes: bool = False
    modalities: tuple[str, ...] = ()
    max_memory_bytes: int = 1536 * 2**20
    network_bytes: int = 256 * 2**20
    snomed: Mapping[str, SegmentCoding] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if len(self.spacing_mm) != 3 or not min(self.spacing_mm) > 0:
            raise ConfigError(f"volume: expected 3 spacings above 0, got {self.spacing_mm}")
        if self.orientation not in _ORIENTATIONS:
            raise ConfigError(f"volume: expected axis codes such as RAS, got {self.orientation!r}")
        if not set(self.flip_axes) <= {0, 1, 2}:
            raise ConfigError(f"volume: expected flip_axes among 0, 1, 2, got {self.flip_axes}")
