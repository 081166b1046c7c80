"""Exported pictures find their place in the frame, and strangers are turned away."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as pillow

from annotation.model import Annotation
from annotation.placing import brought_back, place
from annotation.simulated_annotator import outline
from simulation.simulate import SimulatedFrame, SimulationConfig, simulate_cine

Pixels = npt.NDArray[np.uint8]
Change = Callable[[pillow.Image], pillow.Image]


@pytest.fixture(scope="module")
def cine() -> list[SimulatedFrame]:
    return simulate_cine(5, 5, SimulationConfig(height=150, width=200, overlays=False))


def exported(image: Pixels, change: Change) -> Pixels:
    """As a tool hands it on: changed, and compressed as JPEG."""
    stream = io.BytesIO()
    change(pillow.fromarray(image)).save(stream, "JPEG", quality=85)
    return np.asarray(pillow.open(stream).convert("L"))


def padded(picture: pillow.Image) -> pillow.Image:
    square = pillow.new("L", (240, 240))
    square.paste(picture.resize((240, 180)), (0, 30))
    return square


def turned(picture: pillow.Image) -> pillow.Image:
    return picture.resize((240, 240)).rotate(11, pillow.Resampling.BICUBIC)


FITS: dict[str, Change] = {
    "same": lambda picture: picture,
    "stretched": lambda picture: picture.resize((256, 256)),
    "smaller": lambda picture: picture.resize((150, 112)),
    "padded": padded,
    "mirrored": lambda p: p.resize((240, 240)).transpose(pillow.Transpose.FLIP_LEFT_RIGHT),
    "quarter turn": lambda p: p.resize((240, 240)).transpose(pillow.Transpose.ROTATE_90),
}


def brought(frame: SimulatedFrame, change: Change) -> tuple[npt.NDArray[np.bool_], bool]:
    """The gland, outlined on the changed picture by its changed mask, on the frame again."""
    picture = exported(frame.image, change)
    shape = (picture.shape[0], picture.shape[1])
    gland = np.where(frame.gland, 255, 0).astype(np.uint8)
    mask = np.asarray(change(pillow.fromarray(gland))) > 127
    placement = place(shape, picture, frame.image)
    assert placement is not None
    annotation = Annotation("a", None, shape, tuple(outline(mask)))
    return brought_back(annotation, placement, frame.image.shape), placement.exact


def dice(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


@pytest.mark.parametrize("name", FITS)
def test_fits_of_tools_are_taken_back(name: str, cine: list[SimulatedFrame]) -> None:
    mask, exact = brought(cine[2], FITS[name])
    assert exact
    # The mask was drawn on pixels of another size; those at the edge may differ.
    assert dice(mask, cine[2].gland) > (0.999 if name == "same" else 0.985)


@pytest.mark.cpu
def test_turned_picture_is_placed_by_an_estimate(cine: list[SimulatedFrame]) -> None:
    mask, exact = brought(cine[2], turned)
    assert not exact
    assert dice(mask, cine[2].gland) > 0.98


def test_changed_brightness_does_not_matter(cine: list[SimulatedFrame]) -> None:
    mask, exact = brought(cine[2], lambda picture: picture.point(lambda value: value * 0.6 + 40))
    assert exact
    assert dice(mask, cine[2].gland) > 0.98


@pytest.mark.cpu
def test_another_frame_of_the_loop_is_turned_away(cine: list[SimulatedFrame]) -> None:
    picture = exported(cine[3].image, FITS["stretched"])
    assert place((256, 256), picture, cine[2].image) is None


def test_without_a_picture_only_a_plain_change_of_size_is_taken_back(
    cine: list[SimulatedFrame],
) -> None:
    frame = cine[2]
    scale = 1.6
    outlines = tuple(points * scale for points in outline(frame.gland))
    placement = place((240, 320), None, frame.image)
    assert placement is not None
    annotation = Annotation("a", None, (240, 320), outlines)
    np.testing.assert_array_equal(
        brought_back(annotation, placement, frame.image.shape), frame.gland
    )
    assert place((240, 240), None, frame.image) is None


def test_masks_come_back_by_the_nearest_pixel(cine: list[SimulatedFrame]) -> None:
    frame = cine[2]
    twice = frame.gland.repeat(2, axis=0).repeat(2, axis=1)
    placement = place((300, 400), None, frame.image)
    assert placement is not None
    annotation = Annotation("a", None, (300, 400), (), twice)
    np.testing.assert_array_equal(
        brought_back(annotation, placement, frame.image.shape), frame.gland
    )
