from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as pillow

from medserve.results.files import heatmap


def opened(values: npt.NDArray[np.floating], size: tuple[int, int]) -> pillow.Image:
    return pillow.open(io.BytesIO(heatmap.encode(values, size)))


def ramp() -> npt.NDArray[np.float64]:
    """From -4 at the left to 4 at the right: (6, 9)."""
    return np.tile(np.linspace(-4.0, 4.0, 9), (6, 1))


def test_the_picture_has_the_size_of_the_input() -> None:
    picture = opened(ramp(), (363, 360))
    assert (picture.height, picture.width) == (363, 360)
    assert picture.format == "PNG"


def test_values_can_be_read_back_from_the_palette() -> None:
    values = ramp()
    levels = np.asarray(opened(values, values.shape)).astype(float)
    back = (levels - 128) / 127 * heatmap.full_colour(values)
    np.testing.assert_allclose(back, values, atol=4 / 127)


def test_evidence_is_vermilion_counter_evidence_blue_and_the_rest_clear() -> None:
    values = ramp()
    colours = np.asarray(opened(values, values.shape).convert("RGBA"))[0]
    assert colours[0].tolist() == [0, 114, 178, 200]
    assert colours[-1].tolist() == [213, 94, 0, 200]
    assert colours[4, 3] == 0
    assert (np.diff(colours[4:, 3].astype(int)) > 0).all()  # the more opaque the stronger


def test_weak_evidence_stays_pale() -> None:
    weak = ramp() / 100  # 0.04 nats at most: the odds hardly move
    assert heatmap.full_colour(weak) == pytest.approx(np.log(2))
    assert np.asarray(opened(weak, weak.shape).convert("RGBA"))[..., 3].max() < 15


def test_a_map_without_any_evidence_is_clear_everywhere() -> None:
    picture = opened(np.zeros((4, 4)), (8, 8)).convert("RGBA")
    assert np.asarray(picture)[..., 3].max() == 0


def test_the_map_of_a_huge_image_fits_into_an_answer() -> None:
    steps = np.random.default_rng(0).normal(size=(16, 16))
    values = np.kron(steps, np.ones((8, 8)))  # as occlusion makes them, at its most uneven
    assert len(heatmap.encode(values, (5000, 8000))) < 3_000_000  # 40 megapixels


def test_what_the_network_did_not_see_is_clear() -> None:
    content = heatmap.encode(np.full((6, 6), 4.0), (40, 100), (30.0, 0.0, 70.0, 40.0))
    alphas = np.asarray(pillow.open(io.BytesIO(content)).convert("RGBA"))[..., 3]
    assert alphas.shape == (40, 100)
    assert alphas[:, 30:70].min() == 200
    assert alphas[:, :30].max() == alphas[:, 70:].max() == 0
