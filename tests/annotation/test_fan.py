"""The fan against the simulator's truth, and against forms that are no fan."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as pillow
from PIL import ImageDraw, ImageFont

from annotation.fan import find_fan
from medserve.errors import InvalidImageError
from simulation.simulate import SimulationConfig, draw_patient, simulate_frame

WRITTEN = SimulationConfig(height=192, width=256)
PLAIN = dataclasses.replace(WRITTEN, overlays=False)


def overlap(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    return float((first & second).sum() / (first | second).sum())


def seed_with(probe_below: bool) -> int:
    """A patient seen from that side; 0 is left out, whose outer lines hear nothing."""
    return next(s for s in range(1, 50) if draw_patient(s, PLAIN).fan.probe_below is probe_below)


def written_on(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A name across the upper left corner, reaching into the picture's box."""
    picture = pillow.fromarray(image)
    font = ImageFont.load_default(11)
    ImageDraw.Draw(picture).text((4, 30), "DOE JANE 1961", fill=255, font=font)
    return np.asarray(picture)


@pytest.mark.parametrize("below", [True, False])
def test_fan_is_found_above_and_below_the_probe(below: bool) -> None:
    frame = simulate_frame(seed_with(below), WRITTEN)
    found = find_fan(frame.image)
    assert overlap(found.mask, frame.fan) > 0.97
    assert found.sector is not None
    assert found.sector.upwards is below


def test_gland_stays_inside_where_the_outer_lines_are_dark() -> None:
    frame = simulate_frame(0, PLAIN)
    found = find_fan(frame.image)
    assert frame.gland.any()
    assert not (frame.gland & ~found.mask).any()
    assert (found.mask & ~frame.fan).sum() < 0.02 * frame.fan.sum()


def test_nothing_that_is_written_around_the_fan_is_left_in_it() -> None:
    frame = simulate_frame(seed_with(True), PLAIN)
    image = written_on(frame.image)
    writing = image != frame.image
    beside = writing & ~frame.fan
    assert beside.sum() > 100
    found = find_fan(image)
    # Letters may reach up to the edge, which is known to a pixel.
    assert (beside & found.mask).sum() <= 0.02 * beside.sum()


def test_box_is_the_smallest_around_the_fan() -> None:
    found = find_fan(simulate_frame(0, PLAIN).image)
    whole = np.zeros_like(found.mask)
    whole[found.box.slices] = True
    assert not (found.mask & ~whole).any()
    inside = found.mask[found.box.slices]
    assert inside[0].any()
    assert inside[-1].any()
    assert inside[:, 0].any()
    assert inside[:, -1].any()


def test_loop_gives_the_fan_away_by_what_changes() -> None:
    """A bright block that a single frame could not tell from tissue stands still in a loop."""
    frame = simulate_frame(seed_with(True), PLAIN)
    generator = np.random.default_rng(0)
    frames = np.stack([np.where(frame.fan, generator.integers(20, 200, frame.fan.shape), 0)
                       for _ in range(4)]).astype(np.uint8)  # fmt: skip
    frames[:, 4:50, 4:60] = 230
    found = find_fan(frames.max(axis=0), frames.max(axis=0) - frames.min(axis=0))
    assert overlap(found.mask, frame.fan) > 0.97
    assert not found.mask[4:50, 4:60].any()


def test_fan_of_a_large_picture_is_found_at_its_own_size() -> None:
    frame = simulate_frame(1, PLAIN)
    large = frame.image.repeat(5, axis=0).repeat(5, axis=1)
    found = find_fan(large)
    assert found.mask.shape == large.shape
    assert overlap(found.mask, frame.fan.repeat(5, axis=0).repeat(5, axis=1)) > 0.97


def test_picture_of_a_linear_probe_keeps_its_rectangle() -> None:
    image = np.zeros((200, 260), dtype=np.uint8)
    image[40:180, 50:230] = np.random.default_rng(0).integers(30, 200, (140, 180))
    found = find_fan(image)
    assert found.sector is None
    np.testing.assert_allclose(
        (found.box.top, found.box.left, found.box.bottom, found.box.right), (40, 50, 180, 230),
        atol=3,
    )  # fmt: skip


def test_cropped_picture_is_kept_whole() -> None:
    image = np.random.default_rng(0).integers(30, 200, (150, 210)).astype(np.uint8)
    assert find_fan(image).mask.mean() > 0.98


@pytest.mark.parametrize("image", [
    np.zeros((120, 160), dtype=np.uint8),
    written_on(np.zeros((120, 160), dtype=np.uint8)),
], ids=["black", "writing alone"])  # fmt: skip
def test_picture_without_a_lit_region_is_refused(image: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(InvalidImageError, match="expected an ultrasound picture"):
        find_fan(image)


def test_writing_inside_the_fan_is_counted() -> None:
    frame = simulate_frame(0, PLAIN)
    found = find_fan(frame.image)
    row, column = (int(each) for each in np.argwhere(frame.gland)[0])
    brightest, varying = frame.image.copy(), np.full_like(frame.image, 50)
    brightest[row, column : column + 7], varying[row, column : column + 7] = 250, 0
    assert found.overlay_pixels(brightest, varying) == 7
    chroma = np.zeros_like(frame.image)
    chroma[row, column : column + 3] = 120
    assert found.overlay_pixels(frame.image, None, chroma) == 3
    assert found.overlay_pixels(frame.image, None) == 0
