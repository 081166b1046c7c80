"""Pictures of masks on frames: one frame at its own size, or a contact sheet of a stack."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image as pillow
from PIL import ImageDraw, ImageFont

from medserve.errors import MedserveError
from medserve.imaging.frames import FrameGrid, FrameStack
from medserve.imaging.image import Image
from medserve.imaging.packed_masks import PackedMasks
from medserve.results.files.overlay import COLOURS, blend
from medserve.results.frame_segmentation import FrameSegmentation

__all__ = ["coloured", "draw", "grey_png", "layers"]

_TILES, _COLUMNS, _TILE_SIDE = 12, 4, 256  # of a contact sheet, pixels
_LINE = 400  # pixels of a frame's shorter side for each pixel of the line's width
_GAP, _FONT_SIZE, _TEXT, _MARK = 4, 13, (220, 220, 220), 6
_ALPHA = 0.2  # of the colour inside


def draw(source: FrameStack, found: FrameSegmentation) -> bytes:
    """A PNG of the frame with its mask, or of up to twelve frames of a stack.

    A single frame keeps its size to the pixel, so that the picture can replace it. Of a stack the
    frames are spread evenly over those that show the structure, over all where none does.
    """
    if not source.is_stack:
        return _png(pillow.fromarray(coloured(source.read(0), found.masks[0])))
    size = _tile_size(found.grid)
    tiles = [_tile(source, index, found.masks[index], size) for index in _chosen(found.masks)]
    return _png(_sheet(tiles))


def layers(source: FrameStack, masks: PackedMasks) -> tuple[bytes, bytes]:
    """Return the picture of `draw` in grey, and the masks (0, 1) of its pixels: PNGs of one size.

    Raises:
        InvalidImageError: the only frame cannot be read.
    """
    if not source.is_stack:
        return grey_png(source.read(0)), _png(pillow.fromarray(masks[0]))
    height, width = _tile_size(source.grid)
    chosen, blank = _chosen(masks), np.zeros(masks.size, dtype=np.uint8)
    bare = [_tile(source, index, blank, (height, width)) for index in chosen]
    ids = [
        pillow.fromarray(masks[index]).resize((width, height), pillow.Resampling.NEAREST)
        for index in chosen
    ]
    return _png(_sheet(bare)), _png(_sheet(ids))


def grey_png(image: Image) -> bytes:
    """Return a frame as an 8-bit grey PNG, pixel by pixel."""
    return _png(pillow.fromarray(np.rint(255 * image.grey()).astype(np.uint8)))


def coloured(image: Image, mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the frame (H, W, 3) in grey with a wash of colour and a line seen at any size."""
    grey = image.grey()
    width = max(1, round(min(mask.shape) / _LINE))
    picture = blend(grey, mask, _ALPHA, contour=False)
    picture[_rim(mask, width)] = COLOURS[0]
    return picture


def _rim(mask: npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.bool_]:
    """Pixels of the mask that lie within `width` of its edge, inside the picture."""
    kept = mask > 0
    core = np.pad(kept, 1, mode="edge")
    for _ in range(width):
        inner = core[1:-1, 1:-1]
        inner = inner & core[:-2, 1:-1] & core[2:, 1:-1] & core[1:-1, :-2] & core[1:-1, 2:]
        core = np.pad(inner, 1, mode="edge")
    return np.asarray(kept & ~core[1:-1, 1:-1])


def _sheet(tiles: Sequence[pillow.Image]) -> pillow.Image:
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    wide, high = tiles[0].width + _GAP, tiles[0].height + _GAP
    sheet = pillow.new("RGB", (columns * wide - _GAP, rows * high - _GAP))
    for place, tile in enumerate(tiles):
        sheet.paste(tile, (place % columns * wide, place // columns * high))
    return sheet


def _tile(
    source: FrameStack, index: int, mask: npt.NDArray[np.uint8], size: tuple[int, int]
) -> pillow.Image:
    try:
        picture = pillow.fromarray(_shrunk(source.read(index), mask, *size))
        note = ""
    except MedserveError:  # it has its own status in the answer
        picture, note = pillow.new("RGB", (size[1], size[0])), " unreadable"
    drawing, font = ImageDraw.Draw(picture), ImageFont.load_default(_FONT_SIZE)
    drawing.text((_MARK, _MARK), f"{index}{note}", fill=_TEXT, font=font)
    return picture


def _tile_size(grid: FrameGrid) -> tuple[int, int]:
    """Rows and columns: true to scale where the spacing is known, pixel by pixel elsewhere."""
    rows_mm, columns_mm = grid.spacing_mm or (1.0, 1.0)
    height, width = grid.size[0] * rows_mm, grid.size[1] * columns_mm
    scale = _TILE_SIDE / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _shrunk(
    image: Image, mask: npt.NDArray[np.uint8], height: int, width: int
) -> npt.NDArray[np.uint8]:
    grey = pillow.fromarray(np.ascontiguousarray(image.grey()))
    smooth = np.asarray(grey.resize((width, height), pillow.Resampling.BILINEAR))
    sharp = np.asarray(pillow.fromarray(mask).resize((width, height), pillow.Resampling.NEAREST))
    return coloured(Image(np.clip(smooth, 0.0, 1.0)), sharp)


def _chosen(masks: PackedMasks) -> Sequence[int]:
    """Indices spread evenly over the frames that show the structure, or over all."""
    marked = [index for index, mask in enumerate(masks) if mask.any()]
    indices = marked or range(len(masks))
    places = np.linspace(0, len(indices) - 1, min(_TILES, len(indices))).round().astype(int)
    return [indices[place] for place in np.unique(places)]


def _png(picture: pillow.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()
