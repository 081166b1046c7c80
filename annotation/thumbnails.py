"""A sheet of thumbnails, with masks where there are some, for a person to look over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as pillow

from annotation.manifest import IMAGES, MASKS, FrameEntry, read_grey
from medserve.results.files.overlay import blend

__all__ = ["write_sheet"]

_SIDE, _GAP, _COLUMNS = 192, 4, 6  # pixels, pixels, thumbnails in a row


def write_sheet(path: Path, folder: Path, entries: Sequence[FrameEntry], most: int) -> None:
    """Write at most `most` frames of `folder`, spread evenly over the entries, as one PNG."""
    ordered = sorted(entries, key=lambda each: each.name)
    places = np.linspace(0, len(ordered) - 1, min(most, len(ordered))).round().astype(int)
    chosen = [ordered[place] for place in np.unique(places)]
    rows = -(-len(chosen) // _COLUMNS)
    columns = min(_COLUMNS, len(chosen))
    cell = _SIDE + _GAP
    sheet = pillow.new("RGB", (columns * cell - _GAP, rows * cell - _GAP), (40, 40, 40))
    for number, entry in enumerate(chosen):
        row, column = divmod(number, _COLUMNS)
        tile = _thumbnail(folder, entry.name)
        left = column * cell + (_SIDE - tile.width) // 2
        sheet.paste(tile, (left, row * cell + (_SIDE - tile.height) // 2))
    sheet.save(path, "PNG")


def _thumbnail(folder: Path, name: str) -> pillow.Image:
    grey = pillow.fromarray(read_grey(folder / IMAGES / name))
    scale = _SIDE / max(grey.size)
    size = (max(1, round(grey.width * scale)), max(1, round(grey.height * scale)))
    grey = grey.resize(size, pillow.Resampling.BOX if scale < 1 else pillow.Resampling.BILINEAR)
    if not (folder / MASKS / name).exists():
        return grey.convert("RGB")
    mask = pillow.fromarray(read_grey(folder / MASKS / name)).resize(
        size, pillow.Resampling.NEAREST
    )
    intensities = np.asarray(grey, dtype=np.float32) / np.float32(255)
    return pillow.fromarray(blend(intensities, (np.asarray(mask) > 127).astype(np.uint8), 0.15))
