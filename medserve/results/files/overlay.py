"""Pictures of a mask on its volume: a sheet of slices as PNG, true to scale.

Slices are shown as radiologists look at them: axial and coronal ones with the patient's right
side on the left of the picture, sagittal ones with the front on the left; letters say so. One
pixel of the picture is as wide as it is high in millimetres, whatever the voxels' spacing.
"""

from __future__ import annotations

import enum
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image as pillow
from PIL import ImageDraw, ImageFont

from medserve.imaging.intensity import percentile_window
from medserve.imaging.volume import Volume
from medserve.results.segmentation import Segmentation

__all__ = ["COLOURS", "Plane", "SheetLayout", "blend", "layers", "montage"]

# Okabe and Ito's palette (2008), told apart by colour-blind readers too.
COLOURS: tuple[tuple[int, int, int], ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
    (240, 228, 66),
    (0, 114, 178),
)
_GROUND, _TEXT = (0, 0, 0), (220, 220, 220)
_GAP, _LEGEND_HEIGHT, _FONT_SIZE = 4, 22, 13  # pixels


class Plane(enum.StrEnum):
    """How a volume is cut."""

    AXIAL = "axial"
    CORONAL = "coronal"
    SAGITTAL = "sagittal"


# Axis codes to show the volume in, then: the axis across, to the right, down; letters left and top.
_VIEWS: dict[Plane, tuple[str, tuple[int, int, int], str, str]] = {
    Plane.AXIAL: ("LPS", (2, 0, 1), "R", "A"),
    Plane.CORONAL: ("LPI", (1, 0, 2), "R", "S"),
    Plane.SAGITTAL: ("LPI", (0, 1, 2), "A", "S"),
}


@dataclass(frozen=True)
class SheetLayout:
    """How a sheet of slices looks."""

    slices: int = 12
    columns: int = 4
    side: int = 224  # pixels of a slice's longer side
    alpha: float = 0.25  # of the colour inside a label
    contour: bool = True  # a full-colour line along its edge


def montage(
    volume: Volume,
    segmentation: Segmentation,
    plane: Plane | None = None,
    layout: SheetLayout | None = None,
) -> bytes:
    """A PNG of slices spread evenly over the mask (over the volume, where the mask is empty).

    Args:
        volume: The source.
        segmentation: Its mask, on the same grid.
        plane: By default the one across the widest spacing, where slices are sharpest.
        layout: How it looks.

    Raises:
        ValueError: the mask lies on another grid than the volume.
    """
    if segmentation.geometry != volume.geometry:
        raise ValueError("the mask lies on another grid than the volume")
    layout = layout or SheetLayout()
    cut, letters = _cut(volume, segmentation.mask, plane or _sharpest(volume), layout)
    tiles = [
        _tile(blend(grey, labels, layout.alpha, contour=layout.contour), letters)
        for grey, labels in cut
    ]
    return _png(_sheet(tiles, layout.columns, _legend(segmentation)))


def layers(volume: Volume, mask: npt.NDArray[np.uint8]) -> tuple[bytes, bytes]:
    """Return the sheet of `montage` in grey, and the label ids of its pixels: PNGs of one size."""
    layout = SheetLayout()
    cut, letters = _cut(volume, mask, _sharpest(volume), layout)
    bare = [_tile(blend(grey, np.zeros_like(labels)), letters) for grey, labels in cut]
    ids = [pillow.fromarray(labels) for _, labels in cut]
    return _png(_sheet(bare, layout.columns, ())), _png(_sheet(ids, layout.columns, ()))


