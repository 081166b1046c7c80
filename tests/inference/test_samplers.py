"""Samplers against a data distribution whose perfect denoiser is known in closed form."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from medserve.errors import ConfigError, InvalidRequestError
from medserve.inference.samplers import (
    Denoise,
    Prediction,
    SamplerKind,
    State,
    clean_image,
    guided,
    plan,
    walk,
)
from medserve.inference.schedules import NoiseSchedule, ScheduleKind

MEAN, DEVIATION = 0.2, 0.1  # of the made-up data: each pixel normal, on its own
SHAPE = (1, 64, 64)
BOTH = pytest.mark.parametrize("kind", list(ScheduleKind))


def perfect(schedule: NoiseSchedule) -> Denoise:
    """The mean of x_0 given x_t for normal data: what a perfectly trained network would say."""

    def denoise(noisy: npt.NDArray[np.float32], step: int) -> npt.NDArray[np.float32]:
        signal, noise = schedule.signal(step), schedule.noise(step)
        weight = signal * DEVIATION**2 / (signal**2 * DEVIATION**2 + noise**2)
        return (MEAN + weight * (noisy - signal * MEAN)).astype(np.float32)

    return denoise


def sample(
    kind: SamplerKind, steps: int, seed: int = 0, schedule: NoiseSchedule | None = None
) -> list[State]:
    schedule = schedule or NoiseSchedule()
    draws = np.random.Generator(np.random.Philox(seed))
    start = draws.standard_normal(SHAPE, dtype=np.float32)
    return list(walk(perfect(schedule), schedule, kind, steps, start, draws))


@BOTH
def test_signal_and_noise_keep_the_variance_at_one(kind: ScheduleKind) -> None:
    schedule = NoiseSchedule(kind)
    for step in (-1, 0, 1, 500, 999):
        assert schedule.signal(step) ** 2 + schedule.noise(step) ** 2 == pytest.approx(1)


@BOTH
def test_the_signal_falls_with_every_step_and_ends_near_pure_noise(kind: ScheduleKind) -> None:
    schedule = NoiseSchedule(kind)
    assert (np.diff(schedule.log_snr) < 0).all()
    assert schedule.alpha_bar[0] > 0.999
    assert schedule.alpha_bar[-1] < 1e-4


def test_the_linear_schedule_has_the_published_end() -> None:
    # Ho et al., section 4: beta 1e-4 to 0.02 over 1000 steps leave a KL of about 1e-5 bits a
    # dimension to the normal distribution, for which alpha_bar is 4.0e-5.
    assert NoiseSchedule().alpha_bar[-1] == pytest.approx(4.0e-5, rel=0.02)


def test_betas_out_of_order_are_refused_with_their_values() -> None:
    with pytest.raises(ConfigError, match=r"0\.02 and 0\.0001"):
        NoiseSchedule(min_beta=0.02, max_beta=1e-4)


@pytest.mark.parametrize(
    ("kind", "steps"),
    [(SamplerKind.DDPM, 1000), (SamplerKind.DDIM, 50), (SamplerKind.DPM_SOLVER, 20)],
)
def test_a_perfect_network_gives_back_the_mean_and_spread_of_its_data(
    kind: SamplerKind, steps: int
) -> None:
    image = sample(kind, steps)[-1].noisy
    assert image.mean() == pytest.approx(MEAN, abs=0.01)
    assert image.std() == pytest.approx(DEVIATION, rel=0.12)


def test_second_order_steps_come_nearer_to_the_limit_than_ddim_with_as_many_calls() -> None:
    limit = sample(SamplerKind.DDIM, 1000)[-1].noisy
    by_kind = {
        kind: float(np.abs(sample(kind, 15)[-1].noisy - limit).mean())
        for kind in (SamplerKind.DDIM, SamplerKind.DPM_SOLVER)
    }
    assert by_kind[SamplerKind.DPM_SOLVER] < 0.5 * by_kind[SamplerKind.DDIM]


def test_a_seed_gives_the_same_image_and_another_seed_another() -> None:
    first, again = (sample(SamplerKind.DDPM, 30, seed=7)[-1].noisy for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(sample(SamplerKind.DDPM, 30, seed=8)[-1].noisy - first).max() > 0.1


def test_every_call_of_the_network_is_one_state_and_the_last_one_is_the_result() -> None:
    states = sample(SamplerKind.DPM_SOLVER, 5)
    assert [(each.done, each.total) for each in states] == [(n, 5) for n in range(1, 6)]
    np.testing.assert_array_equal(states[-1].noisy, states[-1].clean)


@pytest.mark.parametrize("prediction", list(Prediction))
def test_a_perfect_output_leads_back_to_the_clean_image(prediction: Prediction) -> None:
    schedule, step = NoiseSchedule(ScheduleKind.COSINE), 400
    draws = np.random.default_rng(0)
    clean = draws.uniform(-1, 1, SHAPE).astype(np.float32)
    epsilon = draws.standard_normal(SHAPE, dtype=np.float32)
    signal, noise = schedule.signal(step), schedule.noise(step)
    noisy = (signal * clean + noise * epsilon).astype(np.float32)
    output = epsilon if prediction is Prediction.NOISE else signal * epsilon - noise * clean
    found = clean_image(output.astype(np.float32), noisy, schedule, step, prediction)
    np.testing.assert_allclose(found, clean, atol=1e-5)


def test_guidance_of_one_is_the_class_alone_and_of_zero_no_class() -> None:
    of_class, of_none = (np.full(3, value, dtype=np.float32) for value in (2.0, -1.0))
    np.testing.assert_array_equal(guided(of_class, of_none, 1.0), of_class)
    np.testing.assert_array_equal(guided(of_class, of_none, 0.0), of_none)


def test_a_route_starts_at_pure_noise_and_visits_different_steps() -> None:
    schedule = NoiseSchedule()
    for steps in (1, 3, 20, 999, 1000):
        route = plan(schedule, steps)
        assert route[0] == 999
        assert len(set(route)) == steps
        assert list(route) == sorted(route, reverse=True)
        assert route[-1] >= 0


@pytest.mark.parametrize("steps", [0, 1001, -3])
def test_steps_that_the_process_does_not_have_are_refused(steps: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"1 to 1000, got {steps}"):
        plan(NoiseSchedule(), steps)
