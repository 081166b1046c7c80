"""Augmentation changes the look of an image and leaves it an image."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from training.classification.augment import Augment

STILL = Augment(**{field.name: 0.0 for field in dataclasses.fields(Augment)})


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def image() -> Tensor:
    """Uneven ramp (4, 1, 24, 40): no flip or turn maps it onto itself."""
    rows, columns = torch.meshgrid(torch.arange(24), torch.arange(40), indexing="ij")
    return ((7 * rows + 3 * columns) / 300.0).expand(4, 1, 24, 40).clone()


def test_without_strength_nothing_changes(image: Tensor) -> None:
    torch.testing.assert_close(STILL(image, draws()), image, atol=2e-4, rtol=0.0)


def test_intensities_stay_in_the_unit_interval(image: Tensor) -> None:
    strong = Augment(brightness=0.9, log_contrast=2.0, noise=1.0, noise_probability=1.0)
    changed = strong(image, draws())
    assert changed.shape == image.shape
    assert float(changed.min()) >= 0.0
    assert float(changed.max()) <= 1.0


def test_each_image_of_a_batch_is_changed_differently(image: Tensor) -> None:
    changed = Augment()(image, draws())
    assert not torch.equal(changed[0], changed[1])


def test_the_same_generator_gives_the_same_images(image: Tensor) -> None:
    torch.testing.assert_close(Augment()(image, draws(5)), Augment()(image, draws(5)))
    assert not torch.equal(Augment()(image, draws(5)), Augment()(image, draws(6)))


def test_a_certain_flip_mirrors_left_and_right(image: Tensor) -> None:
    flipped = dataclasses.replace(STILL, flip_probability=1.0)(image, draws())
    torch.testing.assert_close(flipped, image.flip(3), atol=2e-4, rtol=0.0)


def test_the_border_is_drawn_on_where_an_image_is_moved() -> None:
    white = torch.ones(8, 1, 16, 16)
    moved = dataclasses.replace(STILL, rotation_degrees=30.0, shift=0.3)(white, draws())
    torch.testing.assert_close(moved, white)


def test_an_erased_rectangle_has_one_grey_level() -> None:
    black = torch.zeros(1, 1, 32, 32)
    erase = dataclasses.replace(STILL, erase_probability=1.0, erase_side=0.9)
    changed = erase(black, draws(1))[0, 0]
    rows, columns = torch.nonzero(changed > 1e-3, as_tuple=True)
    block = changed[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert block.numel() > 20
    torch.testing.assert_close(block, block[0, 0].expand_as(block))
