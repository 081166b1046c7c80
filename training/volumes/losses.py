"""Losses between logits and shares of labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["absolute_weights", "dice_and_cross_entropy"]

_SMOOTH = 1e-5  # keeps a label that a patch has not from dividing by zero


def dice_and_cross_entropy(logits: Tensor, shares: Tensor, dice_weight: float = 1.0) -> Tensor:
    """Cross-entropy over all voxels plus 1 - soft Dice over the labels but the background.

    Dice is taken for each volume and label on its own, as it is measured. A label that neither
    the volume has nor the network gives counts as right.

    Args:
        logits: (N, classes, I, J, K); computed in float32 whatever comes.
        shares: float32 (N, classes, I, J, K), summing to 1: 0 and 1 away from edges.
        dice_weight: Of Dice against the cross-entropy.
    """
    log_probabilities = torch.log_softmax(logits.float(), dim=1)
    cross_entropy = -(shares * log_probabilities).sum(dim=1).mean()
    probabilities = log_probabilities[:, 1:].exp().flatten(2)  # (N, classes - 1, voxels)
    wanted = shares[:, 1:].flatten(2)
    common = (probabilities * wanted).sum(dim=2)
    both = probabilities.sum(dim=2) + wanted.sum(dim=2)
    dice = (2.0 * common + _SMOOTH) / (both + _SMOOTH)
    return cross_entropy + dice_weight * (1.0 - dice.mean())


def absolute_weights(network: nn.Module) -> Tensor:
    """Sum of the absolute values of all convolution weights: what an L1 penalty multiplies."""
    weights = [each for each in network.parameters() if each.ndim > 1 and each.requires_grad]
    return torch.stack([each.abs().sum() for each in weights]).sum()
