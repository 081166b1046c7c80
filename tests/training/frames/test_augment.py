from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from training.frames.augment import Augmentation, move

NOTHING = Augmentation(**dict.fromkeys([each.name for each in dataclasses.fields(Augmentation)], 0))


def bright(height: int = 40, width: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """An L, which no mirror or turn maps to itself, as frame (0.2 and 0.8) and mask."""
    mask = torch.zeros(1, 1, height, width, dtype=torch.uint8)
    mask[..., 8:32, 10:18] = 1
    mask[..., 24:32, 10:40] = 1
    return 0.2 + 0.6 * mask.float(), mask


def drawn(augmentation: Augmentation, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return augmentation(*bright(), torch.Generator().manual_seed(seed))


def test_without_changes_frame_and_mask_stay() -> None:
    image, mask = drawn(NOTHING)
    expected = bright()
    torch.testing.assert_close(image, expected[0], atol=1e-5, rtol=0)
    assert torch.equal(mask, expected[1])


@pytest.mark.parametrize("seed", range(5))
def test_frame_and_mask_move_together(seed: int) -> None:
    augmentation = dataclasses.replace(
        NOTHING, flip=0.5, rotation_degrees=30.0, scale=0.3, shift=0.1
    )
    image, mask = drawn(augmentation, seed)
    found = image > 0.5
    common = (found & mask.bool()).sum()
    assert 2 * common / (found.sum() + mask.sum()) > 0.97
    assert set(mask.flatten().tolist()) == {0, 1}


def test_a_quarter_turn_keeps_angles_on_a_frame_that_is_not_square() -> None:
    image = torch.zeros(1, 1, 41, 81)
    image[..., 20, 40:56] = 1.0  # 15 pixels to the right of the centre
    cosine, sine = math.cos(math.pi / 2), math.sin(math.pi / 2)
    motion = torch.tensor([[[cosine, -sine, 0.0], [sine, cosine, 0.0]]])
    turned, _ = move(image, image.byte(), motion)
    rows, columns = torch.nonzero(turned[0, 0] > 0.5, as_tuple=True)
    assert set(columns.tolist()) == {40}
    assert rows.max() - rows.min() == 15


def test_a_shift_is_in_pixels() -> None:
    image, mask = bright()
    moved, labels = move(image, mask, torch.tensor([[[1.0, 0.0, 5.0], [0.0, 1.0, -3.0]]]))
    assert torch.equal(labels[..., 3:, :-5], mask[..., :-3, 5:])
    torch.testing.assert_close(moved[..., 3:, :-5], image[..., :-3, 5:], atol=1e-4, rtol=0)


def test_the_mirror_image_comes_as_often_as_stated() -> None:
    augmentation = dataclasses.replace(NOTHING, flip=0.5)
    image, mask = bright()
    many = augmentation(
        image.repeat(400, 1, 1, 1), mask.repeat(400, 1, 1, 1), torch.Generator().manual_seed(1)
    )[1]
    mirrored = sum(int(torch.equal(each, mask[0].flip(-1))) for each in many)
    unchanged = sum(int(torch.equal(each, mask[0])) for each in many)
    assert mirrored + unchanged == 400
    assert 160 < mirrored < 240


@pytest.mark.parametrize("name", ["gain", "gamma", "depth_gain", "speckle", "blur", "shadow"])
def test_each_change_of_intensity_acts_on_the_frame_alone(name: str) -> None:
    augmentation = dataclasses.replace(
        NOTHING, **{name: 1.0 if name in ("blur", "shadow") else 0.3}
    )
    image, mask = drawn(augmentation)
    assert (image - bright()[0]).abs().max() > 0.001
    assert torch.equal(mask, bright()[1])
    assert image.min() >= 0.0
    assert image.max() <= 1.0


def test_what_is_black_stays_black() -> None:
    image, mask = bright()
    image[..., :6] = 0.0  # padding
    loud = dataclasses.replace(NOTHING, gain=0.4, speckle=0.5, gamma=0.5, depth_gain=0.5)
    changed, _ = loud(image, mask, torch.Generator().manual_seed(3))
    assert changed[..., :6].abs().max() == 0.0


def test_the_same_generator_draws_the_same() -> None:
    one, two = drawn(Augmentation(), seed=7), drawn(Augmentation(), seed=7)
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[0], drawn(Augmentation(), seed=8)[0])


def test_every_frame_of_a_batch_is_changed_on_its_own() -> None:
    image, mask = bright()
    both, _ = Augmentation()(
        image.repeat(2, 1, 1, 1), mask.repeat(2, 1, 1, 1), torch.Generator().manual_seed(0)
    )
    assert not torch.equal(both[0], both[1])


def test_a_mixed_frame_takes_a_rectangle_of_its_neighbour_with_the_mask() -> None:
    height, width = 40, 60
    images = torch.stack([torch.full((1, height, width), value) for value in (0.25, 0.75)])
    masks = torch.stack([torch.zeros(1, height, width), torch.ones(1, height, width)]).byte()
    mixed, labels = dataclasses.replace(NOTHING, cutmix=1.0)(
        images, masks, torch.Generator().manual_seed(3)
    )
    assert torch.equal(mixed > 0.5, labels.bool())  # each pixel keeps its own truth
    taken = labels[0, 0].bool()
    assert 0 < int(taken.sum()) <= 0.5 * height * width + height + width
    rows, columns = torch.nonzero(taken, as_tuple=True)
    box = taken[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert box.all()


def test_no_frame_is_mixed_where_that_is_not_asked_for() -> None:
    images = torch.stack([torch.full((1, 8, 8), value) for value in (0.25, 0.75)])
    masks = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    kept, _ = NOTHING(images, masks, torch.Generator())
    torch.testing.assert_close(kept, images, atol=1e-5, rtol=0)
