"""Outlines as annotation tools write them, and the masks that they mean.

Coordinates are x, y in pixels from the picture's upper left corner, as COCO counts them: the
first pixel reaches from 0 to 1 and its centre is at 0.5. A pixel belongs to a polygon when its
centre does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from skimage.draw import polygon as polygon_pixels

__all__ = ["Mask", "Points", "decode_runs", "fill", "outside_by"]

Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.float64]  # (P, 2) of x, y

_CHAR_ZERO, _MORE, _SIGN = 48, 0x20, 0x10  # of COCO's compressed counts


def fill(polygons: Iterable[Points], shape: tuple[int, int]) -> Mask:
    """The union of polygons as a mask (H, W); what lies outside is cut off."""
    mask = np.zeros(shape, dtype=bool)
    for points in polygons:
        x, y = points.T - 0.5
        rows, columns = polygon_pixels(y, x, shape)  # type: ignore[no-untyped-call]
        mask[rows, columns] = True
    return mask


def outside_by(points: Points, shape: tuple[int, int]) -> float:
    """How far the farthest point lies outside the picture, in pixels; 0 where none does."""
    height, width = shape
    over = np.maximum(points - np.array([width, height]), -points)
    return float(max(over.max(initial=0.0), 0.0))


def decode_runs(counts: str | Sequence[int], shape: tuple[int, int]) -> Mask:
    """COCO's run lengths -> mask (H, W): column after column, zeros first.

    Raises:
        ValueError: they do not fill the picture.
    """
    runs = _decompressed(counts) if isinstance(counts, str) else [int(run) for run in counts]
    height, width = shape
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(f"run lengths that do not fill {width} x {height} pixels")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T.copy()


def _decompressed(text: str) -> list[int]:
    """Five bits a character, least first; from the fourth on, differences to the last but one."""
    runs: list[int] = []
    at = 0
    while at < len(text):
        value, shift, more = 0, 0, True
        while more:
            if at >= len(text):
                raise ValueError("run lengths that are cut short")
            code = ord(text[at]) - _CHAR_ZERO
            if not 0 <= code < 64:
                raise ValueError("run lengths with an impossible character")
            value |= (code & 0x1F) << shift
            more = bool(code & _MORE)
            at, shift = at + 1, shift + 5
            if not more and code & _SIGN:
                value |= -1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs
