from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from msgspec import structs
from PIL import Image as pillow

from medserve.errors import ConfigError
from medserve.imaging.image import Image
from medserve.inference import filters
from medserve.inference.frame_pipeline import (
    FrameBox,
    FramePipeline,
    FrameSettings,
    content_box,
)
from medserve.spec import InputKind, InputSpec, ModelSpec, Proportions, ServingSpec, Task
from medserve.spec.frames import (
    Activation,
    CropKind,
    CropSpec,
    FilterKind,
    FilterSpec,
    FrameSpec,
    Interpolation,
)
from medserve.spec.quality import QualitySpec
from medserve.spec.volumes import ScoreKind

_Plane = npt.NDArray[np.float32]


def pipeline_of(size: tuple[int, int] = (64, 64), **frame: Any) -> FramePipeline:
    return FramePipeline(
        ModelSpec(
            name="frames",
            version="1.0",
            title="Bright pixels",
            task=Task.FRAMES,
            labels=("background", "bright"),
            input=InputSpec((InputKind.RASTER,), size),
            serving=ServingSpec(1, 1),
            frame=FrameSpec(**frame),
        )
    )


def ellipse(shape: tuple[int, int], centre: tuple[float, float]) -> _Plane:
    """A bright ellipse, off the middle, with a smooth edge; 0.5 is its outline."""
    row, column = np.mgrid[: shape[0], : shape[1]]
    radius = np.hypot((row - centre[0]) / (0.2 * shape[0]), (column - centre[1]) / 40.0)
    return np.asarray(np.clip(0.5 - 2.0 * (radius - 1.0), 0, 1), dtype=np.float32)


def half_is_the_outline(planes: _Plane) -> _Plane:
    """What a network that knows the answer would say: logits."""
    return np.float32(8.0) * (planes - np.float32(0.5))


