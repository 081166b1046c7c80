from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve.errors import ConfigError
from medserve.results.seen import (
    doubts_about_image,
    doubts_about_shares,
    doubts_about_volumes,
    image_layout,
    image_quantiles,
    image_texture,
    layout_correlation,
    told_apart,
)
from medserve.spec import ModelSpec
from medserve.spec.seen import FrameSeenSpec, SeenSpec, VolumeSeenSpec
from medserve.tasks.result import DoubtReason

SHAPE = (12, 14, 10)
GRID = np.indices(SHAPE) / np.reshape(SHAPE, (3, 1, 1, 1))
IMAGE = (0.5 + 0.5 * np.sin(5.0 * GRID.sum(axis=0))).astype(np.float32)
SIZE_MM = (12.0, 14.0, 10.0)
SEEN = VolumeSeenSpec(
    size_mm=((10.0, 14.0), (12.0, 16.0), (8.0, 12.0)),
    quantiles=tuple(image_quantiles(IMAGE, 19).tolist()),
    quantile_distance=0.05,
    texture=(0.9 * image_texture(IMAGE), 1.1 * image_texture(IMAGE)),
    label_ml={"anterior": (1.0, 2.0)},
)


def reasons(image: np.ndarray, size_mm: tuple[float, ...] = SIZE_MM) -> list[DoubtReason]:
    doubts = doubts_about_image(SEEN, image.astype(np.float32), size_mm)
    return [each.reason for each in doubts]


def test_what_training_saw_raises_no_doubt() -> None:
    assert reasons(IMAGE) == []
    assert doubts_about_volumes(SEEN, {"anterior": 1.5}) == ()


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_another_size_along_any_axis_is_told_with_both_sizes(axis: int, factor: float) -> None:
    size = list(SIZE_MM)
    size[axis] *= factor
    [doubt] = doubts_about_image(SEEN, IMAGE, size)
    assert doubt.reason is DoubtReason.SIZE
    assert f"{size[axis]:.0f}" in doubt.message
    assert "10 to 14 x 12 to 16 x 8 to 12 mm" in doubt.message


@pytest.mark.parametrize("image", [1.0 - IMAGE**3, np.zeros(SHAPE), np.ones(SHAPE), IMAGE**3])
def test_intensities_far_from_the_histogram_are_told(image: np.ndarray) -> None:
    assert DoubtReason.INTENSITIES in reasons(image)


def test_noise_of_the_same_histogram_is_told_by_its_texture() -> None:
    shuffled = np.random.default_rng(0).permutation(IMAGE.ravel()).reshape(SHAPE)
    assert reasons(shuffled) == [DoubtReason.TEXTURE]


@pytest.mark.parametrize("volume_ml", [0.0, 0.7, 2.6])
def test_a_label_of_another_volume_is_told(volume_ml: float) -> None:
    [doubt] = doubts_about_volumes(SEEN, {"anterior": volume_ml, "posterior": 1.0})
    assert doubt.reason is DoubtReason.LABEL_VOLUME
    assert not doubt.is_about_input
    assert doubt.message == f"anterior: {volume_ml:.2f} ml, in the training data 1.00 to 2.00 ml"


@given(limit=st.floats(-1.0, 1.0), apart=st.floats(2e-6, 1.0), digits=st.integers(0, 3))
def test_a_sentence_never_gives_a_value_as_its_own_limit(
    limit: float, apart: float, digits: int
) -> None:
    found, told = told_apart(limit - apart, limit, digits)
    assert float(found) < float(told)
    assert len(found.partition(".")[2]) == len(told.partition(".")[2]) >= digits


def test_a_sentence_has_no_more_digits_than_it_needs() -> None:
    assert told_apart(0.1234, 0.2, 2) == ("0.12", "0.20")
    assert told_apart(0.6281, 0.6312, 2) == ("0.628", "0.631")
    assert told_apart(0.5, 0.5, 2) == ("0.500000", "0.500000")


def test_a_description_that_says_nothing_judges_nothing() -> None:
    assert doubts_about_image(VolumeSeenSpec(), np.zeros(SHAPE, np.float32), (1.0, 1.0, 1.0)) == ()
    assert doubts_about_volumes(VolumeSeenSpec(), {"anterior": 0.0}) == ()


