"""How a diffusion process turns an image into noise, step by step (Ho et al., arXiv:2006.11239).

    x_t = signal(t) * x_0 + noise(t) * epsilon,    signal(t)^2 + noise(t)^2 = 1

Steps are counted 0 … T - 1; step t leaves the share `alpha_bar[t]` of the image's variance. The
clean image itself is one step before 0, where `alpha_bar` is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from medserve.errors import ConfigError
from medserve.spec.generation import ScheduleKind

__all__ = ["NoiseSchedule", "ScheduleKind"]

_Array = npt.NDArray[np.float64]

_COSINE_OFFSET = 0.008  # Nichol & Dhariwal, equation 17: the first step stays visible in 8 bits
_MOST_BETA = 0.999  # the same: no step wipes out everything


@dataclass(frozen=True)
class NoiseSchedule:
    """The betas of a process of T steps and what follows from them.

    Attributes:
        kind: The form of the curve.
        steps: T.
        min_beta: Share of noise that the first step adds; of the linear schedule only.
        max_beta: Share that the last step adds; of the linear schedule only.
    """

    kind: ScheduleKind = ScheduleKind.LINEAR
    steps: int = 1000
    min_beta: float = 1e-4
    max_beta: float = 0.02

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ConfigError(f"schedule: expected at least 2 steps, got {self.steps}")
        if not 0 < self.min_beta < self.max_beta < 1:
            raise ConfigError(
                "schedule: expected 0 < min_beta < max_beta < 1, "
                f"got {self.min_beta:g} and {self.max_beta:g}"
            )

    @cached_property
    def betas(self) -> _Array:
        """Share of noise that each step adds, float64 (T,)."""
        if self.kind is ScheduleKind.LINEAR:
            return np.linspace(self.min_beta, self.max_beta, self.steps)
        edges = np.linspace(0.0, 1.0, self.steps + 1)
        angle = (edges + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * np.pi / 2
        share = np.cos(angle) ** 2
        return np.asarray(np.minimum(1 - share[1:] / share[:-1], _MOST_BETA))

    @cached_property
    def alpha_bar(self) -> _Array:
        """Share of the image's variance that is left after each step, float64 (T,), falling."""
        return np.asarray(np.cumprod(1 - self.betas))

    @cached_property
    def log_snr(self) -> _Array:
        """log(signal / noise) after each step, float64 (T,), falling: DPM-Solver's lambda."""
        return np.asarray(0.5 * (np.log(self.alpha_bar) - np.log1p(-self.alpha_bar)))

    def signal(self, step: int) -> float:
        """Factor of the image at a step; 1 at step -1, the clean image."""
        return float(np.sqrt(self.alpha_bar[step])) if step >= 0 else 1.0

    def noise(self, step: int) -> float:
        """Factor of the noise at a step; 0 at step -1."""
        return float(np.sqrt(1 - self.alpha_bar[step])) if step >= 0 else 0.0