def dice(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


@pytest.mark.parametrize("shape", [(64, 64), (97, 203), (203, 97), (768, 1024), (40, 300)])
@pytest.mark.parametrize("interpolation", [each for each in Interpolation])
def test_a_mask_lies_where_the_structure_lies_in_the_frame(
    shape: tuple[int, int], interpolation: Interpolation
) -> None:
    frame = ellipse(shape, centre=(0.4 * shape[0], 0.6 * shape[1]))
    pipeline = pipeline_of(interpolation=interpolation)
    [found] = pipeline.segment([Image(frame)], half_is_the_outline)
    assert found.mask.shape == shape
    assert found.mask.dtype == np.uint8
    expected = frame >= 0.5
    assert dice(found.mask.astype(bool), expected) > 0.93
    for axis in (0, 1):  # not a fraction of a pixel of the network aside
        centres = [np.argwhere(each)[:, axis].mean() for each in (found.mask, expected)]
        assert abs(centres[0] - centres[1]) < 0.25 * max(shape) / 64


def test_a_frame_of_the_networks_size_passes_unchanged() -> None:
    frame = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    prepared = pipeline_of().prepare(Image(frame))
    np.testing.assert_array_equal(prepared.plane, frame[np.newaxis])


def test_the_aspect_ratio_is_kept_and_the_rest_is_padding() -> None:
    prepared = pipeline_of((60, 80)).prepare(Image(np.ones((100, 400), dtype=np.float32)))
    assert prepared.inverse.inner == FrameBox(20, 0, 40, 80)
    assert prepared.plane[0, 20:40].min() == 1.0
    assert prepared.plane[0, :20].max() == prepared.plane[0, 40:].max() == 0.0


def test_a_stripe_of_pixels_is_shrunk_without_moire() -> None:
    frame = np.zeros((512, 512), dtype=np.float32)
    frame[::2] = 1.0
    planes = {
        each: pipeline_of(interpolation=each).prepare(Image(frame)).plane for each in Interpolation
    }
    assert planes[Interpolation.NEAREST].std() == 0.0  # every eighth row: an alias
    assert abs(planes[Interpolation.NEAREST].mean() - 0.5) == 0.5
    for kind in set(Interpolation) - {Interpolation.NEAREST}:
        np.testing.assert_allclose(planes[kind], 0.5, atol=0.03)


def test_a_colour_frame_counts_by_its_luma() -> None:
    green = np.zeros((64, 64, 3), dtype=np.float32)
    green[..., 1] = 1.0
    np.testing.assert_allclose(pipeline_of().prepare(Image(green)).plane, 0.587, atol=1e-6)


def test_the_filter_sees_the_frame_at_the_networks_size_and_no_padding() -> None:
    spec = FilterSpec(FilterKind.SRAD, iterations=3)
    frame = 0.2 + 0.5 * np.random.default_rng(1).random((32, 64), dtype=np.float32)
    plane = pipeline_of(filter=spec).prepare(Image(frame)).plane[0]
    np.testing.assert_array_equal(plane[16:48], filters.apply(frame, spec))
    assert plane[:16].max() == 0.0


def test_training_masks_take_the_nearest_pixel_and_no_new_label() -> None:
    pipeline = pipeline_of((64, 64))
    mask = (ellipse((300, 200), centre=(120, 110)) >= 0.5).astype(np.uint8)
    prepared = pipeline.prepare(Image(mask.astype(np.float32)))
    small = pipeline.prepare_mask(mask, prepared.inverse)
    assert set(np.unique(small)) == {0, 1}
    back = pipeline.find((small[np.newaxis] * 2.0 - 1.0).astype(np.float32), prepared)
    assert dice(back.mask.astype(bool), mask.astype(bool)) > 0.97


def test_a_mask_of_another_frame_is_refused() -> None:
    pipeline = pipeline_of()
    inverse = pipeline.prepare(Image(np.ones((80, 60), dtype=np.float32))).inverse
    with pytest.raises(ValueError, match=r"expected a mask of shape \(80, 60\)"):
        pipeline.prepare_mask(np.ones((60, 80), dtype=np.uint8), inverse)


def test_the_box_around_the_scan_leaves_out_black_and_text() -> None:
    frame = np.zeros((300, 400), dtype=np.float32)
    frame[60:240, 120:330] = np.random.default_rng(0).random((180, 210)) > 0.5
    frame[10:18, 5:60] = 1.0  # text in a corner
    box = content_box(frame, level=0.03, margin=0.0)
    assert abs(box.top - 60) <= 5
    assert abs(box.left - 120) <= 5
    assert abs(box.bottom - 240) <= 5
    assert abs(box.right - 330) <= 5
    wider = content_box(frame, level=0.03, margin=0.1)
    assert box.left - wider.left == pytest.approx(0.1 * (box.right - box.left), abs=2)


def test_a_black_frame_is_seen_whole_and_holds_nothing() -> None:
    pipeline = pipeline_of(crop=CropSpec(CropKind.CONTENT))
    [found] = pipeline.segment([Image(np.zeros((90, 70), dtype=np.float32))], half_is_the_outline)
    assert found.crop == FrameBox(0, 0, 90, 70)
    assert found.mask.max() == 0


def test_a_mask_found_in_a_crop_lies_in_its_place() -> None:
    frame = np.zeros((300, 400), dtype=np.float32)
    frame[100:260, 200:380] = 0.2
    frame[150:200, 230:300] = 1.0
    pipeline = pipeline_of((80, 80), crop=CropSpec(CropKind.CONTENT, margin=0.0))
    [found] = pipeline.segment([Image(frame)], half_is_the_outline)
    assert dice(found.mask.astype(bool), frame == 1.0) > 0.96
    assert found.mask.shape == frame.shape
    assert found.mask[:90].max() == 0  # outside of the crop


def in_colour(
    size: tuple[int, int] = (64, 64), /, *, of_input: dict[str, Any] | None = None, **frame: Any
) -> FramePipeline:
    """Return a pipeline for colour frames in which what is red, green or blue is to be found."""
    spec = pipeline_of(size, **frame).spec
    read = structs.replace(spec.input, channels=3, **(of_input or {}))
    labels = ("background", "red", "green", "blue")
    return FramePipeline(structs.replace(spec, labels=labels, input=read))


def patches(height: int = 80, width: int = 120) -> tuple[_Plane, npt.NDArray[np.uint8]]:
    """A dark frame with a patch of each colour, and the ids of what is in it."""
    array = np.full((height, width, 3), 0.1, dtype=np.float32)
    ids = np.zeros((height, width), dtype=np.uint8)
    for place in range(3):
        rows, columns = (
            slice(10 + 15 * place, 40 + 15 * place),
            slice(10 + 35 * place, 35 * place + 40),
        )
        array[rows, columns] = 0.1
        array[rows, columns, place] = 0.9
        ids[rows, columns] = place + 1
    return array, ids


def of_softmax(planes: _Plane) -> _Plane:
    """Scores of the background and of each colour."""
    scores = half_is_the_outline(planes)
    return np.concatenate([np.zeros_like(scores[:, :1]), scores], axis=1)


@pytest.mark.parametrize("scores", ["logits", "probabilities"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_several_structures_in_colour_lie_where_they_are(activation: str, scores: str) -> None:
    array, ids = patches()
    pipeline = in_colour(
        (80, 120), activation=Activation(activation), scores=ScoreKind(scores)
    )  # the frame's own size: pixel by pixel

    def predict(planes: _Plane) -> _Plane:
        logits = half_is_the_outline(planes) if activation == "sigmoid" else of_softmax(planes)
        if scores == "logits":
            return logits
        if activation == "sigmoid":
            return np.asarray(1 / (1 + np.exp(-logits)))
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    [found] = pipeline.segment([Image(array)], predict)
    np.testing.assert_array_equal(found.mask, ids)
    [smaller] = in_colour(activation=Activation(activation)).segment(
        [Image(array)], half_is_the_outline if activation == "sigmoid" else of_softmax
    )
    for label_id in (1, 2, 3):
        assert dice(smaller.mask == label_id, ids == label_id) > 0.9


def test_of_structures_at_one_pixel_the_more_probable_wins() -> None:
    pipeline = in_colour((16, 16))
    scores = np.full((3, 16, 16), -1.0, dtype=np.float32)
    scores[0, :8] = 1.0
    scores[2, 4:12] = 2.0
    frame = Image(np.zeros((16, 16, 3), dtype=np.float32))
    found = pipeline.find(scores, pipeline.prepare(frame)).mask
    np.testing.assert_array_equal(found[:, 0], [1] * 4 + [3] * 8 + [0] * 4)


def test_largest_pieces_and_holes_are_those_of_each_structure() -> None:
    pipeline = in_colour((32, 32))
    scores = np.full((3, 32, 32), -1.0, dtype=np.float32)
    scores[0, 2:12, 2:12], scores[0, 5:7, 5:7] = 1.0, -1.0  # with a hole
    scores[0, 20:22, 20:22] = 1.0
    scores[1, 14:20, 14:20] = 1.0
    scores[1, 28:30, 2:4] = 1.0
    frame = pipeline.prepare(Image(np.zeros((32, 32, 3), dtype=np.float32)))
    tidy = FrameSettings(largest_component=True, fill_holes=True)
    found = pipeline.find(scores, frame, tidy).mask
    assert (found == 1).sum() == 100
    assert (found == 2).sum() == 36


def test_a_network_in_colour_sees_what_its_own_tool_would_show_it() -> None:
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    given = {"mean": mean, "deviation": deviation, "proportions": Proportions.STRETCHED}
    pipeline = in_colour((20, 50), of_input=given)
    array, _ = patches(20, 25)
    planes = pipeline.prepare(Image(array)).plane
    assert planes.shape == (3, 20, 50)
    wide = np.asarray(pillow.fromarray(array[..., 1]).resize((50, 20), pillow.Resampling.BILINEAR))
    np.testing.assert_allclose(planes[1], (wide - mean[1]) / deviation[1], rtol=1e-5, atol=1e-6)
    grey = pipeline.prepare(Image(array[..., 0])).plane  # of a grey frame all channels are alike
    unscaled = grey * np.array(deviation)[:, None, None] + np.array(mean)[:, None, None]
    np.testing.assert_allclose(unscaled, np.broadcast_to(unscaled[:1], grey.shape), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"channels": 2}, "1 channel"),
        ({"labels": ("background",)}, "2 to 255 labels"),
        ({"labels": tuple(map(str, range(256)))}, "2 to 255 labels"),
    ],
)
def test_what_no_network_of_frames_has_is_refused(changes: dict[str, Any], told: str) -> None:
    spec = pipeline_of().spec
    channels = changes.pop("channels", 1)
    with pytest.raises(ConfigError, match=told):
        structs.replace(spec, input=structs.replace(spec.input, channels=channels), **changes)


