"""Whether synthetic images are copies of training images: nearest neighbours, and from when on.

Slices of one head, or of two heads that are alike, lie near each other without being copies. What
counts as a copy therefore comes from real images: one that lies nearer to a training image than all
but one in a hundred of the real images that the network never saw. A network that copies nobody is
then called a copier in about 1 % of its images, as real images are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

__all__ = ["QUANTILE", "CopyCheck", "check_copies", "copy_threshold", "nearest", "nearest_pixels"]

QUANTILE = 0.01  # of unseen real images that lie nearer to a training image than the threshold
_ROWS = 256  # images compared at a time; bounds memory

Images = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class CopyCheck:
    """Nearest training images in one space.

    Attributes:
        threshold: Distance under which an image counts as a copy.
        synthetic: Distance of each synthetic image to its nearest training image.
        neighbours: Which training image that is.
        unseen: Distance of each unseen real image to its nearest training image.
    """

    threshold: float
    synthetic: Numbers
    neighbours: Indices
    unseen: Numbers

    @property
    def copies(self) -> npt.NDArray[np.bool_]:
        """Which synthetic images are copies."""
        return np.asarray(self.synthetic < self.threshold)

    @property
    def rate(self) -> float:
        """Share of synthetic images that are copies."""
        return float(self.copies.mean())

    @property
    def unseen_rate(self) -> float:
        """Share of unseen real images that the same rule would call copies."""
        return float((self.unseen < self.threshold).mean())


def copy_threshold(calibration: Numbers) -> float:
    """Distances of unseen real images to the training images -> the distance of a copy."""
    return float(np.quantile(calibration, QUANTILE))


def check_copies(
    synthetic: tuple[Numbers, Indices], calibration: Numbers, unseen: Numbers
) -> CopyCheck:
    """Threshold from `calibration`; `unseen` are other real images, to show that it holds."""
    distances, neighbours = synthetic
    return CopyCheck(copy_threshold(calibration), distances, neighbours, unseen)


def nearest_pixels(images: Images, training: Images) -> tuple[Numbers, Indices]:
    """RMS difference in grey levels to the nearest training image, mirrored or not, and which.

    Args:
        images: uint8 (N, C, H, W).
        training: uint8 (M, C, H, W), of the same size.
    """
    known = training.reshape(len(training), -1).astype(np.float32)
    lengths = np.square(known).sum(axis=1)
    best = np.full(len(images), np.inf)
    which = np.zeros(len(images), dtype=np.intp)
    for seen in (images, images[..., ::-1]):
        flat = seen.reshape(len(seen), -1).astype(np.float32)
        for start in range(0, len(flat), _ROWS):
            rows = slice(start, start + _ROWS)
            part = flat[rows]
            squared = np.square(part).sum(axis=1)[:, None] + lengths - 2 * part @ known.T
            found = squared.argmin(axis=1)
            # Exactly, for the winner: float32 loses small differences of large sums.
            distance = np.sqrt(np.square(part - known[found]).mean(axis=1, dtype=np.float64))
            nearer = distance < best[rows]
            best[rows] = np.where(nearer, distance, best[rows])
            which[rows] = np.where(nearer, found, which[rows])
    return best, which


def nearest(features: Numbers, training: Numbers) -> tuple[Numbers, Indices]:
    """Euclidean distance of each row to the nearest row of `training`, and which."""
    best = np.empty(len(features))
    which = np.empty(len(features), dtype=np.intp)
    for start in range(0, len(features), _ROWS):
        rows = slice(start, start + _ROWS)
        distances = cdist(features[rows], training)
        which[rows] = distances.argmin(axis=1)
        best[rows] = distances.min(axis=1)
    return best, which
