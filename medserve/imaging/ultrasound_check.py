"""Whether a picture looks like B-mode ultrasound at all, told from its pixels.

A network for ultrasound finds something in a photograph, too. Speckle gives ultrasound away: it is
grey, its tissue has grain everywhere, and that grain is neither missing (smooth walls, computed
tomography) nor coarse (print, grass), nor is much of the picture white. The limits were chosen on
622 real breast-ultrasound frames, of which they flag 1.9 %, against radiographs, CT and MR slices,
stained cells and photographs; `tests/imaging/test_likeness.py` repeats the count. It is a warning
for the caller, no filter: the mask is given all the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image as pillow

from medserve.imaging.image import Image

__all__ = ["looks_like_ultrasound"]

_SIDE, _BLOCK = 256, 8  # pixels: of the picture that is looked at, and of a block in it
_CHROMA, _MOST_COLOURED = 0.15, 0.25  # a Doppler window is coloured, a photograph all over
_LIT = 0.06  # mean of a block that is not black ground
_SMOOTH, _MOST_SMOOTH = 0.012, 0.2  # grain below it is none; share of such blocks
_COARSEST_GRAIN = 0.07  # median over blocks, in intensity
_COARSEST_RELATIVE = 0.4  # the same over the block's mean
_WHITE, _MOST_WHITE = 0.75, 0.2


def looks_like_ultrasound(image: Image) -> bool:
    """False for what is coloured, smooth, coarse or bright as ultrasound never is."""
    if _coloured_share(image) > _MOST_COLOURED:
        return False
    grey = _shrunk(image.grey())
    if float((grey > _WHITE).mean()) > _MOST_WHITE:
        return False
    mean, grain = _blocks(grey)
    lit = mean > _LIT
    if not lit.any():
        return False
    mean, grain = mean[lit], grain[lit]
    return (
        float((grain < _SMOOTH).mean()) <= _MOST_SMOOTH
        and float(np.median(grain)) <= _COARSEST_GRAIN
        and float(np.median(grain / mean)) <= _COARSEST_RELATIVE
    )


def _coloured_share(image: Image) -> float:
    if not image.is_colour:
        return 0.0
    sparse = image.array[::2, ::2]  # a share needs no more
    return float((sparse.max(axis=2) - sparse.min(axis=2) > _CHROMA).mean())


def _shrunk(grey: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """At most `_SIDE` pixels long and at least one block, so that grain means the same."""
    height, width = grey.shape
    scale = min(1.0, _SIDE / max(height, width))
    size = (max(_BLOCK, round(width * scale)), max(_BLOCK, round(height * scale)))
    if size == (width, height):
        return grey
    picture = pillow.fromarray(np.ascontiguousarray(grey))
    return np.asarray(picture.resize(size, pillow.Resampling.BILINEAR))


def _blocks(
    grey: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and grain of each block: the deviation that is left without mean and slope."""
    rows, columns = (side // _BLOCK for side in grey.shape)
    cut = grey[: rows * _BLOCK, : columns * _BLOCK]
    blocks = cut.reshape(rows, _BLOCK, columns, _BLOCK).swapaxes(1, 2).reshape(-1, _BLOCK, _BLOCK)
    mean = blocks.mean(axis=(1, 2))
    down, across = np.mgrid[:_BLOCK, :_BLOCK].astype(np.float32) - np.float32((_BLOCK - 1) / 2)
    power = (across**2).sum()
    rest = blocks - mean[:, None, None]
    for direction in (down, across):
        slope = (blocks * direction).sum(axis=(1, 2)) / power
        rest -= slope[:, None, None] * direction
    return mean, rest.std(axis=(1, 2))