def test_a_fixed_box_is_stated_in_shares_of_the_frame() -> None:
    crop = CropSpec(CropKind.BOX, box=(0.25, 0.5, 1.0, 0.75))
    prepared = pipeline_of(crop=crop).prepare(Image(np.ones((200, 400), dtype=np.float32)))
    assert prepared.inverse.crop == FrameBox(50, 200, 200, 300)


def test_mirrored_logits_are_mirrored_back_before_they_are_averaged() -> None:
    pipeline = pipeline_of((8, 10))
    planes = np.random.default_rng(0).random((2, 1, 8, 10), dtype=np.float32)
    same = pipeline.logits(planes, half_is_the_outline, flips=True)
    np.testing.assert_allclose(same, half_is_the_outline(planes), atol=1e-6)
    ramp = np.arange(10, dtype=np.float32) - 4.5  # a network that believes in the right side
    mixed = pipeline.logits(planes, lambda each: each * 0 + ramp, flips=True)
    np.testing.assert_allclose(mixed, 0.0, atol=1e-6)


def test_the_threshold_is_a_probability() -> None:
    pipeline = pipeline_of((16, 16))
    prepared = pipeline.prepare(Image(np.zeros((16, 16), dtype=np.float32)))
    logits = np.full((1, 16, 16), np.log(0.7 / 0.3), dtype=np.float32)
    for threshold, expected in ((0.69, 256), (0.71, 0)):
        found = pipeline.find(logits, prepared, FrameSettings(threshold=threshold))
        assert found.mask.sum() == expected