def blend(
    shown: npt.NDArray[np.float32],
    mask: npt.NDArray[np.integer],
    alpha: float = 0.25,
    *,
    contour: bool = True,
) -> npt.NDArray[np.uint8]:
    """A plane (H, W) or (H, W, 3) in [0, 1] with its mask (H, W) in colour -> RGB (H, W, 3)."""
    planes = shown if shown.ndim == 3 else np.repeat(shown[..., np.newaxis], 3, axis=2)
    picture = np.multiply(planes, np.float32(255), dtype=np.float32)
    colours = np.array(COLOURS, dtype=np.float32)[(mask.astype(np.intp) - 1) % len(COLOURS)]
    weight = np.where(mask > 0, np.float32(alpha), np.float32(0))
    if contour:
        weight[_edges(mask)] = 1.0
    picture += (colours - picture) * weight[..., np.newaxis]
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _edges(mask: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Pixels of a label beside a pixel of another label or of none, inside the picture."""
    padded = np.pad(mask, 1, mode="edge")
    inner = padded[1:-1, 1:-1]
    differs = np.zeros(mask.shape, dtype=np.bool_)
    for beside in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
        differs |= inner != beside
    return differs & (mask > 0)


def _cut(
    volume: Volume, mask: npt.NDArray[np.uint8], plane: Plane, layout: SheetLayout
) -> tuple[list[tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]], Sequence[str]]:
    """Return the slices of a sheet with their labels, true to scale, and the letters at them."""
    codes, (across, right, down), *letters = _VIEWS[plane]
    seen, order = volume.reoriented(codes)
    shown = order.apply(mask)
    spacing = seen.geometry.spacing_mm
    chosen = _chosen(shown, across, layout.slices)
    grey = percentile_window(_planes(seen.array, chosen, (across, right, down)))
    labels = _planes(shown, chosen, (across, right, down))
    size = _true_size(labels.shape[1:], (spacing[down], spacing[right]), layout.side)
    return [_scaled(g, m, size) for g, m in zip(grey, labels, strict=True)], letters


def _sharpest(volume: Volume) -> Plane:
    spacing = volume.reoriented("LPS")[0].geometry.spacing_mm
    widest = max(range(3), key=lambda axis: (round(spacing[axis], 3), axis))
    return (Plane.SAGITTAL, Plane.CORONAL, Plane.AXIAL)[widest]


def _chosen(mask: npt.NDArray[np.uint8], across: int, count: int) -> list[int]:
    """Indices spread evenly over the slices that carry a label, or over all."""
    marked = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {across})))
    first, last = (marked[0], marked[-1]) if marked.size else (0, mask.shape[across] - 1)
    shown = min(count, int(last - first) + 1)
    spread = np.linspace(first, last, shown) if shown > 1 else [(first + last) // 2]
    return sorted({round(float(index)) for index in spread})


def _planes(
    array: npt.NDArray[np.generic], chosen: Sequence[int], axes: tuple[int, int, int]
) -> npt.NDArray[np.generic]:
    """(I, J, K) -> (slices, rows, columns)."""
    across, right, down = axes
    return array.transpose(across, down, right)[list(chosen)]


def _true_size(
    shape: tuple[int, ...], spacing_mm: tuple[float, float], side: int
) -> tuple[int, int]:
    """Rows and columns of the picture: one scale for both directions."""
    height, width = shape[0] * spacing_mm[0], shape[1] * spacing_mm[1]
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _scaled(
    grey: npt.NDArray[np.float32], mask: npt.NDArray[np.generic], size: tuple[int, int]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    to = (size[1], size[0])
    smooth = pillow.fromarray(np.ascontiguousarray(grey)).resize(to, pillow.Resampling.BILINEAR)
    sharp = pillow.fromarray(np.ascontiguousarray(mask)).resize(to, pillow.Resampling.NEAREST)
    return np.asarray(smooth, dtype=np.float32), np.asarray(sharp, dtype=np.uint8)


def _tile(picture: npt.NDArray[np.uint8], letters: Sequence[str]) -> pillow.Image:
    tile = pillow.fromarray(picture)
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(_FONT_SIZE)
    left, top = letters
    draw.text((3, tile.height / 2), left, fill=_TEXT, font=font, anchor="lm")
    draw.text((tile.width / 2, 2), top, fill=_TEXT, font=font, anchor="mt")
    return tile


def _legend(segmentation: Segmentation) -> list[tuple[str, tuple[int, int, int]]]:
    return [
        (f"{each.label} {each.volume_ml:.2f} ml", COLOURS[(each.label_id - 1) % len(COLOURS)])
        for each in segmentation.measures
        if each.voxels
    ]


def _sheet(
    tiles: Sequence[pillow.Image],
    columns: int,
    legend: Sequence[tuple[str, tuple[int, int, int]]],
) -> pillow.Image:
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    wide, high = tiles[0].width + _GAP, tiles[0].height + _GAP
    font = ImageFont.load_default(_FONT_SIZE)
    lines = _lines([font.getlength(text) + 30 for text, _ in legend], columns * wide)
    height = rows * high + _LEGEND_HEIGHT * (1 + max((line for line, _ in lines), default=-1))
    sheet = pillow.new("RGB", (columns * wide - _GAP, height - (0 if lines else _GAP)), _GROUND)
    for n, tile in enumerate(tiles):
        sheet.paste(tile, (n % columns * wide, n // columns * high))
    draw = ImageDraw.Draw(sheet)
    for (text, colour), (line, x) in zip(legend, lines, strict=True):
        middle = rows * high + line * _LEGEND_HEIGHT + _LEGEND_HEIGHT // 2
        draw.rectangle((x + 4, middle - 6, x + 16, middle + 6), fill=colour)
        draw.text((x + 22, middle), text, fill=_TEXT, font=font, anchor="lm")
    return sheet


def _lines(widths: Sequence[float], room: int) -> list[tuple[int, int]]:
    """Line and first pixel of each entry, broken where the room ends."""
    places: list[tuple[int, int]] = []
    line, x = 0, 0.0
    for width in widths:
        if x > 0 and x + width > room:
            line, x = line + 1, 0.0
        places.append((line, int(x)))
        x += width
    return places


def _png(sheet: pillow.Image) -> bytes:
    stream = io.BytesIO()
    sheet.save(stream, format="PNG")
    return stream.getvalue()
