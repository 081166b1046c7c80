"""Patches: image and labels go through one map, and chance comes from the generator alone."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from training.volumes.augment import Augmentation, Intensity, Placement, Warp, cut_patch

STILL = Placement(rotate=0.0, elastic=0.0, shift=0.0, mirrored=(0.0, 0.0, 0.0))
UNTOUCHED = Intensity(share=0.0)
PATCH = (12, 10, 8)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int) -> Tensor:
    return torch.rand(1, *shape, generator=drawn(7))


def halves(*shape: int) -> Tensor:
    """Label 1 in front, 2 behind, background around."""
    mask = torch.zeros(shape, dtype=torch.uint8)
    i, j, k = (side // 4 for side in shape)
    mask[i:-i, j : shape[1] // 2, k:-k] = 1
    mask[i:-i, shape[1] // 2 : -j, k:-k] = 2
    return mask


def ball(side: int, radius: float) -> Tensor:
    axis = torch.arange(side) - (side - 1) / 2
    distance = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    return (distance <= radius).to(torch.uint8)


def test_a_patch_of_the_volumes_size_is_the_volume_where_nothing_happens() -> None:
    image, mask = noise(*PATCH), halves(*PATCH)
    patch, shares = Augmentation(STILL, UNTOUCHED)(image, mask, PATCH, 3, drawn())
    torch.testing.assert_close(patch, image, atol=1e-5, rtol=0)
    assert torch.equal(shares.argmax(dim=0), mask.long())


def test_a_patch_is_cut_from_within_a_larger_volume() -> None:
    image, mask = noise(20, 10, 8), halves(20, 10, 8)
    augment = Augmentation(STILL, UNTOUCHED)
    seen = set()
    for seed in range(12):
        patch, _ = augment(image, mask, PATCH, 3, drawn(seed))
        starts = [n for n in range(9) if torch.allclose(patch, image[:, n : n + 12], atol=1e-4)]
        assert len(starts) == 1  # voxels stay as they are: nothing is interpolated
        seen.add(starts[0])
    assert len(seen) > 3


def test_zeros_and_background_lie_around_a_smaller_volume() -> None:
    image, mask = noise(6, 10, 8) + 0.5, halves(6, 10, 8)
    patch, shares = Augmentation(STILL, UNTOUCHED)(image, mask, PATCH, 3, drawn())
    torch.testing.assert_close(patch[:, 3:9], image, atol=1e-5, rtol=0)
    assert float(patch[:, :3].abs().max()) == 0.0
    assert float(shares[0, :3].min()) == 1.0


def test_shares_sum_to_one_and_follow_the_image() -> None:
    mask = halves(24, 20, 16)
    augment = Augmentation(Placement(rotate=1.0, elastic=1.0), UNTOUCHED)
    for seed in range(5):
        patch, shares = augment((mask == 2)[None].float(), mask, PATCH, 3, drawn(seed))
        torch.testing.assert_close(shares.sum(dim=0), torch.ones(PATCH))
        torch.testing.assert_close(patch[0], shares[2], atol=1e-5, rtol=0)
        assert float(shares.min()) >= 0.0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirrored_patch_is_the_flipped_one(axis: int) -> None:
    i, j, k = (1.0 if n == axis else 0.0 for n in range(3))
    placement = dataclasses.replace(STILL, mirrored=(i, j, k))
    image, mask = noise(*PATCH), halves(*PATCH)
    patch, shares = Augmentation(placement, UNTOUCHED)(image, mask, PATCH, 3, drawn())
    torch.testing.assert_close(patch, image.flip(1 + axis), atol=1e-5, rtol=0)
    assert torch.equal(shares.argmax(dim=0), mask.flip(axis).long())


def test_a_quarter_turn_swaps_the_axes() -> None:
    image, mask = noise(8, 8, 8), halves(8, 8, 8)
    matrix = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    warp = Warp(matrix, torch.full((3,), 3.5))
    patch, _ = cut_patch(image, mask, (8, 8, 8), 3, warp)
    # Voxel (i, j) of the patch comes from (-j, i) of the volume, both counted from the middle.
    torch.testing.assert_close(patch, image.transpose(1, 2).flip(2), atol=1e-5, rtol=0)


def test_a_factor_of_two_shrinks_a_volume_eightfold() -> None:
    mask = ball(33, 12.0)
    warp = Warp(2.0 * torch.eye(3), torch.full((3,), 16.0))
    _, shares = cut_patch(mask[None].float(), mask, (33, 33, 33), 2, warp)
    assert float(shares[1].sum()) == pytest.approx(4 / 3 * math.pi * 6.0**3, rel=0.03)


def test_turning_keeps_the_volume_within_the_scale() -> None:
    placement = dataclasses.replace(STILL, rotate=1.0, scale=1.2)
    mask = ball(32, 9.0)
    volume = float(mask.sum())
    ratios = []
    for seed in range(20):
        _, shares = Augmentation(placement, UNTOUCHED)(
            mask[None].float(), mask, (32, 32, 32), 2, drawn(seed)
        )
        ratios.append(float(shares[1].sum()) / volume)
    # One factor for all axes and the root of one for each: 1.2 ** (3 + 3 / 2) at most.
    assert all(1.2**-4.6 < ratio < 1.2**4.6 for ratio in ratios)
    assert max(ratios) / min(ratios) > 1.5


def test_the_same_draws_give_the_same_patch_and_others_another() -> None:
    image, mask = noise(24, 20, 16), halves(24, 20, 16)
    augment = Augmentation()
    one, again, other = (augment(image, mask, PATCH, 3, drawn(seed)) for seed in (1, 1, 2))
    assert torch.equal(one[0], again[0])
    assert torch.equal(one[1], again[1])
    assert not torch.equal(one[0], other[0])


def test_the_volume_itself_is_left_as_it_is() -> None:
    image, mask = noise(24, 20, 16), halves(24, 20, 16)
    before = image.clone(), mask.clone()
    Augmentation(intensity=Intensity(share=1.0))(image, mask, PATCH, 3, drawn())
    assert torch.equal(image, before[0])
    assert torch.equal(mask, before[1])


NOTHING = {"gamma": 1.0, "contrast": 1.0, "brightness": 0.0, "noise": 0.0, "blur": 0.0,
           "bias": 1.0, "coarsest": 1.0}  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "value"),
    [("gamma", 2.0), ("contrast", 2.0), ("brightness", 0.3), ("noise", 0.1), ("blur", 1.5),
     ("bias", 2.0), ("coarsest", 0.3)],
)  # fmt: skip
def test_each_change_of_intensity_acts_alone(setting: str, value: float) -> None:
    image, mask = noise(*PATCH), halves(*PATCH)
    neutral = Intensity(share=1.0, **NOTHING)
    acting = dataclasses.replace(neutral, **{setting: value})
    unchanged, _ = Augmentation(STILL, neutral)(image, mask, PATCH, 3, drawn(3))
    changed, shares = Augmentation(STILL, acting)(image, mask, PATCH, 3, drawn(3))
    torch.testing.assert_close(unchanged, image, atol=1e-4, rtol=0)
    assert float((changed - image).abs().mean()) > 0.005
    assert torch.equal(shares.argmax(dim=0), mask.long())


def test_blur_keeps_the_mean_and_lowers_the_spread() -> None:
    image = torch.zeros(1, 16, 16, 16)
    image[0, 8, 8, 8] = 1.0
    acting = Intensity(share=1.0, **{**NOTHING, "blur": 3.0})
    mask = halves(16, 16, 16)
    blurred, _ = Augmentation(STILL, acting)(image, mask, (16, 16, 16), 3, drawn(0))
    assert float(blurred.sum()) == pytest.approx(1.0, rel=1e-4)
    assert float(blurred.max()) < 0.9