def test_specks_go_and_holes_are_filled_where_that_is_asked() -> None:
    wanted = np.zeros((40, 50), dtype=np.float32)
    wanted[5:30, 8:30] = 1.0
    frame = wanted.copy()
    frame[15:18, 15:19] = 0.0  # a hole
    frame[34:37, 40:44] = 1.0  # a speck
    pipeline = pipeline_of((40, 50), largest_component=True, fill_holes=True)
    [found] = pipeline.segment([Image(frame)], half_is_the_outline)
    np.testing.assert_array_equal(found.mask, wanted)
    [plain] = pipeline.segment([Image(frame)], half_is_the_outline, FrameSettings())
    np.testing.assert_array_equal(plain.mask, frame)


def test_a_stack_is_taken_batch_by_batch_and_answered_in_order() -> None:
    taken: list[int] = []
    sizes: list[int] = []

    def frames() -> Iterator[Image]:
        for number in range(7):
            taken.append(number)
            frame = np.zeros((20, 30), dtype=np.float32)
            frame[: 2 + number] = 1.0
            yield Image(frame)

    def predict(planes: _Plane) -> _Plane:
        sizes.append(len(planes))
        return half_is_the_outline(planes)

    pipeline = pipeline_of((20, 30), batch=3)
    found = pipeline.segment(frames(), predict)
    assert next(found).mask.sum() == 2 * 30
    assert taken == [0, 1, 2]  # no frame is decoded before its batch
    assert [int(each.mask.sum()) // 30 for each in found] == [3, 4, 5, 6, 7, 8]
    assert sizes == [3, 3, 1]


def test_work_stops_between_batches_where_the_caller_says_so() -> None:
    def stop(done: int) -> None:
        if done >= 2:
            raise TimeoutError(f"{done} frames")

    frames = [Image(np.ones((20, 30), dtype=np.float32))] * 6
    found = pipeline_of((20, 30), batch=2).segment(
        frames, half_is_the_outline, FrameSettings(between=stop)
    )
    with pytest.raises(TimeoutError, match="2 frames"):
        list(found)


def test_a_model_without_a_frame_section_has_no_frame_pipeline() -> None:
    with pytest.raises(ConfigError, match="expected the section 'frame'"):
        structs.replace(pipeline_of().spec, frame=None)


def test_what_was_measured_on_one_structure_says_nothing_of_several() -> None:
    spec = pipeline_of(quality=QualitySpec()).spec
    with pytest.raises(ConfigError, match="seen and quality for one structure"):
        structs.replace(spec, labels=("background", "prostate", "lesion"))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"threshold": 1.0}, "a threshold between 0 and 1"),
        ({"batch": 0}, "batch and max_frames of at least 1"),
    ],
)
def test_a_frame_section_that_cannot_work_is_refused(frame: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FrameSpec(**frame)


@pytest.mark.parametrize(
    ("crop", "message"),
    [
        ({"box": (0.5, 0.0, 0.5, 1.0)}, "top < bottom"),
        ({"box": (0.0, 0.0, 1.0)}, "a box of shares"),
        ({"level": 1.0}, "level and margin"),
    ],
)
def test_a_crop_that_cannot_work_is_refused(crop: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CropSpec(**crop)
