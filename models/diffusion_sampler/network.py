"""U-Net that denoises (Ho et al., NeurIPS 2020, arXiv:2006.11239), kept light for CPUs.

Every stage has blocks of two convolutions that are told the step and the class; strided
convolutions go down, transposed ones up. Attention is left out by default: it pays at sizes and
budgets beyond a CPU's.
"""

from __future__ import annotations

import enum
import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "NETWORKS",
    "Activation",
    "DenoisingUNet",
    "Down",
    "NetworkConfig",
    "Norm",
    "step_embedding",
]

_LONGEST_WAVE = 10_000.0  # steps; Vaswani et al., arXiv:1706.03762, section 3.5


class Activation(enum.StrEnum):
    """What stands between two convolutions."""

    GELU = "gelu"
    SILU = "silu"


class Down(enum.StrEnum):
    """How a stage halves its plane."""

    STRIDE = "stride"  # a convolution that learns what to keep
    POOL = "pool"  # the largest of four pixels


class Norm(enum.StrEnum):
    """What keeps activations in bounds."""

    GROUP = "group"  # weights fit any size
    LAYER = "layer"  # over (C, H, W): weights fit the size of the training alone
    NONE = "none"


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of the network.

    Attributes:
        image_size: Side of the square image; only `Norm.LAYER` and `patch` depend on it.
        channels: 1 grey, 3 colour.
        classes: Classes to condition on; 0 without.
        width: Channels of the first stage.
        stages: Multiples of `width`, a stage each; each but the last halves the plane.
        blocks: Blocks a stage on the way down, and as many on the way up.
        patch: Side of the pixel blocks that become channels at the entry: 2 makes a network four
            times cheaper and costs little detail.
        activation: Between the convolutions.
        down: How planes are halved.
        norm: What keeps activations in bounds.
        attention: Self-attention over the smallest plane.
        dropout: Share of features left out while training.
    """

    image_size: int = 64
    channels: int = 1
    classes: int = 0
    width: int = 64
    stages: tuple[int, ...] = (1, 2, 3)
    blocks: int = 2
    patch: int = 2
    activation: Activation = Activation.GELU
    down: Down = Down.STRIDE
    norm: Norm = Norm.GROUP
    attention: bool = False
    dropout: float = 0.0

    @property
    def multiple(self) -> int:
        """Sides of an image must be divisible by this."""
        return int(self.patch * 2 ** (len(self.stages) - 1))


def step_embedding(step: Tensor, size: int) -> Tensor:
    """Sinusoids of the step: (N,) -> (N, size), each in [-1, 1]."""
    half = size // 2
    falling = torch.arange(half, dtype=torch.float32, device=step.device) / half
    angle = step.float()[:, None] * torch.exp(-math.log(_LONGEST_WAVE) * falling)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class DenoisingUNet(nn.Module):
    """Noisy image, step and class -> noise or velocity, as it was trained."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * each for each in config.stages]
        sides = [config.image_size // config.patch // 2**n for n in range(len(widths))]
        told = 4 * config.width
        self.step_size = config.width
        self.tell_step = nn.Sequential(
            nn.Linear(config.width, told), _activation(config), nn.Linear(told, told)
        )
        # One row more than classes: "no class", which guidance needs.
        self.tell_class = nn.Embedding(config.classes + 1, told) if config.classes else None
        pixels = config.channels * config.patch**2
        self.entry = nn.Conv2d(pixels, widths[0], 3, padding=1)
        self.encoder, self.shrink = nn.ModuleList(), nn.ModuleList()
        for n, (width, side) in enumerate(zip(widths, sides, strict=True)):
            before = widths[max(0, n - 1)]
            self.encoder.append(_stage(config, [before] + [width] * config.blocks, side))
            self.shrink.append(_halve(config, width) if n + 1 < len(widths) else nn.Identity())
        attention = _Attention(widths[-1]) if config.attention else nn.Identity()
        self.middle = _Block(config, widths[-1], widths[-1], sides[-1])
        self.attend = attention
        self.grow, self.decoder = nn.ModuleList(), nn.ModuleList()
        for n in reversed(range(len(widths) - 1)):
            self.grow.append(nn.ConvTranspose2d(widths[n + 1], widths[n], 4, 2, 1))
            route = [2 * widths[n]] + [widths[n]] * config.blocks
            self.decoder.append(_stage(config, route, sides[n]))
        self.leave = nn.Sequential(
            _norm(config, widths[0], sides[0]), _activation(config),
            nn.Conv2d(widths[0], pixels, 3, padding=1),
        )  # fmt: skip
        nn.init.zeros_(self.leave[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.leave[-1].bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor, step: Tensor, label: Tensor) -> Tensor:
        """Denoise.

        Args:
            image: (N, C, H, W), about [-1, 1]; sides divisible by `config.multiple`.
            step: Of the process, (N,).
            label: Class ids int64 (N,); the number of classes stands for "no class".
        """
        told = self.tell_step(step_embedding(step, self.step_size))
        if self.tell_class is not None:
            told = told + self.tell_class(label)
        features = self.entry(F.pixel_unshuffle(image, self.config.patch))
        kept: list[Tensor] = []
        for stage, shrink in zip(self.encoder, self.shrink, strict=True):
            for block in stage:  # type: ignore[attr-defined]
                features = block(features, told)
            kept.append(features)
            features = shrink(features)
        features = self.attend(self.middle(features, told))
        for grow, stage, skip in zip(self.grow, self.decoder, kept[-2::-1], strict=True):
            features = torch.cat([grow(features), skip], dim=1)  # (N, 2w, H, W)
            for block in stage:  # type: ignore[attr-defined]
                features = block(features, told)
        return F.pixel_shuffle(self.leave(features), self.config.patch)


class _Block(nn.Module):
    """Two convolutions around a shortcut; scale and shift between them tell step and class."""

    def __init__(self, config: NetworkConfig, in_channels: int, channels: int, side: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            _norm(config, in_channels, side), _activation(config),
            nn.Conv2d(in_channels, channels, 3, padding=1),
        )  # fmt: skip
        self.norm = _norm(config, channels, side)
        self.tell = nn.Sequential(_activation(config), nn.Linear(4 * config.width, 2 * channels))
        self.second = nn.Sequential(
            _activation(config), nn.Dropout(config.dropout),
            nn.Conv2d(channels, channels, 3, padding=1),
        )  # fmt: skip
        same = in_channels == channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, channels, 1)

    def forward(self, features: Tensor, told: Tensor) -> Tensor:
        """Features (N, C, H, W), told (N, 4 * width) -> (N, channels, H, W)."""
        scale, shift = self.tell(told)[:, :, None, None].chunk(2, dim=1)
        inner = self.norm(self.first(features)) * (1 + scale) + shift
        return self.shortcut(features) + self.second(inner)


class _Attention(nn.Module):
    """Each place of the plane looks at every other (Vaswani et al., arXiv:1706.03762)."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(_groups(channels), channels)
        self.ask = nn.Conv2d(channels, 3 * channels, 1)
        self.answer = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        count, channels, height, width = features.shape
        asked = self.ask(self.norm(features))
        parts = asked.reshape(count, 3, self.heads, channels // self.heads, height * width)
        query, key, value = parts.transpose(3, 4).unbind(dim=1)  # (N, heads, H * W, C / heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        plane = mixed.transpose(2, 3).reshape(count, channels, height, width)
        return features + self.answer(plane)


def _stage(config: NetworkConfig, route: list[int], side: int) -> nn.ModuleList:
    pairs = itertools.pairwise(route)
    return nn.ModuleList(_Block(config, before, after, side) for before, after in pairs)


def _halve(config: NetworkConfig, channels: int) -> nn.Module:
    if config.down is Down.POOL:
        return nn.MaxPool2d(2)
    return nn.Conv2d(channels, channels, 4, 2, 1)


def _norm(config: NetworkConfig, channels: int, side: int) -> nn.Module:
    if config.norm is Norm.LAYER:
        return nn.LayerNorm([channels, side, side])
    return nn.GroupNorm(_groups(channels), channels) if config.norm is Norm.GROUP else nn.Identity()


def _groups(channels: int) -> int:
    """About eight channels a group, and a number that divides them."""
    return math.gcd(channels, max(1, channels // 8))


def _activation(config: NetworkConfig) -> nn.Module:
    return nn.GELU() if config.activation is Activation.GELU else nn.SiLU()


def _unet(in_channels: int, classes: int, **shape: Any) -> DenoisingUNet:
    return DenoisingUNet(NetworkConfig(channels=in_channels, classes=classes, **shape))


NETWORKS = {"unet": _unet}
