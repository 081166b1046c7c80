"""Cells are turned, tinted and framed, and stay cells in the middle."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from training.classification.cells import CellAugment

ZERO = {
    field.name: 0.0
    for field in dataclasses.fields(CellAugment)
    if field.name not in ("window", "side")
}
STILL = CellAugment(**ZERO, window=16, side=16)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def frame() -> Tensor:
    """Uneven colour ramps (4, 3, 32, 32)."""
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    ramp = (7 * rows + 3 * columns) / 320.0
    return torch.stack([ramp, 0.5 * ramp, 1.0 - ramp]).expand(4, 3, 32, 32).clone()


def test_without_strength_the_middle_is_shown_as_it_is(frame: Tensor) -> None:
    torch.testing.assert_close(STILL(frame, draws()), frame[:, :, 8:24, 8:24], atol=2e-4, rtol=0)


def test_the_middle_can_be_shown_smaller(frame: Tensor) -> None:
    shown = dataclasses.replace(STILL, side=8)(frame, draws())
    expected = torch.nn.functional.avg_pool2d(frame[:, :, 8:24, 8:24], 2)  # of a ramp
    torch.testing.assert_close(shown, expected, atol=2e-4, rtol=0)


def test_intensities_stay_in_the_unit_interval(frame: Tensor) -> None:
    strong = CellAugment(window=16, side=16, log_tint=1.0, mixing=0.3, tint_probability=1.0)
    changed = strong(frame, draws())
    assert float(changed.min()) >= 0.0
    assert float(changed.max()) <= 1.0


def test_a_tint_reaches_from_cream_to_the_bluish_ground_of_the_archive() -> None:
    # Mean colour of the brightest third in both kinds of frame, measured on the archive.
    cream, bluish = torch.tensor([253.5, 228.0, 202.8]), torch.tensor([226.3, 218.8, 227.6])
    needed = torch.log(bluish / cream).abs()
    assert float(needed.max()) <= CellAugment().log_tint


def test_tinting_does_not_move_anything(frame: Tensor) -> None:
    tinted = dataclasses.replace(STILL, log_tint=0.3, tint_probability=1.0)(frame * 0.5, draws())
    ratio = tinted / (frame * 0.5)[:, :, 8:24, 8:24].clamp(min=1e-3)
    inside = (frame * 0.5)[:, :, 8:24, 8:24] > 0.05
    for image in range(4):
        for channel in range(3):
            gains = ratio[image, channel][inside[image, channel]]
            assert float(gains.std()) < 0.02


def test_mixing_keeps_grey_grey() -> None:
    grey = torch.full((4, 3, 32, 32), 0.4)
    mixed = dataclasses.replace(STILL, mixing=0.2, tint_probability=1.0)(grey, draws())
    torch.testing.assert_close(mixed, torch.full_like(mixed, 0.4), atol=1e-4, rtol=0)


def test_a_frame_has_one_colour_and_leaves_the_middle() -> None:
    white = torch.ones(8, 3, 32, 32)
    framed = dataclasses.replace(STILL, frame_probability=1.0, frame_share=0.3)(white, draws())
    torch.testing.assert_close(framed[:, :, 5:11, 5:11], torch.ones(8, 3, 6, 6))
    for image in framed:
        painted = image[:, (image < 0.999).any(dim=0)]
        if painted.numel():
            torch.testing.assert_close(painted, painted[:, :1].expand_as(painted))


def test_cells_are_turned_all_the_way_round() -> None:
    half = torch.zeros(64, 3, 32, 32)
    half[:, :, :16] = 1.0  # bright above
    turned = dataclasses.replace(STILL, rotation_degrees=180.0)(half, draws())
    above = turned[:, 0, :8].mean(dim=(1, 2)) - turned[:, 0, 8:].mean(dim=(1, 2))
    assert float(above.min()) < -0.8
    assert float(above.max()) > 0.8


def test_the_same_generator_gives_the_same_images(frame: Tensor) -> None:
    augment = CellAugment(window=16, side=16)
    torch.testing.assert_close(augment(frame, draws(5)), augment(frame, draws(5)))
    assert not torch.equal(augment(frame, draws(5)), augment(frame, draws(6)))
