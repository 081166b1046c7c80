"""A volume to try the model on that is nobody's: the average of many, or computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medserve.errors import ConfigError
from medserve.imaging.geometry import Geometry, Shape
from medserve.imaging.volume import Volume
from training.volumes.data import LoadedCase

__all__ = ["LEAST_CASES", "average_volume", "centred"]

LEAST_CASES = 16  # fewer would let one of them show through
_GREATEST = 1000.0  # intensities become integers from 0 to it, as a scanner's are


def average_volume(
    cases: Sequence[LoadedCase], shape: Shape, spacing_mm: Sequence[float]
) -> Volume:
    """The mean of the volumes, each shifted by whole voxels so that its labels lie in the middle.

    Args:
        cases: At least `LEAST_CASES`; one channel.
        shape: Voxels of the answer.
        spacing_mm: Of the cases' grid.

    Raises:
        ConfigError: too few cases.
    """
    if len(cases) < LEAST_CASES:
        raise ConfigError(
            f"expected at least {LEAST_CASES} volumes to average, so that none can be recognised, "
            f"got {len(cases)}"
        )
    total = np.zeros(shape, dtype=np.float64)
    count = np.zeros(shape, dtype=np.int64)
    for case in cases:
        where = centred(case.mask.numpy(), shape)
        inside = tuple(
            slice(max(0, -start), min(side, length - start))
            for start, side, length in zip(where, shape, case.mask.shape, strict=True)
        )
        outside = tuple(
            slice(each.start + start, each.stop + start)
            for each, start in zip(inside, where, strict=True)
        )
        total[inside] += case.image[0].numpy()[outside]
        count[inside] += 1
    mean = total / np.maximum(count, 1)
    mean[count < LEAST_CASES] = 0.0  # nothing that only a few of them have
    array = np.round(_GREATEST * mean).astype(np.int16)
    return Volume(array, Geometry.from_spacing(shape, spacing_mm))


def centred(mask: npt.NDArray[np.uint8], shape: Shape) -> tuple[int, ...]:
    """Voxel of the case at which a box of `shape` begins whose middle is that of the labels."""
    middle = ndimage.center_of_mass(mask > 0)
    return tuple(round(centre - (side - 1) / 2) for centre, side in zip(middle, shape, strict=True))
