"""Losses between logits and masks, MONAI's, and the score of frames that validate.

Dice is taken for each image and label on its own, as it is measured: a small structure counts as
much as a large one. A label that neither the mask has nor the network gives counts as right.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from training.core.overlap import iou

__all__ = ["absolute_weights", "dice_and_bce", "dice_and_cross_entropy", "iou_per_image"]


@functools.cache
def _loss(
    smooth: float, dice_weight: float, entropy_weight: float, *, exclusive: bool
) -> nn.Module:
    from monai.losses.dice import DiceCELoss  # takes seconds

    return DiceCELoss(
        include_background=not exclusive, softmax=exclusive, sigmoid=not exclusive,
        smooth_nr=smooth, smooth_dr=smooth, lambda_dice=dice_weight, lambda_ce=entropy_weight,
    )  # fmt: skip


def dice_and_cross_entropy(logits: Tensor, shares: Tensor, dice_weight: float = 1.0) -> Tensor:
    """Return cross-entropy over all voxels plus 1 - soft Dice over the labels but the background.

    Args:
        logits: (N, classes, I, J, K); computed in float32 whatever comes.
        shares: float32 (N, classes, I, J, K), summing to 1: 0 and 1 away from edges.
        dice_weight: Of Dice against the cross-entropy.
    """
    loss: Tensor = _loss(1e-5, dice_weight, 1.0, exclusive=True)(logits.float(), shares)
    return loss


def dice_and_bce(
    logits: Tensor, masks: Tensor, dice_weight: float = 1.0, bce_weight: float = 1.0
) -> Tensor:
    """Return binary cross-entropy over all pixels plus 1 - soft Dice of each frame (averaged).

    Args:
        logits: (N, 1, H, W); computed in float32 whatever comes.
        masks: (N, 1, H, W), 0 or 1.
        dice_weight: Of 1 - Dice.
        bce_weight: Of the cross-entropy, which has a gradient where Dice has none.
    """
    # One pixel: an empty mask that is answered by nothing then has no loss.
    compute = _loss(1.0, dice_weight, bce_weight, exclusive=False)
    loss: Tensor = compute(logits.float(), masks.float())
    return loss


def iou_per_image(logits: Tensor, masks: Tensor, threshold: float = 0.5) -> Tensor:
    """Return intersection over union of each frame float32 (N,), by the rule of `core.overlap`."""
    found = torch.sigmoid(logits.float()).flatten(1) >= threshold
    wanted = masks.flatten(1) > 0
    counts = torch.stack([each.sum(dim=1) for each in (found & wanted, found, wanted)], dim=1)
    return torch.tensor([iou(*each) for each in counts.tolist()], device=logits.device)


def absolute_weights(network: nn.Module) -> Tensor:
    """Return the sum of the absolute values of all convolution weights, for an L1 penalty."""
    weights = [each for each in network.parameters() if each.ndim > 1 and each.requires_grad]
    return torch.stack([each.abs().sum() for each in weights]).sum()
