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

__all__ = ["coloured", "draw", "layers", "picture_png"]

_TILES, _COLUMNS, _TILE_SIDE = 12, 4, 256  # of a contact sheet, pixels
_LINE = 400  # pixels of a frame's shorter side for each pixel of the line's width
_GAP, _FONT_SIZE, _TEXT, _MARK = 4, 13, (220, 220, 220), 6
_ALPHA = 0.2  # of the colour inside


def draw(source: FrameStack, found: FrameSegmentation, *, in_colour: bool = False) -> bytes:
    """A PNG of the frame with its mask, or of up to twelve frames of a stack.

    A single frame keeps its size to the pixel, so that the picture can replace it. Of a stack the
    frames are spread evenly over those that show a structure, over all where none does.

    Args:
        source: The frames.
        found: Their masks.
        in_colour: Whether the model sees colours; frames are drawn in grey otherwise.
    """
    if not source.is_stack:
        picture = coloured(source.read(0), found.masks[0], in_colour=in_colour)
        return _png(pillow.fromarray(picture))
    size = _tile_size(found.grid)
    tiles = [
        _tile(source, index, found.masks[index], size, in_colour=in_colour)
        for index in _chosen(found.masks)
    ]
    return _png(_sheet(tiles))


def layers(
    source: FrameStack, masks: PackedMasks, *, in_colour: bool = False
) -> tuple[bytes, bytes]:
    """Return the picture of `draw` without masks, and the ids of its pixels: PNGs of one size.

    Raises:
        InvalidImageError: the only frame cannot be read.
    """
    if not source.is_stack:
        bare_png = picture_png(source.read(0), in_colour=in_colour)
        return bare_png, _png(pillow.fromarray(masks[0]))
    height, width = _tile_size(source.grid)
    chosen, blank = _chosen(masks), np.zeros(masks.size, dtype=np.uint8)
    size = (height, width)
    bare = [_tile(source, index, blank, size, in_colour=in_colour) for index in chosen]
    ids = [
        pillow.fromarray(masks[index]).resize((width, height), pillow.Resampling.NEAREST)
        for index in chosen
    ]
    return _png(_sheet(bare)), _png(_sheet(ids))


def picture_png(image: Image, *, in_colour: bool = False) -> bytes:
    """Return a frame as an 8-bit PNG, pixel by pixel: in grey, or as it came."""
    shown = image.array if in_colour else image.grey()
    return _png(pillow.fromarray(np.rint(255 * shown).astype(np.uint8)))


def coloured(
    image: Image, mask: npt.NDArray[np.uint8], *, in_colour: bool = False
) -> npt.NDArray[np.uint8]:
    """Return the frame (H, W, 3) with a wash of colours and lines seen at any size.

    The frame itself is grey, unless it is asked for in its colours.
    """
    width = max(1, round(min(mask.shape) / _LINE))
    picture = blend(image.array if in_colour else image.grey(), mask, _ALPHA, contour=False)
    for label_id in range(1, int(mask.max()) + 1):
        picture[_rim(mask == label_id, width)] = COLOURS[(label_id - 1) % len(COLOURS)]
    return picture


def _rim(kept: npt.NDArray[np.bool_], width: int) -> npt.NDArray[np.bool_]:
    """Pixels of a structure that lie within `width` of its edge, inside the picture."""
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
    source: FrameStack,
    index: int,
    mask: npt.NDArray[np.uint8],
    size: tuple[int, int],
    *,
    in_colour: bool,
) -> pillow.Image:
    try:
        picture = pillow.fromarray(_shrunk(source.read(index), mask, *size, in_colour=in_colour))
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
    image: Image, mask: npt.NDArray[np.uint8], height: int, width: int, *, in_colour: bool
) -> npt.NDArray[np.uint8]:
    shown = image.array if in_colour else image.grey()
    planes = shown[..., np.newaxis] if shown.ndim == 2 else shown
    smaller = [
        pillow.fromarray(np.ascontiguousarray(planes[..., channel])).resize(
            (width, height), pillow.Resampling.BILINEAR
        )
        for channel in range(planes.shape[2])
    ]
    smooth = np.stack([np.asarray(each) for each in smaller], axis=-1)
    smooth = smooth if shown.ndim == 3 else smooth[..., 0]
    sharp = np.asarray(pillow.fromarray(mask).resize((width, height), pillow.Resampling.NEAREST))
    return coloured(Image(np.clip(smooth, 0.0, 1.0)), sharp, in_colour=in_colour)


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
