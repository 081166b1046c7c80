"""The Dice of a mask is predicted from sums over its scores, however these come."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from medserve.errors import ConfigError
from medserve.imaging.geometry import Geometry
from medserve.imaging.image import Image
from medserve.inference.quality import MaskSums
from medserve.inference.volume_pipeline import VolumeSettings
from medserve.spec.quality import DiceSpec, QualitySpec
from medserve.tasks.result import DoubtReason
from tests.inference.test_frame_pipeline import ellipse, half_is_the_outline, pipeline_of
from tests.inference.test_volume_pipeline import half, phantom, pipeline

LABELS = ("background", "head", "tail")
DICE = DiceSpec(intercept=0.0, overlap=1.0, size=0.0, review_below=0.8, review_share=0.1)
QUALITY = {
    "temperature": 3.0,
    "dice": {"intercept": 0.0, "overlap": 1.0, "size": 0.0, "review_below": 1.0, "review_share": 1},
    "volume_ratio": {"ball": [0.8, 1.5]},
}
EVERYTHING = VolumeSettings(quality=True, probabilities=True, entropy=True)


def logits(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(0.0, 2.0, (len(LABELS), *shape)).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(1, 5), st.floats(0.5, 4.0))
def test_scores_that_come_in_pieces_and_weighted_predict_the_same(
    seed: int, cut: int, temperature: float
) -> None:
    scores = logits(seed, (6, 5, 4))
    mask = scores.argmax(axis=0).astype(np.uint8)
    weights = np.random.default_rng(seed).uniform(0.1, 9.0, mask.shape).astype(np.float32)
    whole, pieces = (MaskSums(len(LABELS), temperature) for _ in range(2))
    whole.add(scores, None, mask)
    for part in (slice(0, cut), slice(cut, None)):
        pieces.add(scores[:, part] * weights[part], weights[part], mask[part])
    expected = whole.predicted_dice(DICE, LABELS)
    assert pieces.predicted_dice(DICE, LABELS) == pytest.approx(expected, rel=1e-4)


def test_the_promised_overlap_is_the_dice_of_probabilities_and_mask() -> None:
    probability = np.array([[[0.9, 0.6, 0.2, 0.1]]])
    scores = np.stack([np.zeros_like(probability), np.log(probability / (1 - probability))])
    sums = MaskSums(2)
    sums.add(scores.astype(np.float32), None, (probability > 0.5).astype(np.uint8))
    found = sums.predicted_dice(DICE, ("background", "ball"))
    assert found == {"ball": pytest.approx(2 * (0.9 + 0.6) / (2 + 1.8), abs=1e-4)}


@given(st.floats(1.1, 8.0))
@settings(max_examples=20, deadline=None)
def test_less_certain_scores_of_the_same_mask_promise_less(factor: float) -> None:
    scores = logits(0, (6, 5, 4))
    mask = scores.argmax(axis=0).astype(np.uint8)
    sure, unsure = MaskSums(len(LABELS)), MaskSums(len(LABELS), factor)
    sure.add(scores, None, mask)
    unsure.add(scores, None, mask)
    more, less = (each.predicted_dice(DICE, LABELS) for each in (sure, unsure))
    assert all(less[label] < more[label] for label in LABELS[1:])


def test_what_was_not_found_has_no_prediction() -> None:
    sums = MaskSums(len(LABELS))
    sums.add(logits(0, (4, 4, 4)), None, np.full((4, 4, 4), 2, np.uint8))
    assert list(sums.predicted_dice(DICE, LABELS)) == ["tail"]


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.8, 1.1, 2.0)])
def test_a_volume_tells_its_errors_alike_whatever_else_is_asked_for(
    spacing_mm: tuple[float, float, float],
) -> None:
    volume = phantom(Geometry.from_spacing((30, 26, 18), spacing_mm))
    own, plain = pipeline(quality=QUALITY), pipeline()
    prepared = own.prepare(volume)
    found = own.segment(prepared, half)
    more = own.segment(prepared, half, EVERYTHING)
    without = plain.segment(plain.prepare(volume), half, EVERYTHING)
    np.testing.assert_array_equal(found.segmentation.mask, without.segmentation.mask)
    np.testing.assert_array_equal(more.segmentation.mask, without.segmentation.mask)
    assert found.predicted_dice == pytest.approx(more.predicted_dice, rel=1e-4)
    [measure] = found.segmentation.measures
    assert measure.predicted_dice == found.predicted_dice["ball"]
    assert measure.volume_interval_ml == pytest.approx(
        (0.8 * measure.volume_ml, 1.5 * measure.volume_ml)
    )
    assert [each.reason for each in own.doubts(prepared, found)] == [DoubtReason.PREDICTED_DICE]
    assert more.probabilities is not None
    assert without.probabilities is not None
    assert more.probabilities.max() < without.probabilities.max()  # by the temperature


def test_nothing_is_told_of_a_volume_that_nobody_asked_it_of() -> None:
    own = pipeline(quality=QUALITY)
    found = own.segment(own.prepare(phantom()), half, VolumeSettings())
    assert found.predicted_dice == {}
    assert found.segmentation.measures[0].volume_interval_ml is None


@pytest.mark.parametrize(
    "other",
    [
        {"regions": {"ball": 0}},
        {"restored": "labels"},
        {"quality": {"volume_ratio": {"a": [2, 1]}}},
        {"quality": {"absent_below": 5.0}},
    ],
)
def test_a_description_that_cannot_hold_is_refused(other: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="quality"):
        pipeline(**{"quality": QUALITY, **other})


def test_a_frame_without_a_structure_has_no_predicted_dice() -> None:
    quality = QualitySpec(3.0, replace(DICE, review_below=1.0))
    frames = pipeline_of(quality=quality)
    image = Image(ellipse((90, 70), (40.0, 30.0)))
    [found] = frames.segment([image], half_is_the_outline)
    [empty] = frames.segment([image], lambda planes: planes * np.float32(0) - np.float32(4))
    assert found.predicted_dice is not None
    assert 0.5 < found.predicted_dice < 1.0
    assert [each.reason for each in frames.doubts(found, None)] == [DoubtReason.PREDICTED_DICE]
    assert empty.predicted_dice is None
    assert [each.reason for each in frames.doubts(empty, None)] == [DoubtReason.EMPTY]


@pytest.mark.parametrize(
    ("absent_below", "logit", "asks"),
    [
        (None, -30.0, True),  # a structure that is always there: nothing may not be found
        (20.0, -30.0, False),  # no pixel is likely
        (20.0, -1.0, True),  # none reaches the threshold, all together promise much
        (0.0, -30.0, True),
    ],
)
def test_a_frame_without_a_mask_asks_for_a_look_where_its_scores_promise_something(
    absent_below: float | None, logit: float, asks: bool
) -> None:
    frames = pipeline_of(quality=QualitySpec(absent_below=absent_below))
    image = Image(ellipse((90, 70), (40.0, 30.0)))
    [found] = frames.segment([image], lambda planes: 0 * planes + np.float32(logit))
    assert not found.mask.any()
    assert [each.reason for each in frames.doubts(found, None)] == [DoubtReason.EMPTY] * asks
