from __future__ import annotations

import tracemalloc
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve.errors import (
    ConfigError,
    DeadlineError,
    PayloadTooLargeError,
    ServerFailedError,
)
from medserve.inference.sliding_window import (
    Predict,
    SlidingWindow,
    WorkLimits,
    cut,
    labels,
    scores,
    until,
)
from medserve.spec.volumes import BlendingSpec, Padding, Placement, Sums, WindowWeights

_NNUNET = BlendingSpec(WindowWeights.PEAK, Placement.EVEN, Sums.F16)
_Array = npt.NDArray[np.float32]
RNG = np.random.default_rng(0)


def _image(*shape: int) -> _Array:
    return RNG.normal(size=shape).astype(np.float32)


def _identity(batch: _Array) -> _Array:
    return batch


def _position_dependent(size: tuple[int, int, int], classes: int) -> Predict:
    """A network whose answer depends on the place in the window, as real ones do."""
    kernel = np.random.default_rng(1).normal(size=(classes, *size)).astype(np.float32)
    return lambda batch: np.asarray(batch[:, :1] * kernel + kernel[::-1], dtype=np.float32)


@settings(deadline=None, max_examples=30)
@given(
    st.tuples(*[st.integers(1, 20)] * 3),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.floats(0, 0.75),
    st.integers(1, 7),
)
def test_a_network_that_changes_nothing_gives_back_its_input(
    shape: tuple[int, int, int], size: tuple[int, int, int], overlap: float, batch: int
) -> None:
    image = np.random.default_rng(0).random((2, *shape), dtype=np.float32)
    blended = scores(image, _identity, SlidingWindow(size, overlap, batch), classes=2)
    # many overlapping windows are summed in float32 before the division
    np.testing.assert_allclose(blended, image, atol=1e-5)


@pytest.mark.cpu
@pytest.mark.parametrize("shape", [(40, 33, 21), (10, 40, 12), (7, 5, 6), (16, 12, 8)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.6])
def test_scores_are_those_of_monais_sliding_window(
    shape: tuple[int, int, int], overlap: float
) -> None:
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inferers: Any = pytest.importorskip("monai.inferers")
    size = (16, 12, 8)
    predict = _position_dependent(size, 3)
    image = _image(1, *shape)
    expected = inferers.sliding_window_inference(
        torch.from_numpy(image[None]),
        size,
        4,
        lambda batch: torch.from_numpy(predict(batch.numpy())),
        overlap=overlap,
        mode="gaussian",
    )[0].numpy()
    window = SlidingWindow(size, overlap)
    np.testing.assert_allclose(scores(image, predict, window, 3), expected, atol=1e-5)
    differ = labels(image, predict, window, 3) != expected.argmax(axis=0)
    assert np.count_nonzero(differ) == 0


@pytest.mark.parametrize("batch", [1, 3, 4, 50])
def test_the_batch_does_not_change_the_answer(batch: int) -> None:
    image, size = _image(1, 30, 20, 14), (8, 8, 8)
    predict = _position_dependent(size, 2)
    expected = scores(image, predict, SlidingWindow(size, batch=2), 2)
    found = scores(image, predict, SlidingWindow(size, batch=batch), 2)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_labels_are_the_argmax_of_the_scores(classes: int) -> None:
    image, size = _image(1, 40, 20, 14), (8, 8, 8)
    predict, window = _position_dependent(size, classes), SlidingWindow(size)
    expected = scores(image, predict, window, classes).argmax(axis=0)
    np.testing.assert_array_equal(labels(image, predict, window, classes), expected)


def test_every_voxel_is_covered_and_no_window_leaves_a_larger_volume() -> None:
    window = SlidingWindow((8, 6, 4), overlap=0.3)
    shape = (19, 13, 9)
    seen = np.zeros(shape, dtype=int)
    for i, j, k in window.starts(shape):
        assert min(i, j, k) >= 0
        assert all(np.add((i, j, k), window.size) <= shape)
        seen[i : i + 8, j : j + 6, k : k + 4] += 1
    assert seen.min() >= 1


def test_a_volume_smaller_than_the_window_sees_zeros_around_it() -> None:
    seen: list[_Array] = []

    def predict(batch: _Array) -> _Array:
        seen.append(batch.copy())
        return batch

    image = np.ones((1, 3, 4, 5), np.float32)
    scores(image, predict, SlidingWindow((8, 8, 8)), 1)
    assert seen[0].sum() == image.size
    np.testing.assert_array_equal(seen[0][0, 0, 2:5, 2:6, 1:6], 1.0)


