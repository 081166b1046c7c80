"""MedNet's own rule of training: weights of the classes, and when to stop."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["RatioStop", "class_weights"]


def class_weights(label_ids: Tensor, classes: int) -> Tensor:
    """One over the number of images of each class, scaled to a mean of 1, float32 (K,).

    A class without an image counts as one with a single image, so that nothing is divided by 0.

    Args:
        label_ids: int64 (N,).
        classes: K.
    """
    counts = torch.bincount(label_ids, minlength=classes)
    weights = 1.0 / counts.clamp(min=1).float()
    return weights / weights.mean()


class RatioStop:
    """Stop after `epochs` in a row whose validation loss exceeds `ratio` times the training loss.

    The training goes on getting better on its own images alone: it learns them by heart.
    """

    def __init__(self, ratio: float, epochs: int) -> None:
        self.ratio = ratio
        self.epochs = epochs
        self.in_a_row = 0

    def is_due(self, train_loss: float, validation_loss: float) -> bool:
        """Take in one epoch; whether the training should end after it."""
        apart = validation_loss > self.ratio * train_loss
        self.in_a_row = self.in_a_row + 1 if apart else 0
        return self.in_a_row >= self.epochs
