"""Losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from training.core.losses import absolute_weights, dice_and_cross_entropy

pytestmark = pytest.mark.cpu  # imports MONAI


def one_hot(mask: Tensor, classes: int = 3) -> Tensor:
    return nn.functional.one_hot(mask, classes).movedim(-1, 1).float()


def mask_of(*labels: int) -> Tensor:
    return torch.tensor(labels).reshape(1, 1, 1, -1)


def test_a_certain_and_right_answer_costs_nothing() -> None:
    shares = one_hot(mask_of(0, 1, 2, 1))
    assert float(dice_and_cross_entropy(100.0 * shares, shares)) == pytest.approx(0.0, abs=1e-4)


def test_even_logits_cost_the_logarithm_and_the_dice_of_a_third() -> None:
    shares = one_hot(mask_of(0, 0, 1, 2))
    # Soft Dice of a label with 1 of 4 voxels, found everywhere by a third: 2/3 / (4/3 + 1).
    expected = math.log(3.0) + 1.0 - (2 / 3) / (7 / 3)
    found = float(dice_and_cross_entropy(torch.zeros(1, 3, 1, 1, 4), shares))
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_weight_of_dice_acts() -> None:
    shares = one_hot(mask_of(0, 0, 1, 2))
    logits = torch.zeros(1, 3, 1, 1, 4)
    assert float(dice_and_cross_entropy(logits, shares, 0.0)) == pytest.approx(math.log(3.0))


def test_a_label_that_is_neither_there_nor_found_counts_as_right() -> None:
    shares = one_hot(mask_of(0, 1, 1, 0))
    assert float(dice_and_cross_entropy(200.0 * shares, shares)) == pytest.approx(0.0, abs=1e-4)


def test_each_volume_counts_alike_whatever_its_labels_size() -> None:
    small, large = one_hot(mask_of(1, 0, 0, 0), 2), one_hot(mask_of(1, 1, 1, 1), 2)
    right = [100.0 * each for each in (small, large)]
    missed = one_hot(mask_of(0, 0, 0, 0), 2) * 100.0
    one = dice_and_cross_entropy(torch.cat([missed, right[1]]), torch.cat([small, large]))
    two = dice_and_cross_entropy(torch.cat([right[0], missed]), torch.cat([small, large]))
    entropy = [100.0 * wrong / 8 for wrong in (1, 4)]
    assert float(one) - entropy[0] == pytest.approx(0.5, abs=1e-3)
    assert float(two) - entropy[1] == pytest.approx(0.5, abs=1e-3)


def test_half_precision_logits_are_computed_in_full() -> None:
    shares = one_hot(mask_of(0, 1, 2, 1))
    loss = dice_and_cross_entropy(torch.ones(1, 3, 1, 1, 4, dtype=torch.bfloat16), shares)
    assert loss.dtype == torch.float32


def test_absolute_weights_leave_biases_out() -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.InstanceNorm3d(2, affine=True))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(-3.0)
    assert float(absolute_weights(network).detach()) == 6.0
