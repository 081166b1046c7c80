"""Run a network of fixed window over a volume of any size, in memory known before work starts.

Windows overlap and are blended with a Gaussian, since a network sees least at the faces of its
window (nnU-Net, Isensee et al., Nature Methods 2021). Places, weights and padding are by default
those of MONAI's `sliding_window_inference` with mode "gaussian" and padding with zeros, so a
network scores alike in training and serving; a network that nnU-Net trained has nnU-Net's own.

Windows are taken plane by plane along the first axis. As soon as no later window can reach a
plane it is finished and leaves the accumulator, which therefore holds about one window's depth and
not the volume: with `labels` the scores of the whole volume never exist.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medserve.errors import ConfigError, DeadlineError, ServerFailedError
from medserve.imaging.geometry import Shape
from medserve.inference.argmax import argmax_channels
from medserve.inference.memory import mib, refuse_above
from medserve.spec.volumes import BlendingSpec, Padding, Placement, Sums, WindowWeights

__all__ = ["Predict", "SlidingWindow", "Watch", "WorkLimits", "cut", "labels", "scores", "until"]

_Array = npt.NDArray[np.float32]
Predict = Callable[[_Array], _Array]  # (N, C, i, j, k) -> (N, classes, i, j, k)
# Weighted sums of scores (classes, n, J, K), their weights (n, J, K) and the labels that won.
Watch = Callable[[_Array, _Array, npt.NDArray[np.uint8]], None]

_FLOAT = 4  # bytes
_BLENDING = BlendingSpec()  # MONAI's
_LEAST_WEIGHT = 1e-3  # of the window's corners, where a Gaussian would vanish


@dataclass(frozen=True)
class SlidingWindow:
    """Size and spread of the windows.

    Attributes:
        size: Voxels of one window, as the network wants them.
        overlap: Share of a window that its neighbour covers too, 0 up to but not 1.
        batch: Windows in one call of the network; more cost memory and gain little on a CPU.
        sigma_scale: Standard deviation of the Gaussian over the window's side.
        blending: Which windows and weights, and the arithmetic of their sums.
    """

    size: Shape
    overlap: float = 0.5
    batch: int = 4
    sigma_scale: float = 0.125
    blending: BlendingSpec = _BLENDING

    def __post_init__(self) -> None:
        if len(self.size) != 3 or min(self.size) < 1 or self.batch < 1:
            raise ConfigError(
                f"sliding window: expected positive sizes, got {self.size}, batch {self.batch}"
            )
        if not 0 <= self.overlap < 1 or not self.sigma_scale > 0:
            raise ConfigError(
                "sliding window: expected an overlap from 0 to below 1 and a positive sigma_scale, "
                f"got {self.overlap} and {self.sigma_scale}"
            )

    def starts(self, shape: Sequence[int]) -> list[Shape]:
        """First voxel of each window in (I, J, K), the last axis fastest.

        Negative along an axis that is shorter than the window: it is padded before and behind.
        """
        layout = _Layout(self, shape)
        return [layout[n] for n in range(len(layout))]

    @property
    def sums(self) -> npt.DTypeLike:
        """The type in which scores and weights are added."""
        return np.float16 if self.blending.sums is Sums.F16 else np.float32

    def weights(self) -> _Array:
        """The weights of one window, largest in its middle."""
        if self.blending.weights is WindowWeights.UNIFORM:
            return np.ones(self.size, dtype=np.float32)
        if self.blending.weights is WindowWeights.PEAK:
            return self._peak()
        axes = []
        for side in self.size:
            away = np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2)
            axes.append(np.exp(away**2 / np.float32(-2 * (self.sigma_scale * side) ** 2)))
        product: _Array = axes[0][:, None, None] * axes[1][:, None] * axes[2]
        least = np.float32(max(float(product.min()), _LEAST_WEIGHT))
        return np.maximum(product, least, out=product)

    def _peak(self) -> _Array:
        """The weights of nnU-Net: a filtered peak of height 10, rounded to 16 bits, never 0."""
        peak = np.zeros(self.size)
        peak[tuple(side // 2 for side in self.size)] = 1.0
        sigma = [side * self.sigma_scale for side in self.size]
        smooth = ndimage.gaussian_filter(peak, sigma, mode="constant", cval=0.0)
        rounded = (smooth / (smooth.max() / 10.0)).astype(np.float16)
        rounded[rounded == 0] = rounded[rounded > 0].min()
        return np.asarray(rounded, dtype=np.float32)

    def memory_bytes(
        self, shape: Sequence[int], channels: int, classes: int, *, whole_scores: bool = False
    ) -> int:
        """What `labels` (or `scores`) will hold at its peak, image and answer included.

        The network's own memory is not in it: see `WorkLimits.network_bytes`.
        """
        voxels, plane, window = math.prod(shape), shape[1] * shape[2], math.prod(self.size)
        layout = _Layout(self, shape)
        depth, batch = layout.depth, min(self.batch, len(layout))
        image = channels * voxels * _FLOAT
        slab = (classes + 1) * depth * plane * _FLOAT
        windows = (batch * (channels + classes) + classes + 3) * window * _FLOAT
        answer = classes * voxels * _FLOAT if whole_scores else voxels + 7 * depth * plane
        return image + slab + windows + answer


@dataclass(frozen=True)
class WorkLimits:
    """What one volume may cost.

    Attributes:
        memory_bytes: Refuse volumes that would take more; nothing is refused when it is left out.
        network_bytes: What the network itself takes for one batch; measured once for a model.
        between: Called before each batch with the windows done and their number; it may raise, to
            stop work that nobody waits for any more.
    """

    memory_bytes: int | None = None
    network_bytes: int = 0
    between: Callable[[int, int], None] | None = None


def until(
    deadline: float, clock: Callable[[], float] = time.monotonic
) -> Callable[[int, int], None]:
    """A `between` that raises DeadlineError once the clock has passed `deadline` (seconds)."""

    def check(done: int, total: int) -> None:
        if clock() >= deadline:
            raise DeadlineError(
                f"expected the answer in the time allowed, got {done} of {total} windows done by "
                "then; allow more time or send a smaller volume"
            )

    return check


def scores(
    image: _Array,
    predict: Predict,
    window: SlidingWindow,
    classes: int,
    limits: WorkLimits | None = None,
) -> _Array:
    """Image (C, I, J, K) -> blended scores (classes, I, J, K), float32 or the type of the sums.

    Raises:
        PayloadTooLargeError: it would take more memory than allowed; known before work starts.
        DeadlineError: `limits.between` found that time is up.
        ServerFailedError: a score is too large for sums in 16 bits.
        ValueError: the network answers with another shape than (N, classes, *window.size).
    """
    shape = image.shape[1:]
    _check_memory(window, image.shape, classes, limits, whole_scores=True)
    full = np.empty((classes, *shape), dtype=window.sums)
    for first, total, weight in _slabs(image, predict, window, classes, limits):
        if not np.isfinite(total).all():
            raise ServerFailedError(
                "expected scores that can be added in 16 bits, got larger ones; the model needs "
                "blending.sums f32"
            )
        np.divide(total, weight, out=full[:, first : first + weight.shape[0]])
    return full


def labels(
    image: _Array,
    predict: Predict,
    window: SlidingWindow,
    classes: int,
    limits: WorkLimits | None = None,
    watch: Watch | None = None,
) -> npt.NDArray[np.uint8]:
    """Image (C, I, J, K) -> the class of the largest blended score, uint8 (I, J, K).

    For sums in float32: those in float16 are rounded once more when they are divided.

    The same as `scores(...).argmax(axis=0)` (of equal scores the first), without ever holding
    them. Raises as `scores` does. `watch`, where given, is shown every plane once.
    """
    _check_memory(window, image.shape, classes, limits, whole_scores=False)
    winner = np.empty(image.shape[1:], dtype=np.uint8)
    for first, total, weight in _slabs(image, predict, window, classes, limits):
        # Weights are alike for all classes: there is nothing to divide by.
        found = winner[first : first + weight.shape[0]]
        found[:] = argmax_channels(total)
        if watch is not None:
            watch(total, weight, found)
    return winner


def _slabs(
    image: _Array,
    predict: Predict,
    window: SlidingWindow,
    classes: int,
    limits: WorkLimits | None,
) -> Iterator[tuple[int, _Array, _Array]]:
    """Finished planes: the first one's index, weighted sums (classes, n, J, K), weights (n, J, K).

    The arrays are views that the next step overwrites.
    """
    shape = image.shape[1:]
    layout = _Layout(window, shape)
    count = len(layout)
    gaussian = window.weights()
    total = np.zeros((classes, layout.depth, *shape[1:]), dtype=window.sums)
    weight = np.zeros((layout.depth, *shape[1:]), dtype=window.sums)
    batch = np.zeros((min(window.batch, count), image.shape[0], *window.size), np.float32)
    base = 0  # the plane of the volume that the accumulators begin with
    for done in range(0, count, window.batch):
        if limits is not None and limits.between is not None:
            limits.between(done, count)
        following = min(done + window.batch, count)
        places = [_place(layout[n], shape, window.size) for n in range(done, following)]
        for n in range(len(places)):
            cut(image, layout[done + n], window, batch[n])
        answer = predict(batch[: len(places)])
        if answer.shape != (len(places), classes, *window.size):
            raise ValueError(
                f"expected scores of shape {(len(places), classes, *window.size)}, "
                f"got {answer.shape}"
            )
        for n, (inside, (i, j, k)) in enumerate(places):
            here = (slice(i.start - base, i.stop - base), j, k)
            total[:, *here] += answer[n][:, *inside] * gaussian[inside]
            weight[here] += gaussian[inside]
        del answer  # not beside the next one
        finished = max(0, layout[following][0]) if following < count else shape[0]
        if finished > base:
            yield base, total[:, : finished - base], weight[: finished - base]
            _shift(total, weight, finished - base)
            base = finished


class _Layout:
    """Where the windows of a volume begin, in order, without a list of them all."""

    def __init__(self, window: SlidingWindow, shape: Sequence[int]) -> None:
        self._window, self._planes = window, shape[0]
        self._axes = [
            _along(side, size, window.overlap, window.blending.placement)
            for side, size in zip(shape, window.size, strict=True)
        ]

    def __len__(self) -> int:
        return math.prod(map(len, self._axes))

    def __getitem__(self, n: int) -> Shape:
        n, k = divmod(n, len(self._axes[2]))
        i, j = divmod(n, len(self._axes[1]))
        return self._axes[0][i], self._axes[1][j], self._axes[2][k]

    @property
    def depth(self) -> int:
        """Planes that are unfinished at one time, at most."""
        batch, per_plane = self._window.batch, len(self._axes[1]) * len(self._axes[2])
        first = np.arange(0, len(self), batch)
        last = np.minimum(first + batch, len(self)) - 1
        i = np.array(self._axes[0])
        ends = np.minimum(self._planes, i[last // per_plane] + self._window.size[0])
        return int((ends - np.maximum(0, i[first // per_plane])).max())


def _along(side: int, window: int, overlap: float, placement: Placement) -> list[int]:
    if side <= window:
        return [-((window - side) // 2)]
    if window == 1:  # planes: every one, once
        return list(range(side))
    if placement is Placement.EVEN:
        count = math.ceil((side - window) / (window * (1 - overlap))) + 1
        return [round((side - window) / (count - 1) * n) for n in range(count)]
    step = max(1, int(window * (1 - overlap)))
    count = math.ceil((side - window) / step) + 1
    return [min(n * step, side - window) for n in range(count)]


def cut(image: _Array, start: Shape, window: SlidingWindow, target: _Array) -> None:
    """Write the window (C, i, j, k) of an image (C, I, J, K) that begins at `start` to `target`.

    Args:
        image: What is larger or smaller than the window.
        start: First voxel of the window, negative along an axis that has to be padded.
        window: Its size and padding.
        target: Of the window's size; zeros where the image does not reach and padding is zeros.
    """
    if window.blending.padding is Padding.EDGE:
        index = [
            np.arange(at, at + side).clip(0, end - 1)
            for at, side, end in zip(start, window.size, image.shape[1:], strict=True)
        ]
        target[:] = image[np.ix_(np.arange(len(image)), *index)]
        return
    inside, outside = _place(start, image.shape[1:], window.size)
    target[:, *inside] = image[:, *outside]


def _place(
    start: Shape, shape: Sequence[int], size: Shape
) -> tuple[tuple[slice, slice, slice], tuple[slice, slice, slice]]:
    """Which part of a window lies in the volume, and where there."""
    lows = [max(0, at) for at in start]
    highs = [min(at + side, end) for at, side, end in zip(start, size, shape, strict=True)]
    inside = [slice(a - at, b - at) for at, a, b in zip(start, lows, highs, strict=True)]
    outside = [slice(a, b) for a, b in zip(lows, highs, strict=True)]
    return (inside[0], inside[1], inside[2]), (outside[0], outside[1], outside[2])


def _shift(total: _Array, weight: _Array, count: int) -> None:
    """Drop the first planes and make room for as many at the end."""
    for plane in range(weight.shape[0] - count):  # plane by plane: no second copy
        total[:, plane] = total[:, plane + count]
        weight[plane] = weight[plane + count]
    total[:, -count:] = 0.0
    weight[-count:] = 0.0


def _check_memory(
    window: SlidingWindow,
    image_shape: Sequence[int],
    classes: int,
    limits: WorkLimits | None,
    *,
    whole_scores: bool,
) -> None:
    """Refuse what would not fit, and say what would."""
    if limits is None or limits.memory_bytes is None:
        return
    channels, shape = image_shape[0], tuple(image_shape[1:])

    def needed(of: Sequence[int]) -> int:
        own = window.memory_bytes(of, channels, classes, whole_scores=whole_scores)
        return own + limits.network_bytes

    if needed((1, 1, 1)) > limits.memory_bytes:
        raise ConfigError(
            f"sliding window: expected a memory limit above {mib(needed((1, 1, 1)))}, which one "
            f"batch of windows takes, got {mib(limits.memory_bytes)}"
        )
    refuse_above(limits.memory_bytes, shape, needed)
