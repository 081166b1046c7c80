"""The loss between logits and a mask, and the score by which the best epoch is chosen."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from training.core.overlap import iou

__all__ = ["dice_and_bce", "iou_per_image"]

_SMOOTH = 1.0  # pixel: an empty mask that is answered by nothing then has no loss


def dice_and_bce(
    logits: Tensor, masks: Tensor, dice_weight: float = 1.0, bce_weight: float = 1.0
) -> Tensor:
    """Binary cross-entropy over all pixels plus 1 - soft Dice of each frame (both averaged).

    Args:
        logits: (N, 1, H, W); computed in float32 whatever comes.
        masks: (N, 1, H, W), 0 or 1.
        dice_weight: Of 1 - Dice, which counts a small structure as much as a large one.
        bce_weight: Of the cross-entropy, which has a gradient where Dice has none.
    """
    logits, masks = logits.float(), masks.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, masks)
    found = torch.sigmoid(logits).flatten(1)  # (N, pixels)
    wanted = masks.flatten(1)
    common = (found * wanted).sum(dim=1)
    both = found.sum(dim=1) + wanted.sum(dim=1)
    dice = (2.0 * common + _SMOOTH) / (both + _SMOOTH)
    return bce_weight * cross_entropy + dice_weight * (1.0 - dice).mean()


def iou_per_image(logits: Tensor, masks: Tensor, threshold: float = 0.5) -> Tensor:
    """Intersection over union of each frame float32 (N,), by the rule of `core.overlap`."""
    found = torch.sigmoid(logits.float()).flatten(1) >= threshold
    wanted = masks.flatten(1) > 0
    counts = torch.stack([each.sum(dim=1) for each in (found & wanted, found, wanted)], dim=1)
    return torch.tensor([iou(*each) for each in counts.tolist()], device=logits.device)
