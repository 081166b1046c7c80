"""The part of a model's description that only models of whole volumes have."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from medserve.errors import ConfigError
from medserve.spec.quality import QualitySpec
from medserve.spec.section import Section
from medserve.spec.seen import VolumeSeenSpec

__all__ = [
    "BlendingSpec",
    "CodedTerm",
    "NormalisationKind",
    "NormalisationSpec",
    "Padding",
    "Placement",
    "ResamplingKind",
    "ResamplingSpec",
    "Restored",
    "RoiKind",
    "RoiSpec",
    "ScoreKind",
    "SegmentCoding",
    "Sums",
    "ThickSlices",
    "VolumeSpec",
    "WindowWeights",
]

_ORIENTATIONS = {
    "".join(codes)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for codes in itertools.product(*axes)
}
_STORED_AXES = {"".join(axes) for axes in itertools.permutations("ijk")}
_INFINITY = float("inf")


class NormalisationKind(enum.StrEnum):
    """What the scale of intensities is taken from."""

    PERCENTILE = "percentile"  # of the volume itself: MR and ultrasound, which have no unit
    WINDOW = "window"  # fixed values: CT, whose unit is the Hounsfield
    Z_SCORE = "z_score"  # mean and standard deviation of the volume itself
    Z_SCORE_NONZERO = "z_score_nonzero"  # of the voxels that are not 0; zeros stay zeros
    Z_SCORE_BODY = "z_score_body"  # of what is not 0 in some channel, holes filled; the rest stays
    STANDARD = "standard"  # fixed limits, mean and deviation: CT as nnU-Net reads it
    MIN_MAX = "min_max"  # the smallest value of the volume becomes 0, the largest 1
    NONE = "none"  # as stored


class NormalisationSpec(Section, frozen=True):
    """How intensities become what the network was trained on."""

    kind: Annotated[NormalisationKind, Meta(description="What the scale is taken from.")] = (
        NormalisationKind.PERCENTILE
    )
    low: Annotated[
        float,
        Meta(
            description="Percentile (0 to 100) or value that becomes 0; for `standard` the value "
            "below which is clipped; unused by the others."
        ),
    ] = 0.5
    high: Annotated[
        float,
        Meta(
            description="Percentile or value that becomes 1; for `standard` the value above which "
            "is clipped."
        ),
    ] = 99.5
    foreground_only: Annotated[
        bool,
        Meta(
            description="Take percentiles, mean and deviation from the voxels above the volume's "
            "minimum: an image that was cut out of its surroundings is mostly padding."
        ),
    ] = False
    mean: Annotated[float, Meta(description="Subtracted after clipping; of `standard` only.")] = 0.0
    deviation: Annotated[float, Meta(description="Divided by then; of `standard` only.")] = 1.0

    def __post_init__(self) -> None:
        if self.kind in _LIMITED and not self.low < self.high:
            raise ConfigError(f"normalisation: expected low < high, got {self.low}, {self.high}")
        if not 0.0 < self.deviation < _INFINITY or not abs(self.mean) < _INFINITY:
            raise ConfigError(
                f"normalisation: expected a finite mean and a deviation above 0, got {self.mean} "
                f"and {self.deviation}"
            )
        if self.kind is NormalisationKind.PERCENTILE and (self.low < 0 or self.high > 100):
            raise ConfigError(
                f"normalisation: expected percentiles from 0 to 100, got {self.low}, {self.high}"
            )


_LIMITED = (NormalisationKind.PERCENTILE, NormalisationKind.WINDOW, NormalisationKind.STANDARD)


class RoiKind(enum.StrEnum):
    """How the part of a volume that the network sees is found."""

    NONE = "none"  # the whole volume
    OTSU = "otsu"  # the box around what is brighter than Otsu's threshold
    THRESHOLD = "threshold"  # the box around what is brighter than a fixed value, as in CT
    NONZERO = "nonzero"  # the tight box around what is not 0 in some channel; no margin
    FOREGROUND = "foreground"  # the same around what is above 0 as the network sees it


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


class ResamplingKind(enum.StrEnum):
    """How a volume comes to the network's grid, and scores come back."""

    LINEAR = "linear"  # the same block of space, outer face to outer face; widened when it shrinks
    SPLINE = "spline"  # the same block, splines clamped to the volume's range, as in nnU-Net
    FIXED = "fixed"  # the whole region has `input.size`, whatever its spacing
    CENTRES = "centres"  # first voxel's centre on first centre, never widened, as in MONAI


