"""How much images of a set differ from each other, by multi-scale structural similarity.

Two images that are equal have an MS-SSIM of 1 (Wang et al., Asilomar 2003). A generator that makes
one image again and again shows a mean near 1 over its pairs, where real images show less.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

__all__ = ["mean_similarity"]

# Exponents of the scales (Wang et al., table 1). Small images have no room for all five: the first
# that fit are taken, scaled to the same sum.
_EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW = 11  # pixels
_BATCH = 128  # pairs a pass


def mean_similarity(
    images: npt.NDArray[np.uint8],
    label_ids: npt.NDArray[np.int64],
    pairs: int = 1000,
    seed: int = 0,
) -> float:
    """Mean MS-SSIM over random pairs of one class each; NaN where no class has two images.

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
