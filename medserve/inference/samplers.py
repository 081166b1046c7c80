"""From noise to an image: three ways to walk a diffusion process backwards.

    DDPM          one random step after the other (Ho et al., arXiv:2006.11239)
    DDIM          the same steps without new noise, so that many can be skipped (Song et al.,
                  arXiv:2010.02502)
    DPM-Solver++  second-order multistep solver in log-SNR (Lu et al., arXiv:2211.01095,
                  algorithm 2): the fewest calls of the network

One image is walked at a time, with its own generator: an image depends on its seed and settings
alone and never on what else a server happens to work on. The network costs all of the time; more
images in one call would gain a fifth to a third on a CPU and cost that promise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medserve.errors import InvalidRequestError
from medserve.inference.schedules import NoiseSchedule
from medserve.spec.generation import Prediction, SamplerKind

__all__ = ["Denoise", "Prediction", "SamplerKind", "State", "clean_image", "guided", "plan", "walk"]

_Array = npt.NDArray[np.float32]
Denoise = Callable[[_Array, int], _Array]  # (noisy image (C, H, W), step) -> clean image (C, H, W)


# Log-SNR under which nothing of an image is left to see; the cosine schedule goes far beyond it.
_NOISIEST = -5.0


@dataclass(frozen=True, eq=False)
class State:
    """Where a walk stands.

    Attributes:
        done: Calls of the network so far.
        total: Calls in all.
        noisy: The image on its way, float32 (C, H, W); the result once done equals total.
        clean: The network's view of the finished image, float32 (C, H, W) in [-1, 1].
    """

    done: int
    total: int
    noisy: _Array
    clean: _Array


def plan(schedule: NoiseSchedule, steps: int) -> tuple[int, ...]:
    """The steps of the process to call the network at, from T - 1 down to 0.

    Raises:
        InvalidRequestError: fewer than 1 step or more than the process has.
    """
    if not 1 <= steps <= schedule.steps:
        raise InvalidRequestError(
            f"steps: expected 1 to {schedule.steps}, got {steps}; 20 are enough for dpm-solver++"
        )
    # Even in log-SNR, as DPM-Solver asks for images of few pixels: with DDIM's 20 calls and the
    # linear schedule the error is a quarter of that of steps that are even in time. Both ends
    # belong to the route: without step 0 the last jump would lose the grain of the data.
    curve = schedule.log_snr
    wanted = np.linspace(max(float(curve[-1]), _NOISIEST), float(curve[0]), steps)
    route = np.searchsorted(-curve, -wanted)
    route[0] = schedule.steps - 1
    order = np.arange(steps)
    route = np.minimum.accumulate(route + order) - order  # each step once
    return tuple(int(step) for step in np.maximum(route, steps - 1 - order))


def clean_image(
    output: _Array, noisy: _Array, schedule: NoiseSchedule, step: int, prediction: Prediction
) -> _Array:
    """The network's output at a step -> the clean image that it implies, clipped to [-1, 1]."""
    signal, noise = np.float32(schedule.signal(step)), np.float32(schedule.noise(step))
    if prediction is Prediction.VELOCITY:
        clean = signal * noisy - noise * output
    else:
        clean = (noisy - noise * output) / signal
    return np.clip(clean, -1.0, 1.0)


def guided(conditional: _Array, unconditional: _Array, scale: float) -> _Array:
    """Classifier-free guidance (Ho & Salimans, arXiv:2207.12598); scale 1 is the class alone."""
    return unconditional + np.float32(scale) * (conditional - unconditional)


def walk(
    denoise: Denoise,
    schedule: NoiseSchedule,
    kind: SamplerKind,
    steps: int,
    start: _Array,
    draws: np.random.Generator,
) -> Iterator[State]:
    """Walk one image from `start`, which is pure noise (C, H, W), to its end; a state per call.

    Args:
        denoise: The network, with its class and its guidance, as a view of the clean image.
        schedule: The process it was trained on.
        kind: The way backwards.
        steps: Calls of the network.
        start: Standard normal noise, float32 (C, H, W).
        draws: Where DDPM takes its further noise from.

    Raises:
        InvalidRequestError: more steps than the process has.
    """
    route = plan(schedule, steps)
    noisy, earlier = start, None
    for done, (step, following) in enumerate(zip(route, (*route[1:], -1), strict=True), start=1):
        clean = denoise(noisy, step)
        move = _Move(schedule, step, following)
        if following < 0:
            noisy = clean
        elif kind is SamplerKind.DPM_SOLVER:
            noisy = _dpm_solver(noisy, clean, earlier, move)
            earlier = (clean, move)
        else:
            added = _added_noise(move) if kind is SamplerKind.DDPM else 0.0
            noisy = _ancestor(noisy, clean, added, move)
            if added:
                noisy += np.float32(added) * draws.standard_normal(noisy.shape, dtype=np.float32)
        yield State(done, steps, noisy, clean)


@dataclass(frozen=True)
class _Move:
    """From one step of the process to an earlier one."""

    schedule: NoiseSchedule
    step: int
    following: int

    @property
    def reach(self) -> float:
        """How far it goes in log-SNR (h in the DPM-Solver papers)."""
        return float(self.schedule.log_snr[self.following] - self.schedule.log_snr[self.step])


def _added_noise(move: _Move) -> float:
    """Standard deviation of DDPM's posterior (Song et al., equation 16 with eta 1)."""
    schedule = move.schedule
    kept = schedule.signal(move.step) / schedule.signal(move.following)
    return schedule.noise(move.following) / schedule.noise(move.step) * math.sqrt(1 - kept**2)


def _ancestor(noisy: _Array, clean: _Array, added: float, move: _Move) -> _Array:
    """Song et al., equation 12, without the noise that the caller adds."""
    schedule = move.schedule
    epsilon = noisy - np.float32(schedule.signal(move.step)) * clean
    epsilon /= np.float32(schedule.noise(move.step))
    kept = math.sqrt(max(0.0, schedule.noise(move.following) ** 2 - added**2))
    moved: _Array = np.float32(schedule.signal(move.following)) * clean
    moved += np.float32(kept) * epsilon
    return moved


def _dpm_solver(
    noisy: _Array, clean: _Array, earlier: tuple[_Array, _Move] | None, move: _Move
) -> _Array:
    """One step of DPM-Solver++(2M); the first is of first order."""
    direction: _Array = clean
    if earlier is not None:
        clean_before, move_before = earlier
        lead = np.float32(move.reach / (2 * move_before.reach))
        direction = clean + lead * (clean - clean_before)
    schedule = move.schedule
    shrink = np.float32(schedule.noise(move.following) / schedule.noise(move.step))
    gain = np.float32(-schedule.signal(move.following) * math.expm1(-move.reach))
    return np.asarray(shrink * noisy + gain * direction, dtype=np.float32)