@pytest.mark.parametrize("whole_scores", [True, False])
@pytest.mark.parametrize("shape", [(96, 64, 64), (200, 40, 40), (20, 20, 20), (32, 90, 90)])
def test_memory_stays_below_the_prediction_and_near_it(
    shape: tuple[int, int, int], whole_scores: bool
) -> None:
    window = SlidingWindow((32, 32, 32), batch=2)
    predict = _position_dependent(window.size, 3)
    run = scores if whole_scores else labels
    run(_image(1, 4, 4, 4), predict, window, 3)  # imports and caches are no part of it
    tracemalloc.start()
    image = np.zeros((1, *shape), dtype=np.float32)
    run(image, predict, window, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The test's own network holds one more array of a batch of scores.
    network = min(2, len(window.starts(shape))) * 3 * 32**3 * 4
    predicted = window.memory_bytes(shape, 1, 3, whole_scores=whole_scores) + network
    assert peak <= predicted
    assert peak >= 0.6 * predicted


def test_labels_of_a_long_volume_hold_a_fraction_of_its_scores() -> None:
    window = SlidingWindow((32, 32, 32))
    shape = (1024, 512, 512)
    assert window.memory_bytes(shape, 1, 30) < 0.15 * window.memory_bytes(
        shape, 1, 30, whole_scores=True
    )


def test_a_volume_too_large_is_refused_before_work_with_one_that_fits() -> None:
    window = SlidingWindow((16, 16, 16))
    limit = window.memory_bytes((60, 50, 40), 1, 2) + 5000
    limits = WorkLimits(memory_bytes=limit, network_bytes=5000)

    def never(batch: _Array) -> _Array:
        raise AssertionError("work started")

    with pytest.raises(PayloadTooLargeError, match=r"120 x 100 x 80 voxels") as raised:
        labels(np.zeros((1, 120, 100, 80), np.float32), never, window, 2, limits)
    fitting = raised.value.message.split("; ")[1].split(" voxels")[0]
    shape = [int(side) for side in fitting.split(" x ")]
    assert window.memory_bytes(shape, 1, 2) + 5000 <= limit
    assert np.prod(shape) > 0.7 * 60 * 50 * 40
    labels(
        np.zeros((1, *shape), np.float32), _position_dependent(window.size, 2), window, 2, limits
    )


def test_a_limit_below_one_batch_is_a_mistake_of_the_settings() -> None:
    with pytest.raises(ConfigError, match="one batch of windows"):
        labels(_image(1, 9, 9, 9), _identity, SlidingWindow((64, 64, 64)), 1, WorkLimits(1_000_000))


def test_work_stops_between_windows_when_time_is_up() -> None:
    ticks = iter(range(100))
    calls: list[int] = []

    def predict(batch: _Array) -> _Array:
        calls.append(len(batch))
        return batch

    limits = WorkLimits(between=until(3, clock=lambda: float(next(ticks))))
    with pytest.raises(DeadlineError, match="3 of 27 windows done"):
        scores(_image(1, 16, 16, 16), predict, SlidingWindow((8, 8, 8), batch=1), 1, limits)
    assert calls == [1, 1, 1]


def test_progress_is_told_before_each_batch() -> None:
    told: list[tuple[int, int]] = []
    limits = WorkLimits(between=lambda done, total: told.append((done, total)))
    scores(_image(1, 16, 16, 16), _identity, SlidingWindow((8, 8, 8), batch=10), 1, limits)
    assert told == [(0, 27), (10, 27), (20, 27)]


def test_a_network_with_another_number_of_classes_is_a_mistake_of_the_code() -> None:
    with pytest.raises(ValueError, match="expected scores of shape"):
        scores(_image(1, 8, 8, 8), _identity, SlidingWindow((8, 8, 8)), classes=2)


@pytest.mark.parametrize(
    "settings_",
    [
        {"size": (0, 8, 8)},
        {"size": (8, 8, 8), "overlap": 1.0},
        {"size": (8, 8, 8), "overlap": -0.1},
        {"size": (8, 8, 8), "batch": 0},
        {"size": (8, 8, 8), "sigma_scale": 0.0},
    ],
)
def test_settings_that_cannot_work_are_refused(settings_: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="sliding window"):
        SlidingWindow(**settings_)


@settings(deadline=None)
@given(
    side=st.integers(1, 60),
    window=st.integers(2, 16),
    overlap=st.sampled_from([0.25, 0.5, 0.75]),
    axis=st.integers(0, 2),
)
def test_even_windows_reach_from_edge_to_edge_and_overlap_enough(
    side: int, window: int, overlap: float, axis: int
) -> None:
    shape, size = [1, 1, 1], [1, 1, 1]
    shape[axis], size[axis] = side, window
    windows = SlidingWindow((size[0], size[1], size[2]), overlap, blending=_NNUNET)
    along = sorted({start[axis] for start in windows.starts(shape)})
    if side <= window:
        assert along == [-((window - side) // 2)]
        return
    assert (along[0], along[-1]) == (0, side - window)
    assert np.diff(along).max() <= window * (1 - overlap) + 1


def test_sums_in_sixteen_bits_are_rounded_at_every_addition() -> None:
    image = np.random.default_rng(0).normal(size=(1, 20, 12, 12)).astype(np.float32)
    window = SlidingWindow((8, 8, 8), blending=_NNUNET)
    found = scores(image, lambda windows: 3 * windows, window, 1)
    assert found.dtype == np.float16
    inner = (slice(None), slice(4, -4), slice(3, -3), slice(3, -3))  # weights vanish at corners
    assert 0 < np.abs(found - 3 * image)[inner].max() < 0.1


def test_scores_too_large_for_sixteen_bits_are_told() -> None:
    window = SlidingWindow((8, 8, 8), blending=_NNUNET)
    with (
        pytest.raises(ServerFailedError, match=r"sums f32"),
        np.errstate(over="ignore", invalid="ignore"),
    ):
        scores(np.ones((1, 8, 8, 8), np.float32), lambda x: 1e5 * x, window, 1)


@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 9)] * 3))
def test_edges_are_repeated_where_a_volume_is_smaller_than_a_window(
    shape: tuple[int, int, int], size: tuple[int, int, int]
) -> None:
    image = np.random.default_rng(0).random((2, *shape), dtype=np.float32)
    window = SlidingWindow(size, blending=BlendingSpec(padding=Padding.EDGE))
    missing = [max(0, side - has) for side, has in zip(size, shape, strict=True)]
    widths = [(0, 0), *((each // 2, each - each // 2) for each in missing)]
    padded = np.pad(image, widths, mode="edge")
    found = np.zeros((2, *size), np.float32)
    cut(image, window.starts(shape)[0], window, found)
    i, j, k = size
    np.testing.assert_array_equal(found, padded[:, :i, :j, :k])
