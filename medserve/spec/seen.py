"""The part of a model's description that says what its training saw.

An answer for something else is given all the same, and says that a person should look.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from medserve.errors import ConfigError
from medserve.spec.section import Section

__all__ = ["LAYOUT_PARTS", "FrameSeenSpec", "Range", "SeenSpec", "VolumeSeenSpec"]

Range = tuple[float, float]
LAYOUT_PARTS = 4  # along each axis


class SeenSpec(Section, frozen=True):
    """What the images of the training data were like; what is left out is not judged."""

    axes: ClassVar[int]

    size_mm: Annotated[
        tuple[Range, ...],
        Meta(
            description="Smallest and largest extent: of a volume along the axes of "
            "`orientation`, of the part of a frame that the network sees down and across."
        ),
    ] = ()
    quantiles: Annotated[
        tuple[float, ...],
        Meta(
            description="Mean over the training data of the quantiles of an image as the network "
            "sees it, at probabilities that lie evenly between 0 and 1."
        ),
    ] = ()
    quantile_distance: Annotated[
        float,
        Meta(
            description="Mean distance of an image's quantiles to these, from which it is unlike."
        ),
    ] = 0.0
    texture: Annotated[
        Range | None,
        Meta(
            description="Least and most of the mean difference between neighbours over the "
            "standard deviation: little in a smooth image, about 1 in noise."
        ),
    ] = None
    layout: Annotated[
        tuple[float, ...],
        Meta(
            description="Mean over the training data of the mean intensities in 4 parts along each "
            "axis of an image as the network sees it, those of the last axis side by side."
        ),
    ] = ()
    layout_correlation: Annotated[
        float,
        Meta(
            ge=-1.0,
            le=1.0,
            description="Correlation of an image's parts with these, below which it is unlike: "
            "inverted, mirrored, or another part of the body.",
        ),
    ] = -1.0

    def __post_init__(self) -> None:
        _check_ranges((*self.size_mm, *filter(None, (self.texture,))))
        if len(self.size_mm) not in (0, self.axes):
            raise ConfigError(
                f"seen: expected {self.axes} ranges of size_mm, got {len(self.size_mm)}"
            )
        if len(self.layout) not in (0, LAYOUT_PARTS**self.axes):
            raise ConfigError(
                f"seen: expected {LAYOUT_PARTS**self.axes} numbers of layout, got "
                f"{len(self.layout)}"
            )


class VolumeSeenSpec(SeenSpec, frozen=True):
    """What the volumes of the training data and their masks were like."""

    axes: ClassVar[int] = 3

    label_ml: Annotated[
        Mapping[str, Range],
        Meta(description="Smallest and largest volume of a label in the reference masks."),
    ] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ranges(self.label_ml.values())


class FrameSeenSpec(SeenSpec, frozen=True):
    """What the frames of the training data and their masks were like."""

    axes: ClassVar[int] = 2

    label_share: Annotated[
        Mapping[str, Range],
        Meta(
            description="Smallest and largest share of the reference masks in the part of a frame "
            "that the network sees."
        ),
    ] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ranges(self.label_share.values())


def _check_ranges(ranges: Iterable[Range]) -> None:
    if any(low > high for low, high in ranges):
        raise ConfigError("seen: expected ranges with low <= high, got another one")
