"""What a network must have to be trained, exported and served as a classifier."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Classifier"]


@runtime_checkable
class Classifier(Protocol):
    """A network in two halves: maps of the image, and what is answered from them.

    Novelty looks at the maps, so both halves are called apart; `forward` is one after the other.
    """

    def features(self, image: Tensor) -> list[Tensor]:
        """Return maps (N, C, h, w), fine to coarse, of an image (N, C, H, W) in [0, 1].

        The last two are described by the log of each channel's mean: let a ReLU come last.
        """

    def classify(self, maps: list[Tensor]) -> Tensor:
        """Return logits (N, classes), one for each label in the order of the configuration."""