class ThickSlices(enum.StrEnum):
    """When planes across the widest spacing are resampled each on its own."""

    BY_SPACING = "by_spacing"  # where one spacing is more than three times another
    ALWAYS = "always"
    NEVER = "never"


_Order = Annotated[int, Meta(ge=0, le=5)]


class ResamplingSpec(Section, frozen=True):
    """The way of a volume to the network's grid, and of scores back."""

    kind: Annotated[ResamplingKind, Meta(description="Which grid and which interpolation.")] = (
        ResamplingKind.LINEAR
    )
    order: Annotated[
        _Order,
        Meta(description="Degree of the spline for the image; of `spline`, `fixed`, `centres`."),
    ] = 3
    order_through: Annotated[
        _Order, Meta(description="The same across thick slices; of `spline` only.")
    ] = 0
    inverse_order: Annotated[
        _Order,
        Meta(
            description="Degree for what comes back to the volume's grid; of `spline`, `fixed` "
            "and `centres`."
        ),
    ] = 1
    inverse_order_through: Annotated[
        _Order, Meta(description="The same across thick slices; of `spline` only.")
    ] = 0
    thick_slices: Annotated[
        ThickSlices, Meta(description="When slices are resampled one by one; of `spline` only.")
    ] = ThickSlices.BY_SPACING
    normalise_first: Annotated[
        bool, Meta(description="Normalise on the volume's own grid rather than on the network's.")
    ] = False

    def __post_init__(self) -> None:
        is_linear = self.kind in (ResamplingKind.FIXED, ResamplingKind.CENTRES)
        if is_linear and max(self.order, self.inverse_order) > 1:
            raise ConfigError(
                f"resampling: expected order and inverse_order 0 (nearest) or 1 (linear) for the "
                f"kind {self.kind}, got {self.order} and {self.inverse_order}"
            )


class WindowWeights(enum.StrEnum):
    """How much the places of a window count where windows overlap."""

    GAUSSIAN = "gaussian"  # about the middle, at least a thousandth, as in MONAI
    UNIFORM = "uniform"  # all alike
    PEAK = "peak"  # about the voxel at half the side, in 16 bits, as in nnU-Net


class Placement(enum.StrEnum):
    """Where windows lie."""

    STRIDE = "stride"  # a fixed step, the last one drawn back to the edge, as in MONAI
    EVEN = "even"  # spread evenly from edge to edge, as in nnU-Net
    WHOLE = "whole"  # one, which a volume has to fill; other volumes are refused


class Padding(enum.StrEnum):
    """What stands in a window beside a volume that is smaller."""

    ZEROS = "zeros"
    EDGE = "edge"  # the nearest voxel of the volume


class Sums(enum.StrEnum):
    """Arithmetic in which scores of windows are added."""

    F32 = "f32"
    F16 = "f16"  # as nnU-Net does on every device; it decides about voxels


class BlendingSpec(Section, frozen=True):
    """How windows are placed, and how their scores become those of the volume."""

    weights: Annotated[WindowWeights, Meta(description="Of the places of a window.")] = (
        WindowWeights.GAUSSIAN
    )
    placement: Annotated[Placement, Meta(description="Where windows lie.")] = Placement.STRIDE
    sums: Annotated[Sums, Meta(description="In which arithmetic scores are added.")] = Sums.F32
    padding: Annotated[
        Padding, Meta(description="What stands in a window beside a volume that is smaller.")
    ] = Padding.ZEROS


