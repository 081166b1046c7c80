"""Volumes, frames and the validation of a training score empty masks by one rule."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from medserve.imaging.geometry import Geometry
from training.core.losses import iou_per_image
from training.core.overlap import EmptyReference, dice, iou
from training.frames.scores import compare_frame, summarise
from training.volumes import metrics

Mask = npt.NDArray[np.uint8]

NOTHING: Mask = np.zeros((4, 6), np.uint8)
LEFT: Mask = np.repeat(np.array([[1, 1, 1, 0, 0, 0]], np.uint8), 4, axis=0)
MIDDLE: Mask = np.repeat(np.array([[0, 0, 1, 1, 0, 0]], np.uint8), 4, axis=0)


@pytest.mark.parametrize(
    ("found", "reference", "expected_dice", "expected_iou"),
    [
        (NOTHING, NOTHING, 1.0, 1.0),
        (LEFT, NOTHING, 0.0, 0.0),
        (NOTHING, LEFT, 0.0, 0.0),
        (LEFT, LEFT, 1.0, 1.0),
        (LEFT, MIDDLE, 2 * 4 / (12 + 8), 4 / 16),
    ],
)
def test_all_three_give_a_pair_of_masks_the_same_score(
    found: Mask, reference: Mask, expected_dice: float, expected_iou: float
) -> None:
    common = int((found & reference).sum())
    assert dice(common, int(found.sum()), int(reference.sum())) == expected_dice
    assert iou(common, int(found.sum()), int(reference.sum())) == expected_iou
    frame = compare_frame("frame", "patient", found, reference)
    assert (frame.dice, frame.iou) == (expected_dice, expected_iou)
    grid = Geometry((4, 6, 1), np.eye(4))
    labels = ("background", "gland")
    [volume] = metrics.compare_masks(found[..., None], reference[..., None], grid, labels)
    assert volume.dice == expected_dice
    logits = torch.from_numpy(np.where(found, 9.0, -9.0))[np.newaxis, np.newaxis]
    [validated] = iou_per_image(logits, torch.from_numpy(reference)[np.newaxis, np.newaxis])
    assert float(validated) == pytest.approx(expected_iou, abs=1e-7)


def test_what_a_mean_does_with_empty_references_has_a_name_and_is_stated() -> None:
    scores = [
        compare_frame("seen", "a", LEFT, LEFT),
        compare_frame("quiet", "b", NOTHING, NOTHING),
        compare_frame("alarm", "c", LEFT, NOTHING),
    ]
    figures = summarise(scores).to_json()
    assert (figures["empty_references"], figures["n"], figures["dice"]) == ("left_out", 1, 1.0)
    counted = summarise(scores, empty_references=EmptyReference.COUNTED).to_json()
    assert (counted["empty_references"], counted["n"]) == ("counted", 3)
    assert counted["dice"] == pytest.approx(2 / 3, abs=1e-5)
    for each in (figures, counted):
        assert (each["n_empty"], each["false_positive_rate"]) == (2, 0.5)
    grid = Geometry((4, 6, 1), np.eye(4))
    volume = metrics.compare_masks(NOTHING[..., None], NOTHING[..., None], grid, ("no", "gland"))
    assert metrics.summarise(volume).to_json()["empty_references"] == "counted"
