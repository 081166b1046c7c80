"""What a machine writes onto its screen: names, settings, ruler, grey bar, calipers.

All of it is invented. The text says SIMULATED, so that no picture passes for a patient's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image as pillow
from PIL import ImageDraw, ImageFont

from simulation.acoustics import Fan

__all__ = ["Screen", "draw_screen", "paint"]

Pixels = npt.NDArray[np.uint8]
_FAMILIES = ("ALDER", "BIRCH", "CEDAR", "ELM", "FIR", "HAZEL", "LARCH", "MAPLE", "OAK", "ROWAN")


@dataclass(frozen=True)
class Screen:
    """The writing on one patient's pictures.

    Attributes:
        name: Of nobody.
        header: Lines at the upper left.
        settings: Lines at the upper right.
        ruler: Whether a depth ruler runs along the right edge.
        grey_bar: Whether a bar of all greys stands at the left edge.
        calipers: Whether the gland's diameters are marked inside the fan.
    """

    name: str
    header: tuple[str, ...]
    settings: tuple[str, ...]
    ruler: bool
    grey_bar: bool
    calipers: bool


def draw_screen(generator: np.random.Generator, calipers_share: float) -> Screen:
    """A screen at random."""
    number = int(generator.integers(10_000, 99_999))
    name = f"SIMULATED^{generator.choice(_FAMILIES)} {number}"
    day = f"{generator.integers(1, 28):02d}-{generator.integers(1, 12):02d}-2031"
    return Screen(
        name=name,
        header=(name.replace("^", " "), f"ID {number}  {day}", "PROSTATE TRUS"),
        settings=(
            f"{generator.integers(5, 10)} MHz", f"Gn {generator.integers(30, 80)} %",
            f"DR {generator.integers(45, 70)}", f"MI {generator.uniform(0.3, 1.4):.1f}",
        ),
        ruler=bool(generator.uniform() < 0.7),
        grey_bar=bool(generator.uniform() < 0.6),
        calipers=bool(generator.uniform() < calipers_share),
    )  # fmt: skip


def paint(
    image: Pixels, fan: Fan, screen: Screen, gland: npt.NDArray[np.bool_], frame: int = 0
) -> Pixels:
    """The picture (H, W) with the writing on top."""
    picture = pillow.fromarray(image)
    pen = ImageDraw.Draw(picture)
    size = max(9, fan.height // 36)
    font = ImageFont.load_default(size)
    line = round(1.25 * size)
    for number, text in enumerate(screen.header):
        pen.text((size, 4 + number * line), text, fill=230, font=font)
    for number, text in enumerate(screen.settings):
        pen.text((fan.width - 7 * size, 4 + number * line), text, fill=200, font=font)
    pen.text((fan.width - 7 * size, fan.height - 2 * line), f"# {frame + 1}", fill=210, font=font)
    if screen.grey_bar:
        _grey_bar(picture, fan)
    if screen.ruler:
        _ruler(pen, fan)
    if screen.calipers and gland.any():
        _calipers(pen, fan, gland, font)
    return np.asarray(picture).copy()


def _grey_bar(picture: pillow.Image, fan: Fan) -> None:
    height, width = fan.height // 3, max(6, fan.width // 50)
    bar = np.linspace(255, 0, height).astype(np.uint8)[:, np.newaxis].repeat(width, axis=1)
    picture.paste(pillow.fromarray(bar), (4, fan.height // 3))


def _ruler(pen: ImageDraw.ImageDraw, fan: Fan) -> None:
    """A tick each centimetre of depth."""
    right = fan.width - 3
    for centimetre in range(int(fan.probe.reach_mm // 10) + 1):
        row, _ = fan.pixel(0.0, 10.0 * centimetre)
        long = fan.width // (40 if centimetre % 5 == 0 else 80)
        pen.line([(right - long, row), (right, row)], fill=180)


def _calipers(
    pen: ImageDraw.ImageDraw,
    fan: Fan,
    gland: npt.NDArray[np.bool_],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Dotted diameters across and up the gland, with crosses at their ends and their lengths."""
    rows, columns = np.nonzero(gland)
    row, column = round(float(rows.mean())), round(float(columns.mean()))
    across, up = np.nonzero(gland[row])[0], np.nonzero(gland[:, column])[0]
    if not across.size or not up.size:  # the centre of a crescent lies outside it
        return
    ends = (
        ((int(across[0]), row), (int(across[-1]), row)),
        ((column, int(up[0])), (column, int(up[-1]))),
    )
    arm = max(3, fan.height // 110)
    for number, (start, end) in enumerate(ends):
        steps = max(abs(end[0] - start[0]), abs(end[1] - start[1])) // 6 + 1
        for x, y in np.linspace(start, end, steps + 1):
            pen.point((float(x), float(y)), fill=235)
        for x, y in (start, end):
            pen.line([(x - arm, y), (x + arm, y)], fill=255)
            pen.line([(x, y - arm), (x, y + arm)], fill=255)
        length = fan.spacing_mm * (abs(end[0] - start[0]) + abs(end[1] - start[1]))
        text = f"D{number + 1} {length:.1f} mm"
        pen.text((8, fan.height - (3 - number) * fan.height // 26), text, fill=220, font=font)
