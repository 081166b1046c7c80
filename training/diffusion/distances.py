"""How far a set of images is from another in the features of an extractor, and from itself.

Figures compare only with the same extractor, the same number of images and the same size: each is
biased by the number of images, which is why a distance between two sets of real images belongs
beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial.distance import cdist
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

__all__ = [
    "Coverage",
    "Features",
    "coverage",
    "frechet_distance",
    "kernel_distance",
    "mean_similarity",
]

Features = npt.NDArray[np.float64]  # (N, D), a row per image

# Exponents of the scales (Wang et al., table 1). Small images have no room for all five: the first
# that fit are taken, scaled to the same sum.
_EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW = 11  # pixels
_BATCH = 128  # pairs a pass


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


def mean_similarity(
    images: npt.NDArray[np.uint8],
    label_ids: npt.NDArray[np.int64],
    pairs: int = 1000,
    seed: int = 0,
) -> float:
    """Mean MS-SSIM over random pairs of one class each; NaN where no class has two images.

    Two images that are equal have an MS-SSIM of 1 (Wang et al., Asilomar 2003). A generator that
    makes one image again and again shows a mean near 1, where real images show less.

    Args:
        images: uint8 (N, C, H, W).
        label_ids: int64 (N,).
        pairs: How many; classes take part as often as they have images.
        seed: Of the choice of pairs.
    """
    draws = np.random.default_rng(seed)
    by_class = [np.flatnonzero(label_ids == label_id) for label_id in np.unique(label_ids)]
    by_class = [members for members in by_class if len(members) > 1]
    if not by_class:
        return float("nan")
    sizes = np.array([len(members) for members in by_class])
    chosen = draws.choice(len(by_class), pairs, p=sizes / sizes.sum())
    couples = np.array([draws.choice(by_class[n], 2, replace=False) for n in chosen])
    total = sum(
        float(_similarity(images[part[:, 0]], images[part[:, 1]]).sum())
        for part in np.array_split(couples, -(-pairs // _BATCH))
    )
    return total / pairs


def _similarity(
    first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float64]:
    """MS-SSIM of each pair, (N,)."""
    side = min(first.shape[2:])
    window = min(_WINDOW, side - 1 + side % 2)  # odd, and no larger than the image
    scales = 1
    while scales < len(_EXPONENTS) and side // 2**scales >= window:
        scales += 1
    exponents = np.array(_EXPONENTS[:scales]) * sum(_EXPONENTS) / sum(_EXPONENTS[:scales])
    with torch.inference_mode():
        found = multiscale_structural_similarity_index_measure(
            torch.from_numpy(first).float(),
            torch.from_numpy(second).float(),
            gaussian_kernel=False,  # a flat window, so that its size is the one that is stated
            kernel_size=window,
            reduction="none",
            data_range=255.0,
            betas=tuple(exponents.tolist()),
            normalize="relu",
        )
    return np.asarray(found.double().numpy())
