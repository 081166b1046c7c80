"""Typical pictures of a class that show no one: means of many similar training images.

A class of too few images has none; `computed_picture` is nobody's either, and of no class.

Training data are not ours to publish; a mean of pictures that differ from each other keeps what
is common to the class and none of the persons in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["MEMBERS", "computed_picture", "mean_picture"]

_log = logging.getLogger(__name__)

MEMBERS = 16  # images in a mean
_DIFFERENT = 8.0  # RMS grey levels of 255 between any two members; slices of one patient lie below
_CENTRES = 40  # centres tried
_CANDIDATES = 400  # images nearest to a centre, to choose members from

Pixels = npt.NDArray[np.uint8]


def mean_picture(
    images: Pixels, score: Callable[[Pixels], float], enough: float, members: int = MEMBERS
) -> Pixels | None:
    """Return the mean uint8 (H, W) or (H, W, 3) of `members` images near one centre, no two alike.

    None where fewer images differ: a mean of fewer could show one of them.

    Args:
        images: uint8 (N, H, W) or (N, H, W, 3), of one class.
        score: How well a mean stands for the class (e.g. the probability that a network gives).
        enough: The first mean with this score is taken, else the best there is.
        members: How many images go into the mean.
    """
    flat = images.reshape(len(images), -1).astype(np.float32)
    centres = np.argsort(_rms(flat, flat.mean(axis=0)), kind="stable")[:_CENTRES]
    best, best_score = None, -np.inf
    for centre in centres:
        nearest = np.argsort(_rms(flat, flat[centre]), kind="stable")[:_CANDIDATES]
        chosen = _different(flat, nearest, members)
        if len(chosen) < members:
            continue
        mean = np.rint(flat[chosen].mean(axis=0)).astype(np.uint8).reshape(images.shape[1:])
        if (reached := score(mean)) > best_score:
            best, best_score = mean, reached
        if best_score >= enough:
            break
    if best is not None and best_score < enough:
        _log.warning("the example picture scores %.3f, below %.3f", best_score, enough)
    return best


def computed_picture(shape: tuple[int, ...], seed: int = 0) -> Pixels:
    """Return smooth blobs uint8 of a shape (H, W) or (H, W, 3), over the whole range of values."""
    random = np.random.default_rng(seed)
    deviations = [max(1.0, side / 12) for side in shape[:2]] + [0.0] * (len(shape) - 2)
    blobs = ndimage.gaussian_filter(random.normal(size=shape), deviations)
    scaled = (blobs - blobs.min()) / np.ptp(blobs)
    return np.rint(255.0 * scaled).astype(np.uint8)


def _different(
    flat: npt.NDArray[np.float32], nearest: npt.NDArray[np.intp], members: int
) -> list[int]:
    """The first `members` of `nearest` that lie `_DIFFERENT` apart from all chosen before."""
    chosen: list[int] = []
    for i in nearest:
        if not chosen or _rms(flat[chosen], flat[i]).min() >= _DIFFERENT:
            chosen.append(int(i))
        if len(chosen) == members:
            break
    return chosen


def _rms(flat: npt.NDArray[np.float32], one: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.sqrt(np.square(flat - one).mean(axis=1))