class ScoreKind(enum.StrEnum):
    """What a score is."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"


class Restored(enum.StrEnum):
    """What is brought back to a volume's own grid."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    LABELS = "labels"  # decided and tidied on the network's grid; interpolated ones are rounded


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
    """The way of a volume to the network and back; `input.size` is the sliding window.

    A window of two sides is that of a network for planes: it sees them across the first axis.
    """

    spacing_mm: Annotated[
        tuple[float, ...],
        Meta(
            description="Voxels that the network sees, along the axes of `orientation`; 0 keeps "
            "the volume's own. None for the resampling `fixed`."
        ),
    ] = ()
    orientation: Annotated[
        str,
        Meta(
            description="Axis codes in which the network sees every volume, such as RAS; or the "
            "axes of the file in the network's order, such as kji, whatever they point to."
        ),
    ] = "RAS"
    channels: Annotated[
        Mapping[str, NormalisationSpec | tuple[NormalisationSpec, ...]],
        Meta(
            description="Of a network that sees several images of one grid: their names in its "
            "order, each with its normalisation; empty for a single image."
        ),
    ] = msgspec.field(default_factory=dict)
    normalisation: Annotated[
        NormalisationSpec | tuple[NormalisationSpec, ...],
        Meta(
            description="How the intensities of a single image become what the network was "
            "trained on: one step, or several in this order."
        ),
    ] = NormalisationSpec()
    resampling: Annotated[
        ResamplingSpec, Meta(description="How a volume comes to the network's grid and back.")
    ] = ResamplingSpec()
    roi: Annotated[RoiSpec, Meta(description="Which part of the volume the network sees.")] = (
        RoiSpec()
    )
    overlap: Annotated[
        float, Meta(description="Share of a window that its neighbour covers too.")
    ] = 0.5
    window_batch: Annotated[int, Meta(description="Windows in one call of the network.")] = 4
    blending: Annotated[BlendingSpec, Meta(description="How windows become a volume.")] = (
        BlendingSpec()
    )
    ensemble: Annotated[
        int,
        Meta(
            ge=1,
            description="Networks in the artifact, whose scores stand one after the other along "
            "its channels; their mean decides.",
        ),
    ] = 1
    scores: Annotated[ScoreKind, Meta(description="What the network answers.")] = ScoreKind.LOGITS
    restored: Annotated[
        Restored, Meta(description="What is brought back to the volume's own grid.")
    ] = Restored.LOGITS
    regions: Annotated[
        Mapping[str, int],
        Meta(
            description="For a network whose channels are regions that may overlap: the label "
            "that each writes and its channel, in the order of writing. A voxel belongs to a "
            "region from a probability (sigmoid) above one half. Empty: the largest score wins."
        ),
    ] = msgspec.field(default_factory=dict)
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
    largest_of: Annotated[
        tuple[tuple[str, ...], ...],
        Meta(
            description="What largest_component counts as one structure: groups of labels, of "
            "whose union only the largest piece stays, group after group. Empty: each label."
        ),
    ] = ()
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
        VolumeSeenSpec | None,
        Meta(description="What training saw; an answer for something else asks for a review."),
    ] = None
    quality: Annotated[
        QualitySpec | None,
        Meta(description="How far the masks can be trusted; of a network that answers logits."),
    ] = None

    @property
    def steps(self) -> tuple[tuple[NormalisationSpec, ...], ...]:
        """The steps of normalisation of each channel, in the network's order."""
        chosen = tuple(self.channels.values()) or (self.normalisation,)
        return tuple(each if isinstance(each, tuple) else (each,) for each in chosen)

    def __post_init__(self) -> None:
        is_fixed = self.resampling.kind is ResamplingKind.FIXED
        if is_fixed is bool(self.spacing_mm):
            wanted = "no spacing_mm, for every volume becomes the size of the network's input"
            wanted = wanted if is_fixed else "3 spacings"
            raise ConfigError(f"volume: expected {wanted}, got {self.spacing_mm}")
        if self.spacing_mm and (len(self.spacing_mm) != 3 or not min(self.spacing_mm) >= 0):
            raise ConfigError(f"volume: expected 3 spacings of at least 0, got {self.spacing_mm}")
        if self.orientation not in _ORIENTATIONS | _STORED_AXES:
            raise ConfigError(
                f"volume: expected axis codes such as RAS, or axes of the file such as kji, got "
                f"{self.orientation!r}"
            )
        if not set(self.flip_axes) <= {0, 1, 2}:
            raise ConfigError(f"volume: expected flip_axes among 0, 1, 2, got {self.flip_axes}")
        if len(self.channels) == 1:
            raise ConfigError(
                "volume: expected at least two channels by name, got one; describe a single image "
                "by normalisation"
            )
        if self.regions and sorted(self.regions.values()) != list(range(len(self.regions))):
            raise ConfigError(
                f"volume: expected regions with the channels 0 to {len(self.regions) - 1}, each "
                f"once, got {sorted(self.regions.values())}"
            )
        if self.quality and self.quality.absent_below is not None:
            raise ConfigError(
                "volume: expected quality without absent_below, which is of frames, got it; a "
                "volume in which nothing is found always asks for a look"
            )
        if self.quality and (self.regions or self.restored is not Restored.LOGITS):
            raise ConfigError(
                "volume: expected quality only where the largest of restored logits wins, got it "
                "with regions or another kind of scores"
            )
        if self.scores is ScoreKind.PROBABILITIES and self.restored is Restored.LOGITS:
            raise ConfigError("volume: expected restored: probabilities, for such are the scores")
