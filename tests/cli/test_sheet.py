"""The picture sheet of the demonstration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image as pillow

from medserve.cli.show.sheet import Tile, draw
from medserve.results.files import heatmap
from medserve.spec import InputKind, InputSpec
from tests.phantoms import dicom_bytes, raster_bytes, wedge

SPEC = InputSpec(kinds=(InputKind.RASTER, InputKind.DICOM), size=(64, 64))


def pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with pillow.open(path) as sheet:
        return np.asarray(sheet.convert("RGB"))


def test_sheet_has_four_tiles_in_a_row(tmp_path: Path) -> None:
    tiles = [Tile(raster_bytes(wedge()), f"{n}.png", ("Hand 0.98",)) for n in range(5)]
    draw(tiles[:1], SPEC, tmp_path / "one.png")
    draw(tiles[:4], SPEC, tmp_path / "four.png")
    draw(tiles, SPEC, tmp_path / "five.png")
    one, four, five = (pixels(tmp_path / f"{n}.png").shape for n in ("one", "four", "five"))
    assert one == four
    assert five[0] > four[0]
    assert five[1] == four[1]


def test_colour_dicom_and_unreadable_inputs_are_drawn(tmp_path: Path) -> None:
    red = np.zeros((30, 50, 3), np.uint8)
    red[..., 0] = 255
    tiles = [
        Tile(raster_bytes(red), "red.png", ("Hand 0.98", "")),
        Tile(dicom_bytes(wedge()), "slice.dcm", ("CXR 0.6", "review")),
        Tile(b"nothing", "broken", ("INVALID_IMAGE", "a message far too long " * 9), failed=True),
    ]
    draw(tiles, SPEC, tmp_path / "deep" / "sheet.png")
    sheet = pixels(tmp_path / "deep" / "sheet.png")
    assert (sheet[16 + 112, 16 + 112] == (255, 0, 0)).all()  # the middle of the first picture


def test_a_heat_map_lies_over_its_picture(tmp_path: Path) -> None:
    grey = np.full((40, 40), 128, np.uint8)
    evidence = np.zeros((40, 40))
    evidence[:20] = 3.0  # the upper half speaks for the class
    tile = Tile(raster_bytes(grey), "x", ("",), heatmap=heatmap.encode(evidence, (40, 40)))
    draw([tile], SPEC, tmp_path / "sheet.png")
    sheet = pixels(tmp_path / "sheet.png").astype(int)
    warm, clear = sheet[16 + 40, 16 + 112], sheet[16 + 180, 16 + 112]
    assert warm[0] > 180
    assert warm[2] < 60
    assert (clear == 128).all()
