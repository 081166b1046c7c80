from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from training.core.losses import dice_and_bce, iou_per_image
from training.frames.scores import FrameScore, compare_frame, summarise


def masks(*boxes: tuple[int, int]) -> torch.Tensor:
    """(N, 1, 10, 10) with rows from a to below b inside."""
    planes = torch.zeros(len(boxes), 1, 10, 10)
    for plane, (first, last) in zip(planes, boxes, strict=True):
        plane[:, first:last] = 1.0
    return planes


@pytest.mark.cpu  # imports MONAI
def test_the_loss_is_cross_entropy_and_dice_of_each_frame() -> None:
    logits = torch.zeros(1, 1, 10, 10)  # probability 0.5 everywhere
    target = masks((0, 4))
    dice = (2 * 0.5 * 40 + 1) / (0.5 * 100 + 40 + 1)
    assert float(dice_and_bce(logits, target)) == pytest.approx(math.log(2) + 1 - dice, rel=1e-6)
    assert float(dice_and_bce(logits, target, dice_weight=0)) == pytest.approx(math.log(2))
    assert float(dice_and_bce(logits, target, bce_weight=0)) == pytest.approx(1 - dice)


@pytest.mark.cpu  # imports MONAI
def test_a_sure_and_right_answer_has_no_loss_even_on_an_empty_mask() -> None:
    target = masks((2, 7), (0, 0))
    logits = 40.0 * (target - 0.5)
    assert float(dice_and_bce(logits, target)) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.cpu  # imports MONAI
def test_a_small_structure_counts_as_much_as_a_large_one() -> None:
    wrong = torch.full((1, 1, 10, 10), -20.0)
    small, large = (
        float(dice_and_bce(wrong, masks(box), bce_weight=0)) for box in ((0, 1), (0, 9))
    )
    assert small == pytest.approx(large, abs=0.1)


def test_iou_is_taken_frame_by_frame_with_its_rule_for_empty_masks() -> None:
    target = masks((0, 4), (0, 0), (0, 0), (0, 5))
    found = masks((2, 6), (0, 0), (9, 10), (0, 0))
    iou = iou_per_image(20.0 * (found - 0.5), target)
    assert iou.tolist() == pytest.approx([2 / 6, 1.0, 0.0, 0.0])


def test_the_threshold_of_the_iou_is_a_probability() -> None:
    logits = torch.full((1, 1, 10, 10), math.log(0.7 / 0.3))
    target = masks((0, 10))
    assert iou_per_image(logits, target, threshold=0.69).tolist() == [1.0]
    assert iou_per_image(logits, target, threshold=0.71).tolist() == [0.0]


def test_scores_agree_with_counting_by_hand() -> None:
    found, reference = np.zeros((10, 12), np.uint8), np.zeros((10, 12), np.uint8)
    found[:4] = 1
    reference[2:7] = 1
    score = compare_frame("a", "p", found, reference)
    assert (score.found, score.reference, score.common) == (48, 60, 24)
    assert score.dice == pytest.approx(48 / 108)
    assert score.iou == pytest.approx(24 / 84)


def test_empty_references_count_for_false_alarms_and_not_for_dice() -> None:
    scores = [
        FrameScore("a", "p1", found=80, reference=100, common=80),
        FrameScore("b", "p2", found=50, reference=100, common=0),
        FrameScore("c", "p3", found=0, reference=0, common=0),
        FrameScore("d", "p3", found=9, reference=0, common=0),
        FrameScore("e", "p4", found=0, reference=0, common=0),
    ]
    summary = summarise(scores)
    assert (summary.n, summary.n_empty) == (2, 3)
    assert summary.dice == pytest.approx((160 / 180 + 0.0) / 2)
    assert summary.iou == pytest.approx(0.8 / 2)
    assert summary.missed == 0.5
    assert summary.false_positive_rate == pytest.approx(1 / 3)
    low, high = summary.intervals["dice"] or (0.0, 0.0)
    assert low == 0.0
    assert high == pytest.approx(160 / 180)
    rows = summary.to_json()
    assert rows["n"] == 2
    assert scores[2].to_json()["dice"] is None


def test_frames_of_one_patient_are_drawn_together_for_the_interval() -> None:
    alike = [FrameScore(str(n), "one", 100, 100, 100 - n % 2 * 50) for n in range(40)]
    summary = summarise(alike)
    assert summary.intervals["dice"] == pytest.approx((0.75, 0.75))  # one patient: no spread


def test_nothing_to_score_gives_no_number(tmp_path: Path) -> None:
    summary = summarise([])
    assert (summary.dice, summary.iou, summary.false_positive_rate) == (None, None, None)
    assert summary.to_json()["intervals"]["dice"] is None
