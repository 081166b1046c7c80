from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as pillow

from medserve.imaging import Image
from medserve.imaging.intensity import full_range
from medserve.inference.fit import fit_colour, fit_grey, fit_image, fit_lanczos, fitted_box
from medserve.spec import InputKind, InputSpec, Proportions
from tests.phantoms import disc, wedge


def test_an_image_of_the_right_size_passes_unchanged() -> None:
    plane = full_range(wedge(64, 64), 255)
    np.testing.assert_array_equal(fit_grey(Image(plane), (64, 64)), plane[np.newaxis])


def test_a_wide_image_keeps_its_proportions_between_black_bars() -> None:
    plane = fit_grey(Image(np.ones((32, 128), np.float32)), (64, 64))[0]
    np.testing.assert_allclose(plane[24:40], 1.0, atol=1e-6)
    assert plane[:24].max() == plane[40:].max() == 0.0


def test_a_disc_stays_where_it_was() -> None:
    plane = fit_grey(Image(full_range(disc(240, 400), 255)), (64, 64))[0]
    weights = plane * (plane > 0.5)
    row, column = (float((weights * axis).sum() / weights.sum()) for axis in np.mgrid[:64, :64])
    # The source's centre in pixels, 96.5 x 120.5, on 38 x 64 pixels from row 13.
    assert abs(row - (96.5 * 38 / 240 - 0.5 + 13)) < 0.1
    assert abs(column - (120.5 * 64 / 400 - 0.5)) < 0.1


def test_colour_becomes_luma() -> None:
    red = np.zeros((64, 64, 3), np.float32)
    red[..., 0] = 1.0
    np.testing.assert_allclose(fit_grey(Image(red), (64, 64)), 0.299, atol=1e-6)


def test_each_colour_is_fitted_like_grey_and_a_grey_image_has_three_alike() -> None:
    colour = np.zeros((240, 400, 3), np.float32)
    for channel, value in enumerate((255, 128, 64)):
        colour[..., channel] = full_range(disc(240, 400), 255) * value / 255
    fitted = fit_colour(Image(colour), (64, 64))
    for channel in range(3):
        np.testing.assert_array_equal(
            fitted[channel], fit_grey(Image(colour[..., channel].copy()), (64, 64))[0]
        )
    grey = fit_colour(Image(np.ones((64, 64), np.float32)), (64, 64))
    np.testing.assert_array_equal(grey, np.ones((3, 64, 64), np.float32))


def test_the_box_says_where_a_fitted_image_lies() -> None:
    image = Image(np.ones((30, 90), np.float32))
    plane, box = fit_grey(image, (64, 64))[0], fitted_box(image, (64, 64))
    assert (box.height, box.width) == (21, 64)
    inside = plane[box.top : box.top + box.height, box.left : box.left + box.width]
    assert inside.min() == 1.0
    assert plane.sum() == inside.sum()


@pytest.mark.parametrize("fit", [fit_grey, fit_colour, fit_lanczos])
@given(aspect=st.floats(0.25, 4))
@settings(max_examples=20, deadline=None)
def test_a_disc_of_oblong_pixels_is_round_to_the_network(
    fit: Callable[[Image, tuple[int, int]], npt.NDArray[np.float32]], aspect: float
) -> None:
    rows, columns = np.mgrid[: round(240 / aspect), :240]
    inside = ((rows + 0.5) * aspect - 120) ** 2 + (columns + 0.5 - 120) ** 2 < 90**2
    plane = fit(Image(inside.astype(np.float32), aspect), (64, 64))[0]
    across, down = plane.max(axis=0), plane.max(axis=1)
    assert abs(float(across.sum() - down.sum())) < 2.5  # of 48 pixels
    assert plane.sum() == pytest.approx(np.pi * 24**2, rel=0.03)


def test_oblong_pixels_of_the_right_number_are_fitted_all_the_same() -> None:
    image = Image(np.ones((64, 64), np.float32), 2.0)
    box = fitted_box(image, (64, 64))
    assert (box.top, box.left, box.height, box.width) == (0, 16, 64, 32)
    assert fit_grey(image, (64, 64)).sum() == pytest.approx(64 * 32, rel=1e-3)


@given(
    height=st.integers(8, 300), width=st.integers(8, 300), side=st.integers(16, 64),
    share=st.sampled_from([1.0, 0.875, 0.5]), aspect=st.sampled_from([1.0, 1.5]),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_the_middle_is_what_resizing_and_cutting_leave(
    height: int, width: int, side: int, share: float, aspect: float
) -> None:
    plane = np.random.default_rng(height * width).random((height, width), dtype=np.float32)
    spec = InputSpec(
        (InputKind.RASTER,), (side, side), proportions=Proportions.CROPPED, middle=share
    )
    found = fit_image(Image(plane, aspect), spec)[0]
    short = round(side / share)
    tall = height * aspect
    rows, columns = (
        (short, int(short * width / tall)) if tall <= width else (int(short * tall / width), short)
    )
    whole = pillow.fromarray(plane).resize((columns, rows), pillow.Resampling.BILINEAR)
    top, left = round((rows - side) / 2), round((columns - side) / 2)
    expected = np.asarray(whole)[top : top + side, left : left + side]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_line_of_pixels_is_cut_without_growing() -> None:
    spec = InputSpec((InputKind.RASTER,), (64, 64), proportions=Proportions.CROPPED)
    assert fit_image(Image(np.ones((2, 200_000), np.float32)), spec).shape == (1, 64, 64)
