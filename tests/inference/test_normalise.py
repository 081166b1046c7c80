from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medserve.errors import ConfigError
from medserve.inference.normalise import (
    Normalisation,
    NormalisationKind,
    normalise,
    percentile,
    window,
    z_score,
)
from medserve.spec.volumes import NormalisationSpec

KINDS = [
    Normalisation(NormalisationKind.PERCENTILE),
    Normalisation(NormalisationKind.PERCENTILE, foreground_only=True),
    Normalisation(NormalisationKind.WINDOW, -160.0, 240.0),
    Normalisation(NormalisationKind.Z_SCORE),
    Normalisation(NormalisationKind.Z_SCORE, foreground_only=True),
]


@pytest.mark.parametrize("normalise", KINDS)
@settings(deadline=None, max_examples=25)
@given(
    array=st.sampled_from(["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"]).flatmap(
        lambda dtype: arrays(
            dtype,
            (3, 4, 5),
            elements=st.floats(-1000, 1000, width=32) if dtype[0] == "f" else None,
        )
    )
)
def test_any_numbers_become_finite_float32_of_the_same_shape(
    normalise: Normalisation, array: npt.NDArray[np.generic]
) -> None:
    before = array.copy()
    scaled = normalise(array)
    assert scaled.dtype == np.float32
    assert scaled.shape == array.shape
    assert np.isfinite(scaled).all()
    if normalise.kind is not NormalisationKind.Z_SCORE:
        assert scaled.min() >= 0
        assert scaled.max() <= 1
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("value", [0, 255, 7])
@pytest.mark.parametrize("normalise", [k for k in KINDS if k.kind != "window"])
def test_a_constant_image_becomes_zero(normalise: Normalisation, value: int) -> None:
    assert not normalise(np.full((4, 4, 4), value, np.uint8)).any()
    assert not normalise(np.full((4, 4, 4), value + 0.1, np.float32)).any()


def test_percentiles_are_numpys_and_outliers_are_clipped() -> None:
    array = np.arange(1001, dtype=np.int16)
    array[-1] = 30000  # a burnt-out voxel
    scaled = percentile(array, 10, 90)
    np.testing.assert_allclose(scaled[500], (500 - 100) / 800, atol=1e-6)
    assert scaled[-1] == 1.0
    assert scaled[0] == 0.0


def test_unsigned_integers_below_the_offset_do_not_wrap_around() -> None:
    np.testing.assert_allclose(
        window(np.array([0, 100, 200], np.uint8), 50, 150), [0, 0.5, 1], atol=1e-6
    )


def test_a_window_is_the_same_for_every_type() -> None:
    values = np.array([-1000, -160, 40, 240, 3000])
    expected = [0, 0, 0.5, 1, 1]
    for dtype in (np.int16, np.int32, np.float32, np.float64):
        np.testing.assert_allclose(window(values.astype(dtype), -160, 240), expected, atol=1e-6)


def test_z_score_has_zero_mean_and_unit_variance() -> None:
    array = np.random.default_rng(0).integers(100, 4000, (20, 20, 20)).astype(np.uint16)
    scaled = z_score(array)
    assert scaled.mean(dtype=np.float64) == pytest.approx(0, abs=1e-4)
    assert scaled.std(dtype=np.float64) == pytest.approx(1, abs=1e-4)


def test_padding_around_the_foreground_does_not_move_its_scale() -> None:
    inner = np.random.default_rng(0).normal(500, 50, (8, 8, 8)).astype(np.float32)
    padded = np.pad(inner, 6)
    normalise = Normalisation(NormalisationKind.Z_SCORE, foreground_only=True)
    np.testing.assert_allclose(normalise(padded)[6:-6, 6:-6, 6:-6], z_score(inner), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float64, np.uint32])
def test_a_large_offset_does_not_eat_the_contrast(dtype: type[np.generic]) -> None:
    ramp = np.arange(64).reshape(4, 4, 4)
    array = (ramp + 4_000_000_000).astype(dtype)
    np.testing.assert_allclose(percentile(array, 0, 100), ramp / 63, atol=1e-6)


def test_a_small_object_on_even_ground_is_still_seen() -> None:
    array = np.zeros((20, 20, 20), np.float32)
    array[10, 10, 10] = 5
    assert percentile(array)[10, 10, 10] == 1.0


@pytest.mark.parametrize(("low", "high"), [(5.0, 5.0), (9.0, 1.0), (-1.0, 99.0), (1.0, 101.0)])
def test_limits_that_cannot_be_are_refused_when_configured(low: float, high: float) -> None:
    with pytest.raises(ConfigError, match="normalisation"):
        Normalisation(NormalisationKind.PERCENTILE, low, high)


def test_a_window_of_no_width_is_a_mistake_of_the_code() -> None:
    with pytest.raises(ValueError, match="low < high"):
        window(np.zeros(3), 1.0, 1.0)


def test_rounding_of_a_constant_is_no_contrast() -> None:
    constant = np.full(1000, 7.0, dtype=np.float32)
    constant[::3] = np.nextafter(np.float32(7.0), np.float32(8.0))
    np.testing.assert_array_equal(percentile(constant), 0.0)


def test_fixed_figures_clip_shift_and_scale() -> None:
    step = NormalisationSpec(NormalisationKind.STANDARD, -100.0, 300.0, mean=50.0, deviation=25.0)
    array = np.array([-1000, -100, 50, 100, 300, 2000], dtype=np.int16)
    np.testing.assert_allclose(normalise(array, [step]), [-6, -6, 0, 2, 10, 10])


def test_what_is_zero_is_not_counted_and_stays() -> None:
    array = np.array([0, 0, 2, 4, 6], dtype=np.float32)
    found = normalise(array, [NormalisationSpec(NormalisationKind.Z_SCORE_NONZERO)])
    np.testing.assert_array_equal(found[:2], 0)
    np.testing.assert_allclose([found[2:].mean(), found[2:].std()], [0, 1], atol=1e-6)


def test_holes_of_the_body_are_counted() -> None:
    array = np.array([0, 0, 2, 4, 6], dtype=np.float32)
    body = np.array([False, True, True, True, True])
    found = normalise(array, [NormalisationSpec(NormalisationKind.Z_SCORE_BODY)], body)
    assert found[0] == 0
    np.testing.assert_allclose([found[1:].mean(), found[1:].std()], [0, 1], atol=1e-6)


def test_steps_follow_each_other() -> None:
    array = np.array([5, 10, 15], dtype=np.uint8)
    steps = [
        NormalisationSpec(NormalisationKind.MIN_MAX),
        NormalisationSpec(NormalisationKind.STANDARD, -np.inf, np.inf, mean=0.5, deviation=0.25),
    ]
    np.testing.assert_allclose(normalise(array, steps), [-2, 0, 2])
    np.testing.assert_array_equal(
        normalise(array, [NormalisationSpec(NormalisationKind.NONE)]), [5, 10, 15]
    )
