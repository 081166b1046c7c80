"""MedNet's rule: exact class weights, and a stop when the losses part."""

from __future__ import annotations

import pytest
import torch

from training.mednet import RatioStop, class_weights


def test_weights_are_one_over_the_counts_scaled_to_a_mean_of_one() -> None:
    label_ids = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    weights = class_weights(label_ids, 3)
    # 1/4, 1/2, 1 have a mean of 7/12
    torch.testing.assert_close(weights, torch.tensor([3 / 7, 6 / 7, 12 / 7]))
    assert float(weights.mean()) == pytest.approx(1.0)


def test_a_class_without_an_image_weighs_like_one_with_a_single_image() -> None:
    weights = class_weights(torch.tensor([0, 0, 1]), 4)
    assert weights.isfinite().all()
    assert weights[2] == weights[3] == weights[1] == 2 * weights[0]


def test_equal_classes_all_weigh_one() -> None:
    assert class_weights(torch.arange(6).repeat(5), 6).tolist() == [1.0] * 6


@pytest.mark.parametrize(
    ("validation_losses", "stops_after"),
    [
        ([1.3, 1.3, 1.3], 3),  # three in a row
        ([1.3, 1.3, 1.1, 1.3, 1.3, 1.3], 6),  # one near epoch begins the count anew
        ([1.2, 1.2, 1.2, 1.2], None),  # equal to the ratio is not above it
        ([1.1, 1.0, 0.9, 1.3, 1.3], None),
    ],
)
def test_training_ends_after_three_epochs_in_a_row_above_the_ratio(
    validation_losses: list[float], stops_after: int | None
) -> None:
    stop = RatioStop(ratio=1.2, epochs=3)
    due = [stop.is_due(1.0, loss) for loss in validation_losses]
    assert (due.index(True) + 1 if True in due else None) == stops_after


def test_the_ratio_is_to_the_training_loss_of_the_same_epoch() -> None:
    stop = RatioStop(ratio=2.0, epochs=1)
    assert not stop.is_due(0.5, 0.9)
    assert stop.is_due(0.4, 0.9)
