"""Pictures on one sheet: inputs with what was answered, or synthetic images."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from medserve.client import GenerationResult, SampleImage
from medserve.errors import MedserveError
from medserve.imaging.codecs.sniff import decode
from medserve.results.files.synthetic import NOTICE
from medserve.spec import InputKind, InputSpec

__all__ = ["Tile", "contact_sheet", "draw", "sample_record"]

_COLUMNS = 4
_PICTURE = 224  # pixels, square
_MARGIN = 16
_LINE = 20
_PAPER, _INK, _FAINT, _ALARM = "#ffffff", "#1a1a1a", "#5f6672", "#b3261e"


@dataclass(frozen=True)
class Tile:
    """One input and the lines below it; `failed` paints them in red, `heatmap` lies over it."""

    data: bytes
    title: str
    lines: tuple[str, ...]
    failed: bool = False
    heatmap: bytes = b""


def draw(
    tiles: Sequence[Tile], spec: InputSpec, path: Path, texts: Mapping[str, str] | None = None
) -> None:
    """Write all tiles as one PNG, four in a row; an unreadable input is a crossed-out box.

    `texts` become text chunks of the file.
    """
    rows = -(-len(tiles) // _COLUMNS)
    height = _PICTURE + _LINE * (1 + max(len(tile.lines) for tile in tiles)) + _MARGIN
    size = (_MARGIN + _COLUMNS * (_PICTURE + _MARGIN), _MARGIN + rows * (height + _MARGIN))
    sheet = Pillow.new("RGB", size, _PAPER)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, _COLUMNS)
        left = _MARGIN + column * (_PICTURE + _MARGIN)
        top = _MARGIN + row * (height + _MARGIN)
        sheet.paste(_picture(tile, spec), (left, top))
        _write(ImageDraw.Draw(sheet), tile, left, top + _PICTURE + 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    chunks = PngInfo()
    for key, text in (texts or {}).items():
        chunks.add_itxt(key, text)
    sheet.save(path, "PNG", pnginfo=chunks)


def contact_sheet(images: Sequence[SampleImage], path: Path) -> None:
    """Write all images as one PNG, each with its seed, its class and the word SYNTHETIC."""
    tiles = [
        Tile(
            image.png,
            f"SYNTHETIC  {image.label}".strip(),
            (f"seed {image.seed}, {image.sampler}, {image.steps} steps",),
        )
        for image in images
    ]
    spec = InputSpec((InputKind.RASTER,), (images[0].size, images[0].size))
    draw(tiles, spec, path, {"Synthetic": NOTICE})


def sample_record(image: SampleImage, drawn: GenerationResult) -> dict[str, Any]:
    """What draws the image again, and which archive did; no pixels."""
    content = {key: value for key, value in image.to_json().items() if key not in ("png", "dicom")}
    return content | drawn.provenance.to_json()


def _write(pen: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    title, text = ImageFont.load_default(16), ImageFont.load_default(14)
    pen.text((left, top), _fitting(tile.title, title), fill=_INK, font=title)
    for number, line in enumerate(tile.lines, start=1):
        colour = _ALARM if tile.failed else _FAINT
        pen.text((left, top + number * _LINE), _fitting(line, text), fill=colour, font=text)


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, cut where it would run into the next tile."""
    if font.getlength(text) <= _PICTURE:
        return text
    while text and font.getlength(f"{text}…") > _PICTURE:
        text = text[:-1]
    return f"{text}…"


def _picture(tile: Tile, spec: InputSpec) -> Pillow.Image:
    box = Pillow.new("RGB", (_PICTURE, _PICTURE), "#eceef1")
    try:
        array = decode(tile.data, spec).array
    except MedserveError:
        pen = ImageDraw.Draw(box)
        corner = _PICTURE - 1
        pen.line((0, 0, corner, corner), fill=_ALARM, width=2)
        pen.line((0, corner, corner, 0), fill=_ALARM, width=2)
        return box
    picture = Pillow.fromarray(np.rint(array * 255).astype(np.uint8))
    scale = _PICTURE / max(picture.size)
    picture = picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))),
        Pillow.Resampling.BICUBIC,
    )
    if tile.heatmap:
        heat = Pillow.open(io.BytesIO(tile.heatmap)).convert("RGBA").resize(picture.size)
        picture = Pillow.alpha_composite(picture.convert("RGBA"), heat).convert("RGB")
    box.paste(picture, ((_PICTURE - picture.width) // 2, (_PICTURE - picture.height) // 2))
    return box
