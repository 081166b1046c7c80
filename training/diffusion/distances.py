"""How far a set of images is from another, in the features of a stated extractor.

Figures compare only with the same extractor, the same number of images and the same size: each is
biased by the number of images, which is why a distance between two sets of real images belongs
beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

__all__ = ["Coverage", "Features", "coverage", "frechet_distance", "kernel_distance"]

Features = npt.NDArray[np.float64]  # (N, D), a row per image


def frechet_distance(first: Features, second: Features) -> float:
    """Squared Fréchet distance of the normal distributions fitted to both (Heusel et al., 2017).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), arXiv:1706.08500, equation 6.
    """
    difference = first.mean(axis=0) - second.mean(axis=0)
    one, two = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    # tr sqrt(C1 C2) is the sum of the roots of the eigenvalues of sqrt(C1) C2 sqrt(C1), which is
    # symmetric: no complex rounding as in a general matrix root.
    values, vectors = np.linalg.eigh(np.atleast_2d(one))
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    inner = np.linalg.eigvalsh(root @ np.atleast_2d(two) @ root)
    shared = np.sqrt(inner.clip(min=0)).sum()
    return float(difference @ difference + np.trace(np.atleast_2d(one + two)) - 2 * shared)


def kernel_distance(first: Features, second: Features) -> float:
    """Unbiased squared maximum mean discrepancy with the cubic kernel (Bińkowski et al., 2018).

    Kernel (x.y / D + 1)^3, arXiv:1801.01401, section 4. About zero, and sometimes below, where
    both sets have one distribution.
    """

    def kernel(one: Features, two: Features) -> Features:
        return np.asarray((one @ two.T / one.shape[1] + 1) ** 3)

    def within(features: Features) -> float:
        values, count = kernel(features, features), len(features)
        return float((values.sum() - np.trace(values)) / (count * (count - 1)))

    return within(first) + within(second) - 2 * float(kernel(first, second).mean())


@dataclass(frozen=True)
class Coverage:
    """Precision and recall of synthetic images (Kynkäänniemi et al., arXiv:1904.06991).

    Attributes:
        precision: Share of synthetic images that lie among the real ones.
        recall: Share of real images that lie among the synthetic ones.
    """

    precision: float
    recall: float


def coverage(real: Features, synthetic: Features, neighbours: int = 3) -> Coverage:
    """Precision and recall: an image lies among others if one has it nearer than its k-th."""
    between = cdist(synthetic, real)
    return Coverage(
        precision=float((between <= _reach(real, neighbours)).any(axis=1).mean()),
        recall=float((_reach(synthetic, neighbours) >= between.T).any(axis=1).mean()),
    )


def _reach(features: Features, neighbours: int) -> Features:
    """Distance of each row to its k-th nearest other row."""
    within = np.sort(cdist(features, features), axis=1)
    return np.asarray(within[:, neighbours])  # column 0 is the row itself