@settings(max_examples=25, deadline=None)
@given(shape=st.tuples(*[st.integers(3, 150)] * 3))
def test_numbers_of_large_volumes_are_those_of_all_their_voxels_nearly(
    shape: tuple[int, int, int],
) -> None:
    image = np.random.default_rng(0).random(shape, dtype=np.float32)
    expected = np.arange(1, 4) / 4
    tolerance = 4.0 / np.sqrt(image.size) + 0.01
    np.testing.assert_allclose(image_quantiles(image, 3), expected, atol=tolerance)
    # Two independent numbers of [0, 1] differ by 1/3, the deviation is the root of 1/12.
    assert image_texture(image) == pytest.approx(np.sqrt(12) / 3, abs=8 * tolerance)


def test_a_constant_image_has_no_texture() -> None:
    assert image_texture(np.full(SHAPE, 0.3, np.float32)) == 0.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"texture": (0.4, 0.2)}, "low <= high"),
        ({"label_ml": {"a": (2.0, 1.0)}}, "low <= high"),
        ({"size_mm": ((1.0, 2.0),)}, "3 ranges"),
        ({"layout": (0.5, 0.5)}, "64 numbers"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(content: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VolumeSeenSpec(**content)  # type: ignore[arg-type]


def test_the_shipped_description_says_what_training_saw() -> None:
    path = Path(__file__).parents[2] / "models/segmentation_3d/model-config.yaml"
    volume = ModelSpec.from_file(path).volume
    assert volume is not None
    assert volume.seen is not None
    assert set(volume.seen.label_ml) == {"anterior", "posterior"}
    assert volume.seen.layout


def laid_out(image: np.ndarray) -> SeenSpec:
    kind = VolumeSeenSpec if image.ndim == 3 else FrameSeenSpec
    return kind(layout=tuple(image_layout(image).tolist()), layout_correlation=0.5)


def smooth(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """An image whose light and dark parts are the four along each axis, none like another."""
    parts = np.random.default_rng(seed).permutation(4 ** len(shape)).reshape((4,) * len(shape))
    return np.kron(parts / parts.size, np.ones(np.array(shape) // 4 + 1))[
        tuple(slice(size) for size in shape)
    ].astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(5, 40), min_size=2, max_size=3).map(tuple),
    seed=st.integers(0, 2**16),
    gain=st.floats(0.2, 0.9),
    offset=st.floats(0.0, 0.1),
)
def test_an_inverted_image_is_told_by_its_layout_and_one_of_another_contrast_is_not(
    shape: tuple[int, ...], seed: int, gain: float, offset: float
) -> None:
    image = smooth(shape, seed)
    seen = laid_out(image)
    assert doubts_about_image(seen, (gain * image + offset).astype(np.float32), None) == ()
    [doubt] = doubts_about_image(seen, np.float32(1.0) - image, None)
    assert doubt.reason is DoubtReason.LAYOUT
    assert "correlation -1.00" in doubt.message


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirrored_volume_is_told_by_its_layout(axis: int) -> None:
    image = smooth(SHAPE, 3)
    [doubt] = doubts_about_image(laid_out(image), np.flip(image, axis).copy(), None)
    assert doubt.reason is DoubtReason.LAYOUT


def test_a_constant_image_is_like_no_layout() -> None:
    assert layout_correlation(image_layout(np.ones(SHAPE, np.float32)), np.arange(64.0)) == 0.0


@pytest.mark.parametrize("share", [0.01, 0.9])
def test_a_label_that_covers_another_share_of_a_frame_is_told(share: float) -> None:
    seen = FrameSeenSpec(label_share={"gland": (0.1, 0.5)})
    [doubt] = doubts_about_shares(seen, {"gland": share})
    assert doubt.reason is DoubtReason.LABEL_AREA
    assert not doubt.is_about_input
    assert doubts_about_shares(seen, {"gland": 0.3}) == ()


def test_a_frame_of_unknown_size_is_judged_by_its_intensities_alone() -> None:
    frame = IMAGE[0]
    seen = FrameSeenSpec(
        size_mm=((10.0, 14.0), (8.0, 12.0)),
        quantiles=tuple(image_quantiles(frame, 19).tolist()),
        quantile_distance=0.05,
    )
    assert doubts_about_image(seen, frame, None) == ()
    assert [each.reason for each in doubts_about_image(seen, frame, (30.0, 10.0))] == ["size"]
    assert [each.reason for each in doubts_about_image(seen, frame**4, None)] == ["intensities"]
