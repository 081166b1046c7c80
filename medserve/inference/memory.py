"""Refuse work that would not fit into memory before it starts, and say what would."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from medserve.errors import PayloadTooLargeError
from medserve.imaging.geometry import Shape

__all__ = ["mib", "refuse_above"]

_HALVINGS = 20  # of the side that fits: exact to a millionth


def refuse_above(limit_bytes: int, shape: Sequence[int], needed: Callable[[Shape], int]) -> None:
    """Refuse a volume whose work takes more than the limit.

    Args:
        limit_bytes: What it may take.
        shape: Voxels (I, J, K) of the volume.
        needed: Bytes that the work on a volume of a shape takes; grows with every side.

    Raises:
        PayloadTooLargeError: too large; the message names a shape of like proportions that fits.
    """
    i, j, k = shape
    wanted = needed((i, j, k))
    if wanted <= limit_bytes:
        return

    def scaled(share: float) -> Shape:
        a, b, c = (max(1, int(side * share)) for side in shape)
        return a, b, c

    fits, fails = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (fits + fails) / 2
        fits, fails = (middle, fails) if needed(scaled(middle)) <= limit_bytes else (fits, middle)
    advice = (
        f"{_spoken(scaled(fits))} voxels would fit: crop or resample it"
        if needed(scaled(fits)) <= limit_bytes
        else "not even one of these voxels would fit: check its spacing"
    )
    raise PayloadTooLargeError(
        f"expected a volume that takes at most {mib(limit_bytes)} of memory, got "
        f"{_spoken(shape)} voxels, which would take {mib(wanted)}; {advice}"
    )


def mib(count: int) -> str:
    """Bytes for a person to read."""
    return f"{math.ceil(count / 2**20)} MiB"


def _spoken(shape: Sequence[int]) -> str:
    return " x ".join(str(side) for side in shape)
