"""Several networks as one: the artifact that is exported."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medserve.errors import ConfigError

__all__ = ["Ensemble"]

_LEAST = 1e-6  # from 0 and 1: a probability whose logit every engine still computes alike


class Ensemble(nn.Module):
    """The mean of the members' probabilities, as logits that give it back.

    One member alone keeps its own logits.

    Args:
        members: Networks with the same input and labels, in eval mode.
        exclusive: Whether one label excludes the others (softmax over the channels, whose largest
            names the likeliest), or each channel says yes or no on its own (sigmoid).
    """

    def __init__(self, members: Sequence[nn.Module], *, exclusive: bool = True) -> None:
        super().__init__()
        if not members:
            raise ConfigError("expected at least one member, got none")
        self.members = nn.ModuleList(members)
        self.exclusive = exclusive

    def forward(self, image: Tensor) -> Tensor:
        """Image float32 (N, C, ...) -> logits (N, K, ...) of the same sides."""
        logits = [member(image) for member in self.members]
        if len(logits) == 1:
            return logits[0]
        total = self._probabilities(logits[0])
        for each in logits[1:]:
            total = total + self._probabilities(each)
        mean = total / len(logits)
        if self.exclusive:
            return torch.log(mean.clamp(min=_LEAST))
        mean = mean.clamp(min=_LEAST, max=1.0 - _LEAST)
        return torch.log(mean) - torch.log1p(-mean)

    def _probabilities(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits, dim=1) if self.exclusive else torch.sigmoid(logits)
