"""The part of a model's description that only models that make images have."""

from __future__ import annotations

import enum
from typing import Annotated

from msgspec import Meta

from medserve.errors import ConfigError
from medserve.spec.section import Section

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


class GenerationSpec(Section, frozen=True):
    """The process that a network was trained on, and what callers may ask of it.

    The model's `labels` are the classes that the network was told, in order; there are none for
    one that was trained without classes. A conditional network knows one more class, whose number
    is that of the labels: "no class", which guidance needs.
    """

    schedule: Annotated[ScheduleKind, Meta(description="How noise grows.")]
    prediction: Annotated[
        Prediction, Meta(description="What the network says about a noisy image.")
    ]
    sizes: Annotated[
        tuple[int, ...],
        Meta(
            description="Sides of square images that the weights can draw; the first is the "
            "default."
        ),
    ]
    steps: Annotated[int, Meta(description="T of the process; no sampler may take more.")] = 1000
    min_beta: Annotated[
        float,
        Meta(description="Share of noise that the first step adds; of the linear schedule only."),
    ] = 0.0001
    max_beta: Annotated[
        float, Meta(description="Share that the last step adds; of the linear schedule only.")
    ] = 0.02
    default_sampler: Annotated[SamplerKind, Meta(description="Where a caller names none.")] = (
        SamplerKind.DPM_SOLVER
    )
    default_steps: Annotated[
        int, Meta(description="Calls of the network an image, where a caller names none.")
    ] = 20
    default_guidance: Annotated[
        float,
        Meta(
            description="Weight of the class, where a caller names none; 1 is the class alone, 0 "
            "no class."
        ),
    ] = 1.0
    max_guidance: Annotated[float, Meta(description="The largest that still draws images.")] = 8.0
    max_images: Annotated[int, Meta(description="In one call.")] = 64
    max_work: Annotated[
        int,
        Meta(
            description="In one call: images * steps * pixels over those of the default size, "
            "twice as much with a guidance other than 0 and 1, which asks the network twice."
        ),
    ] = 4000
    max_replacements: Annotated[
        int,
        Meta(
            description="Further seeds that one call may try where images come too near to a "
            "training image and are withheld."
        ),
    ] = 16

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
