"""The part of a model's description that says what its training saw.

An answer for something else is given all the same, and says that a person should look.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from medserve.errors import ConfigError
from medserve.spec.section import Section

__all__ = ["Range", "SeenSpec"]

Range = tuple[float, float]


class SeenSpec(Section, frozen=True):
    """What the images and masks of the training data were like; what is left out is not judged."""

    size_mm: Annotated[
        tuple[Range, ...],
        Meta(description="Smallest and largest extent along the axes of `orientation`."),
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
    label_ml: Annotated[
        Mapping[str, Range],
        Meta(description="Smallest and largest volume of a label in the reference masks."),
    ] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        ranges = (*self.size_mm, *self.label_ml.values(), *filter(None, (self.texture,)))
        if any(low > high for low, high in ranges):
            raise ConfigError("seen: expected ranges with low <= high, got another one")
        if len(self.size_mm) not in (0, 3):
            raise ConfigError(f"seen: expected 3 ranges of size_mm, got {len(self.size_mm)}")
