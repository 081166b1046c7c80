"""The networks of several folds as one: the artifact that is exported."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medserve.errors import ConfigError

__all__ = ["FrameEnsemble"]

_LEAST = 1e-6  # from 0 and 1: a probability whose logit every engine still computes alike


class FrameEnsemble(nn.Module):
    """The mean of the members' probabilities, as its logit; one alone keeps its own logits.

    Args:
        members: Networks with the same input, in eval mode.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise ConfigError("expected at least one member, got none")
        self.members = nn.ModuleList(members)

    def forward(self, image: Tensor) -> Tensor:
        """Image float32 (N, 1, H, W) -> logits (N, 1, H, W)."""
        logits = [member(image) for member in self.members]
        if len(logits) == 1:
            return logits[0]
        total = torch.sigmoid(logits[0])
        for each in logits[1:]:
            total = total + torch.sigmoid(each)
        mean = (total / len(logits)).clamp(min=_LEAST, max=1.0 - _LEAST)
        return torch.log(mean) - torch.log1p(-mean)
