"""The part of a model's description that only models of ultrasound frames have."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from medserve.errors import ConfigError
from medserve.spec.quality import QualitySpec
from medserve.spec.section import Section
from medserve.spec.seen import FrameSeenSpec
from medserve.spec.volumes import (
    NormalisationKind,
    NormalisationSpec,
    ScoreKind,
    SegmentCoding,
)

__all__ = [
    "Activation",
    "Conduction",
    "CropKind",
    "CropSpec",
    "FilterKind",
    "FilterSpec",
    "FrameSpec",
    "Interpolation",
]

_STABLE_STEP = 0.25  # of an explicit scheme with four neighbours; above it noise grows


class FilterKind(enum.StrEnum):
    """What is done about speckle before the network sees a frame."""

    NONE = "none"
    PERONA_MALIK = "perona_malik"  # anisotropic diffusion: smooth inside, sharp at edges
    SRAD = "srad"  # the same idea for multiplicative noise, which speckle is
    GAUSSIAN = "gaussian"  # isotropic diffusion is this and nothing more: edges blur too


class Conduction(enum.StrEnum):
    """How Perona-Malik's diffusion stops at an edge (their equations for g)."""

    EXPONENTIAL = "exponential"  # favours high-contrast edges
    RATIONAL = "rational"  # favours wide regions


class FilterSpec(Section, frozen=True):
    """A filter and its parameters, on intensities in [0, 1] at the network's size."""

    kind: Annotated[
        FilterKind, Meta(description="Which one; a parameter that it does not have is ignored.")
    ] = FilterKind.NONE
    iterations: Annotated[int, Meta(description="Steps of a diffusion.")] = 10
    step: Annotated[float, Meta(description="Time of one such step, up to 0.25.")] = 0.2
    conduction: Annotated[
        Conduction, Meta(description="Perona-Malik's function of the gradient.")
    ] = Conduction.EXPONENTIAL
    contrast: Annotated[
        float,
        Meta(
            description="Perona-Malik's K: a step in intensity well above it is an edge and stays."
        ),
    ] = 0.1
    dynamic_range_db: Annotated[
        float,
        Meta(
            description="SRAD's: what the scanner compressed to [0, 1] by a logarithm. 0: the "
            "intensities are not compressed."
        ),
    ] = 50.0
    speckle: Annotated[
        float,
        Meta(
            description="SRAD's q0, the coefficient of variation of homogeneous tissue before the "
            "first step. 0: estimated from the frame."
        ),
    ] = 0.0
    decay: Annotated[
        float,
        Meta(
            description="SRAD's rho: q0 falls by the factor exp(-rho t) while speckle is smoothed "
            "away."
        ),
    ] = 1.0 / 6.0
    sigma: Annotated[float, Meta(description="The Gaussian's standard deviation, in pixels.")] = 1.0

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ConfigError(f"filter: expected at least 1 iteration, got {self.iterations}")
        if not 0.0 < self.step <= _STABLE_STEP:
            raise ConfigError(
                f"filter: expected a step above 0 and up to {_STABLE_STEP}, beyond which the "
                f"diffusion is unstable, got {self.step}"
            )
        for name in ("contrast", "sigma"):
            if not getattr(self, name) > 0.0:
                raise ConfigError(f"filter: expected {name} above 0, got {getattr(self, name)}")
        for name in ("dynamic_range_db", "speckle", "decay"):
            if not getattr(self, name) >= 0.0:
                raise ConfigError(f"filter: expected {name} of at least 0, got "
                                  f"{getattr(self, name)}")  # fmt: skip


class Interpolation(enum.StrEnum):
    """How a frame is resized; all but `nearest` widen with the scale, so nothing aliases."""

    NEAREST = "nearest"
    AREA = "area"  # the mean of what a pixel covers
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


class CropKind(enum.StrEnum):
    """Which part of a frame the network sees; the mask is pasted back into the whole."""

    NONE = "none"  # all of it
    CONTENT = "content"  # the box around the largest piece that is not black: the scan
    BOX = "box"  # a box that is the same for every frame: one scanner, one layout


