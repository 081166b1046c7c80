"""Features of an Inception v3 network that has seen photographs, from a local file of its weights.

Distances in these features are what papers report. Theirs come from other ports of the network and
other ways of resizing, each of which shifts the figure, so ours compare with each other alone.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medserve.errors import ConfigError

__all__ = ["InceptionExtractor", "load_inception"]

_SIDE = 299  # pixels, as the network was trained (Szegedy et al., arXiv:1512.00567)
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


class InceptionExtractor(nn.Module):
    """Image (N, C, H, W) in [0, 1] -> (N, 2048), the last plane's mean; C is 1 or 3."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.network.fc = nn.Identity()
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None])
        self.register_buffer("deviation", torch.tensor(_DEVIATION)[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        """Enlarge by bilinear interpolation, scale as in training, look."""
        side = (_SIDE, _SIDE)
        large = F.interpolate(image, side, mode="bilinear", antialias=True, align_corners=False)
        colour = large.expand(-1, 3, -1, -1)
        found: Tensor = self.network(
            (colour - self.get_buffer("mean")) / self.get_buffer("deviation")
        )
        return found


def load_inception(path: Path) -> InceptionExtractor:
    """Read torchvision's `inception_v3` weights (a state dict as torchvision publishes it).

    Raises:
        ConfigError: no such file, or weights of another network.
    """
    from torchvision.models import inception_v3  # heavy, and only for those who have the file

    network = inception_v3(weights=None, aux_logits=True, transform_input=False, init_weights=False)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except (OSError, EOFError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"--extractor: expected the weights of torchvision's inception_v3 in {path}, got "
            f"something else ({reason})"
        ) from None
    return InceptionExtractor(network).eval()
