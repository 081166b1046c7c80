"""Typical pictures of a class that show no one: means of many similar training images.

Training data are not ours to publish; a mean of pictures that differ from each other keeps what
is common to the class and none of the persons in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from medserve.errors import ConfigError

__all__ = ["MEMBERS", "mean_picture"]

_log = logging.getLogger(__name__)

MEMBERS = 16  # images in a mean
_DIFFERENT = 8.0  # RMS grey levels of 255 between any two members; slices of one patient lie below
_CENTRES = 40  # centres tried
_CANDIDATES = 400  # images nearest to a centre, to choose members from

Pixels = npt.NDArray[np.uint8]


def mean_picture(
    images: Pixels, score: Callable[[Pixels], float], enough: float, members: int = MEMBERS
) -> Pixels:
    """Mean uint8 (H, W) or (H, W, 3) of `members` images near one centre, no two alike.

    Args:
        images: uint8 (N, H, W) or (N, H, W, 3), of one class.
        score: How well a mean stands for the class (e.g. the probability that a network gives).
        enough: The first mean with this score is taken, else the best there is.
        members: How many images go into the mean.

    Raises:
        ConfigError: too few images that differ.
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
    if best is None:
        raise ConfigError(
            f"expected {members} images of a class that differ by {_DIFFERENT:g} grey levels to "
            f"make an example picture of, got {len(images)} that are fewer or more alike"
        )
    if best_score < enough:
        _log.warning("the example picture scores %.3f, below %.3f", best_score, enough)
    return best


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
