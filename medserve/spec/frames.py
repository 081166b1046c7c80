"""The part of a model's description that only models of ultrasound frames have."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from medserve.errors import ConfigError
from medserve.spec.volumes import NormalisationKind, NormalisationSpec, SegmentCoding

__all__ = [
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


@dataclass(frozen=True)
class FilterSpec:
    """A filter and its parameters, on intensities in [0, 1] at the network's size.

    Attributes:
        kind: Which one; a parameter that it does not have is ignored.
        iterations: Steps of a diffusion.
        step: Time of one such step, up to 0.25.
        conduction: Perona-Malik's function of the gradient.
        contrast: Perona-Malik's K: a step in intensity well above it is an edge and stays.
        dynamic_range_db: SRAD's: what the scanner compressed to [0, 1] by a logarithm. 0: the
            intensities are not compressed.
        speckle: SRAD's q0, the coefficient of variation of homogeneous tissue before the first
            step. 0: estimated from the frame.
        decay: SRAD's rho: q0 falls by the factor exp(-rho t) while speckle is smoothed away.
        sigma: The Gaussian's standard deviation, in pixels.
    """

    kind: FilterKind = FilterKind.NONE
    iterations: int = 10
    step: float = 0.2
    conduction: Conduction = Conduction.EXPONENTIAL
    contrast: float = 0.1
    dynamic_range_db: float = 50.0
    speckle: float = 0.0
    decay: float = 1.0 / 6.0
    sigma: float = 1.0

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


@dataclass(frozen=True)
class CropSpec:
    """How the part that the network sees is found; outside of it everything is background.

    Attributes:
        kind: How.
        level: Mean intensity from which a small square counts as content.
        margin: Kept around the content, as a share of its longer side.
        box: Top, left, bottom, right of the fixed box, as shares of the frame's sides.
    """

    kind: CropKind = CropKind.NONE
    level: float = 0.03
    margin: float = 0.02
    box: tuple[float, ...] = (0.0, 0.0, 1.0, 1.0)

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


@dataclass(frozen=True)
class FrameSpec:
    """The way of a frame to the network and back; `input.size` is the network's (H, W).

    In this order: crop, resize with the aspect ratio kept, filter, intensities, centred padding
    by zeros. Masks are resized by the nearest pixel for training; on the way back the logits are
    interpolated (bilinear) and the threshold is applied on the frame's own grid.

    Attributes:
        crop: Which part of a frame the network sees.
        interpolation: How it is resized.
        filter: What is done about speckle, at the network's size.
        normalisation: How intensities become what the network was trained on.
        threshold: Probability from which a pixel belongs to the structure.
        flips: Whether logits are averaged with those of the mirror image, unless a caller says
            otherwise.
        largest_component: Whether only the largest piece stays, by default.
        fill_holes: Whether holes inside it are filled, by default.
        batch: Frames in one call of the network.
        max_frames: In one stack; longer ones are refused.
        modalities: Values of DICOM's Modality that are accepted; all where it is empty.
        snomed: For the structure its meaning; needed for DICOM-SEG.
    """

    crop: CropSpec = field(default_factory=CropSpec)
    interpolation: Interpolation = Interpolation.BILINEAR
    filter: FilterSpec = field(default_factory=FilterSpec)
    normalisation: NormalisationSpec = field(
        default_factory=lambda: NormalisationSpec(NormalisationKind.WINDOW, 0.0, 1.0)
    )
    threshold: float = 0.5
    flips: bool = False
    largest_component: bool = False
    fill_holes: bool = False
    batch: int = 4
    max_frames: int = 512
    modalities: tuple[str, ...] = ()
    snomed: Mapping[str, SegmentCoding] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold < 1.0:
            raise ConfigError(f"frame: expected a threshold between 0 and 1, got {self.threshold}")
        if self.batch < 1 or self.max_frames < 1:
            raise ConfigError(
                f"frame: expected batch and max_frames of at least 1, got {self.batch} and "
                f"{self.max_frames}"
            )
