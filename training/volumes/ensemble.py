"""Several networks as one: the artifact that is exported."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medserve.errors import ConfigError

__all__ = ["Ensemble"]

_LEAST = 1e-6  # probability whose logarithm every engine still computes alike


class Ensemble(nn.Module):
    """The mean of the members' probabilities, as its logarithm.

    So softmax gives the mean back and the largest value names the likeliest label, as with the
    logits of one network. One member alone keeps its own logits.

    Args:
        members: Networks with the same input and labels, in eval mode.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise ConfigError("expected at least one member, got none")
        self.members = nn.ModuleList(members)

    def forward(self, image: Tensor) -> Tensor:
        """Image float32 (N, C, I, J, K) -> logits (N, classes, I, J, K)."""
        logits = [member(image) for member in self.members]
        if len(logits) == 1:
            return logits[0]
        total = torch.softmax(logits[0], dim=1)
        for each in logits[1:]:
            total = total + torch.softmax(each, dim=1)
        return torch.log((total / len(logits)).clamp(min=_LEAST))
