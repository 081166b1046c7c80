"""The part of a model's description that says how far its masks can be trusted.

The numbers are fitted on cases that no training saw (`python -m training.quality`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from medserve.errors import ConfigError
from medserve.spec.section import Section
from medserve.spec.seen import Range

__all__ = ["DiceSpec", "QualitySpec"]

_Share = Annotated[float, Meta(ge=0.0, le=1.0)]
_Amount = Annotated[float, Meta(ge=0.0)]


class DiceSpec(Section, frozen=True):
    """A logistic regression that predicts the Dice of a mask from the scores that made it.

    Its predictors, of one label of one mask on the network's grid: `overlap`, the log-odds of the
    Dice that the probabilities promise; `size`, the logarithm of the number of voxels or pixels.
    """

    intercept: Annotated[float, Meta(description="Of the regression.")]
    overlap: Annotated[float, Meta(description="Coefficient of the promised Dice.")]
    size: Annotated[float, Meta(description="Coefficient of the size.")]
    review_below: Annotated[
        _Share, Meta(description="Predicted Dice below which a person should look.")
    ]
    review_share: Annotated[
        _Share, Meta(description="Share of the masks of unseen cases for which that is so.")
    ]


class QualitySpec(Section, frozen=True):
    """What is known about the errors of a model's masks."""

    temperature: Annotated[
        float,
        Meta(gt=0.0, description="Divides logits before they become probabilities; no mask moves."),
    ] = 1.0
    dice: Annotated[
        DiceSpec | None, Meta(description="How the Dice of a mask is predicted; None: it is not.")
    ] = None
    volume_ratio: Annotated[
        Mapping[str, Range],
        Meta(
            description="For a label, the range that holds the reference's volume over the mask's "
            "in 90 % of cases."
        ),
    ] = msgspec.field(default_factory=dict)
    absent_below: Annotated[
        _Amount | None,
        Meta(
            description="Of a frame without a mask: sum of its probabilities, in pixels of the "
            "network's plane, below which nothing is there and no person has to look; None: each "
            "asks for a look.",
        ),
    ] = None

    def __post_init__(self) -> None:
        if any(not 0.0 < low <= high for low, high in self.volume_ratio.values()):
            raise ConfigError(
                "quality: expected ranges of volume_ratio with 0 < low <= high, got another one"
            )
