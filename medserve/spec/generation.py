"""The part of a model's description that only models that make images have."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from medserve.errors import ConfigError

__all__ = ["GenerationSpec", "Prediction", "SamplerKind", "ScheduleKind"]


class ScheduleKind(enum.StrEnum):
    """How the share of noise grows along a diffusion process."""

    LINEAR = "linear"  # beta grows evenly (Ho et al., arXiv:2006.11239)
    COSINE = "cosine"  # alpha_bar falls as a squared cosine (Nichol & Dhariwal, arXiv:2102.09672)


class Prediction(enum.StrEnum):
    """What a network was trained to say about a noisy image."""

    NOISE = "noise"  # epsilon (Ho et al.)
    VELOCITY = "v"  # signal * epsilon - noise * x_0 (Salimans & Ho, arXiv:2202.00512)


class SamplerKind(enum.StrEnum):
    """A way from noise to an image; see `medserve.inference.samplers`."""

    DDPM = "ddpm"
    DDIM = "ddim"
    DPM_SOLVER = "dpm-solver++"


@dataclass(frozen=True)
class GenerationSpec:
    """The process that a network was trained on, and what callers may ask of it.

    The model's `labels` are the classes that the network was told, in order; there are none for
    one that was trained without classes. A conditional network knows one more class, whose number
    is that of the labels: "no class", which guidance needs.

    Attributes:
        schedule: How noise grows.
        prediction: What the network says about a noisy image.
        sizes: Sides of square images that the weights can draw; the first is the default.
        steps: T of the process; no sampler may take more.
        min_beta: Share of noise that the first step adds; of the linear schedule only.
        max_beta: Share that the last step adds; of the linear schedule only.
        default_sampler: Where a caller names none.
        default_steps: Calls of the network an image, where a caller names none.
        default_guidance: Weight of the class, where a caller names none; 1 is the class alone, 0
            no class.
        max_guidance: The largest that still draws images.
        max_images: In one call.
        max_work: In one call: images * steps * pixels over those of the default size, twice as
            much with a guidance other than 0 and 1, which asks the network twice.
        max_replacements: Further seeds that one call may try where images come too near to a
            training image and are withheld.
    """

    schedule: ScheduleKind
    prediction: Prediction
    sizes: tuple[int, ...]
    steps: int = 1000
    min_beta: float = 1e-4
    max_beta: float = 0.02
    default_sampler: SamplerKind = SamplerKind.DPM_SOLVER
    default_steps: int = 20
    default_guidance: float = 1.0
    max_guidance: float = 8.0
    max_images: int = 64
    max_work: int = 4000
    max_replacements: int = 16

    def __post_init__(self) -> None:
        if not self.sizes or not all(8 <= size <= 1024 for size in self.sizes):
            raise ConfigError(f"generation: expected sizes from 8 to 1024, got {self.sizes}")
        if not 1 <= self.default_steps <= self.steps:
            raise ConfigError(
                f"generation: expected 1 <= default_steps <= steps, got {self.default_steps} and "
                f"{self.steps}"
            )
        if not 0 <= self.default_guidance <= self.max_guidance:
            raise ConfigError(
                f"generation: expected 0 <= default_guidance <= max_guidance, got "
                f"{self.default_guidance:g} and {self.max_guidance:g}"
            )
        if self.max_images < 1 or self.max_replacements < 0:
            raise ConfigError(
                f"generation: expected max_images >= 1 and max_replacements >= 0, got "
                f"{self.max_images} and {self.max_replacements}"
            )
        if self.max_work < self.default_steps:
            raise ConfigError(
                f"generation: expected max_work for one image of {self.default_steps} steps, got "
                f"{self.max_work}"
            )