class CropSpec(Section, frozen=True):
    """How the part that the network sees is found; outside of it everything is background."""

    kind: Annotated[CropKind, Meta(description="How.")] = CropKind.NONE
    level: Annotated[
        float, Meta(description="Mean intensity from which a small square counts as content.")
    ] = 0.03
    margin: Annotated[
        float, Meta(description="Kept around the content, as a share of its longer side.")
    ] = 0.02
    box: Annotated[
        tuple[float, ...],
        Meta(
            description="Top, left, bottom, right of the fixed box, as shares of the frame's sides."
        ),
    ] = (0.0, 0.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if not 0.0 <= self.level < 1.0 or not 0.0 <= self.margin < 1.0:
            raise ConfigError(
                f"crop: expected level and margin from 0 to below 1, got {self.level} and "
                f"{self.margin}"
            )
        if len(self.box) != 4 or not (
            0.0 <= self.box[0] < self.box[2] <= 1.0 and 0.0 <= self.box[1] < self.box[3] <= 1.0
        ):
            raise ConfigError(
                f"crop: expected a box of shares [top, left, bottom, right] with top < bottom and "
                f"left < right, all from 0 to 1, got {list(self.box)}"
            )


class Activation(enum.StrEnum):
    """How the scores of a pixel become its label."""

    SIGMOID = "sigmoid"  # a channel for each structure: of those above the threshold the largest
    SOFTMAX = "softmax"  # a channel for each label, the background's first: the largest


class FrameSpec(Section, frozen=True):
    """The way of a frame to the network and back; `input.size` is the network's (H, W).

    In this order: crop, resize, filter, intensities, centred padding by zeros, `input.mean` and
    `input.deviation`. Masks are resized by the nearest pixel for training; on the way back the
    logits are interpolated (bilinear) and decided on the frame's own grid.
    """

    crop: Annotated[CropSpec, Meta(description="Which part of a frame the network sees.")] = (
        CropSpec()
    )
    interpolation: Annotated[Interpolation, Meta(description="How it is resized.")] = (
        Interpolation.BILINEAR
    )
    filter: Annotated[
        FilterSpec, Meta(description="What is done about speckle, at the network's size.")
    ] = FilterSpec()
    normalisation: Annotated[
        NormalisationSpec,
        Meta(description="How intensities become what the network was trained on."),
    ] = NormalisationSpec(NormalisationKind.WINDOW, 0.0, 1.0)
    scores: Annotated[ScoreKind, Meta(description="What the network answers.")] = ScoreKind.LOGITS
    activation: Annotated[
        Activation,
        Meta(
            description="How the scores of a pixel become its label: `sigmoid`, a channel for each "
            "structure, or `softmax`, a channel for each label."
        ),
    ] = Activation.SIGMOID
    threshold: Annotated[
        float,
        Meta(description="Probability from which a pixel belongs to a structure; of `sigmoid`."),
    ] = 0.5
    flips: Annotated[
        bool,
        Meta(
            description="Whether logits are averaged with those of the mirror image, unless a "
            "caller says otherwise."
        ),
    ] = False
    largest_component: Annotated[
        bool, Meta(description="Whether only the largest piece of each label stays, by default.")
    ] = False
    fill_holes: Annotated[
        bool, Meta(description="Whether holes inside a label are filled, by default.")
    ] = False
    batch: Annotated[int, Meta(description="Frames in one call of the network.")] = 4
    max_frames: Annotated[int, Meta(description="In one stack; longer ones are refused.")] = 512
    modalities: Annotated[
        tuple[str, ...],
        Meta(description="Values of DICOM's Modality that are accepted; all where it is empty."),
    ] = ()
    ultrasound: Annotated[
        bool,
        Meta(
            description="Whether a frame that does not look like B-mode ultrasound is marked, for "
            "its mask means little then."
        ),
    ] = True
    snomed: Annotated[
        Mapping[str, SegmentCoding],
        Meta(description="For each structure its meaning; needed for DICOM-SEG."),
    ] = msgspec.field(default_factory=dict)
    seen: Annotated[
        FrameSeenSpec | None,
        Meta(description="What training saw; an answer for something else asks for a review."),
    ] = None
    quality: Annotated[
        QualitySpec | None, Meta(description="How far the masks can be trusted.")
    ] = None

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold < 1.0:
            raise ConfigError(f"frame: expected a threshold between 0 and 1, got {self.threshold}")
        if self.quality and (self.activation, self.scores) != _PREDICTABLE:
            raise ConfigError(
                "frame: expected quality only of a network that answers logits of its structure, "
                "got it with softmax or probabilities"
            )
        if self.batch < 1 or self.max_frames < 1:
            raise ConfigError(
                f"frame: expected batch and max_frames of at least 1, got {self.batch} and "
                f"{self.max_frames}"
            )


_PREDICTABLE = (Activation.SIGMOID, ScoreKind.LOGITS)
