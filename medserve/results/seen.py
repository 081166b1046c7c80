"""Tell where an input or a mask lies outside of what the training data were like.

The numbers come from the model's description; `training.volumes.seen` and `training.frames.seen`
measure them with the functions of this module, so that training and serving mean the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from medserve.spec.seen import LAYOUT_PARTS, FrameSeenSpec, Range, SeenSpec, VolumeSeenSpec
from medserve.tasks.result import Doubt, DoubtReason

__all__ = [
    "doubts_about_image",
    "doubts_about_shares",
    "doubts_about_volumes",
    "image_layout",
    "image_quantiles",
    "image_texture",
    "layout_correlation",
    "told_apart",
]

_MARGIN = 1.25  # on either side of a range: a training set does not hold the extremes
_PLANES = 64  # of a volume that are looked at; more would take longer than the network
_VALUES = 1_000_000  # that quantiles are taken from
_MOST_DIGITS = 6  # of a number in a sentence

_Image = npt.NDArray[np.float32]


def doubts_about_image(
    seen: SeenSpec, image: _Image, size_mm: Sequence[float] | None
) -> tuple[Doubt, ...]:
    """Return what an image has in common with none of the training data.

    Args:
        seen: What the training data were like.
        image: float32 (I, J, K) or (H, W) as the network sees it.
        size_mm: Its extent along the same axes; None where it is not known.
    """
    return tuple(_of_image(seen, image, size_mm))


def doubts_about_volumes(
    seen: VolumeSeenSpec, volumes_ml: Mapping[str, float]
) -> tuple[Doubt, ...]:
    """Return which labels are larger or smaller than in any reference mask of the training data."""
    return tuple(
        Doubt(
            DoubtReason.LABEL_VOLUME,
            f"{label}: {volumes_ml[label]:.2f} ml, in the training data {_spoken(limits, 2)} ml",
        )
        for label, limits in seen.label_ml.items()
        if label in volumes_ml and not _within(volumes_ml[label], limits)
    )


def doubts_about_shares(seen: FrameSeenSpec, shares: Mapping[str, float]) -> tuple[Doubt, ...]:
    """Return which labels cover more or less of a frame than any reference mask did.

    Args:
        seen: What the training data were like.
        shares: Share of each label in the part of the frame that the network saw.
    """
    return tuple(
        Doubt(
            DoubtReason.LABEL_AREA,
            f"{label}: {shares[label]:.3f} of the frame, in the training data {_spoken(limits, 3)}",
        )
        for label, limits in seen.label_share.items()
        if label in shares and not _within(shares[label], limits)
    )


def image_quantiles(image: _Image, count: int) -> npt.NDArray[np.float64]:
    """Return quantiles of an image at 1 / (count + 1), 2 / (count + 1) and so on."""
    values = np.concatenate([plane.ravel() for plane in _planes(image)])
    sparse = values[:: -(-values.size // _VALUES)]
    return np.asarray(np.quantile(sparse, np.arange(1, count + 1) / (count + 1)))


def image_texture(image: _Image) -> float:
    """Return the mean difference between neighbours in a plane over the standard deviation.

    0 for a constant image.
    """
    steps, spread = [], []
    for plane in _planes(image):
        steps.append([float(np.abs(np.diff(plane, axis=axis)).mean()) for axis in (0, 1)])
        spread.append([float(plane.mean()), float(np.square(plane, dtype=np.float64).mean())])
    mean, square = np.mean(spread, axis=0)
    deviation = float(np.sqrt(max(square - mean**2, 0.0)))
    return float(np.mean(steps)) / deviation if deviation > 0 else 0.0


def image_layout(image: _Image) -> npt.NDArray[np.float64]:
    """Return the mean intensities in 4 parts along each axis, those of the last side by side."""
    means: npt.NDArray[np.float64] = image.astype(np.float64, copy=False)
    for axis, size in enumerate(image.shape):
        edges = np.arange(LAYOUT_PARTS + 1) * size // LAYOUT_PARTS
        parts = [
            means.take(range(low, max(high, low + 1)), axis).mean(axis, keepdims=True)
            for low, high in itertools.pairwise(edges)
        ]
        means = np.concatenate(parts, axis)
    return means.ravel()


def layout_correlation(
    layout: npt.NDArray[np.float64], expected: Sequence[float] | npt.NDArray[np.float64]
) -> float:
    """Return Pearson's correlation of two layouts; 0 where one of them is constant."""
    both = np.stack([layout, np.asarray(expected)])
    both -= both.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(both, axis=1)
    return float(both[0] @ both[1] / lengths.prod()) if lengths.min() > 1e-12 else 0.0


def told_apart(value: float, limit: float, digits: int) -> tuple[str, str]:
    """Return a value and its limit with so many digits, or as many more as tell them apart."""
    told = f"{value:.{digits}f}", f"{limit:.{digits}f}"
    while float(told[0]) == float(told[1]) and digits < _MOST_DIGITS:
        digits += 1
        told = f"{value:.{digits}f}", f"{limit:.{digits}f}"
    return told


def _of_image(seen: SeenSpec, image: _Image, size_mm: Sequence[float] | None) -> Iterator[Doubt]:
    if seen.size_mm and size_mm and not all(map(_within, size_mm, seen.size_mm)):
        sizes = " x ".join(f"{mm:.0f}" for mm in size_mm)
        ranges = " x ".join(_spoken(limits, 0) for limits in seen.size_mm)
        yield Doubt(DoubtReason.SIZE, f"{sizes} mm, in the training data {ranges} mm")
    if seen.quantiles:
        found = image_quantiles(image, len(seen.quantiles))
        distance = float(np.abs(found - seen.quantiles).mean())
        if distance > seen.quantile_distance:
            found_at, limit = told_apart(distance, seen.quantile_distance, 3)
            yield Doubt(
                DoubtReason.INTENSITIES,
                f"distance {found_at} to the mean histogram, in the training data up to {limit}",
            )
    if seen.texture is not None and not _within(texture := image_texture(image), seen.texture):
        yield Doubt(
            DoubtReason.TEXTURE,
            f"differences between neighbours of {texture:.2f} standard deviations, in the "
            f"training data {_spoken(seen.texture, 2)}",
        )
    if seen.layout:
        alike = layout_correlation(image_layout(image), seen.layout)
        if alike < seen.layout_correlation:
            found_at, limit = told_apart(alike, seen.layout_correlation, 2)
            yield Doubt(
                DoubtReason.LAYOUT,
                f"bright and dark lie elsewhere: correlation {found_at} with the mean image, in "
                f"the training data {limit} or more",
            )


def _planes(image: _Image) -> Iterator[_Image]:
    """Yield the planes (J, K) of a volume, or as many that lie evenly in it; a frame is one."""
    if image.ndim == 2:
        yield image
        return
    step = -(-len(image) // _PLANES)
    yield from image[::step]


def _within(value: float, limits: Range) -> bool:
    low, high = limits
    return low / _MARGIN <= value <= high * _MARGIN


def _spoken(limits: Range, digits: int) -> str:
    return f"{limits[0]:.{digits}f} to {limits[1]:.{digits}f}"
