"""Reports of every training: tables, and pages that one HTML file holds with its figures."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image as PillowImage

__all__ = [
    "Picture",
    "Section",
    "Table",
    "data_uri",
    "draw",
    "encode_png",
    "write_page",
    "write_sections",
]

Row = TypeVar("Row")
Figures = Mapping[str, Callable[[], Figure]]

_ZOOM = 2  # screen pixels an image pixel
_TEMPLATES = Path(__file__).parent.parent / "templates"


@dataclass(frozen=True)
class Table:
    """The cells of a table as they are read; backticks stand around names, as in Markdown."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, columns: Mapping[str, Callable[[Row], object]], rows: Sequence[Row]) -> Table:
        """Return the table of a heading for each column, and how a row fills it."""
        cells = (tuple(str(cell(row)) for cell in columns.values()) for row in rows)
        return cls(tuple(columns), tuple(cells))

    def markdown(self) -> str:
        """Return the table in Markdown, its last line ended."""
        head, *body = [f"| {' | '.join(line)} |" for line in (self.headings, *self.rows)]
        return "\n".join([head, "|" + "---|" * len(self.headings), *body, ""])


@dataclass(frozen=True)
class Picture:
    """A small picture of a gallery, as a data URI, with the lines below it."""

    source: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A part of a page under its heading; what is empty is left out.

    Attributes:
        title: The heading.
        note: What the table or the figures show.
        command: A command line.
        table: Below the note.
        figures: What draws each, by the name of its PNG beside the page.
        gallery: Small pictures, side by side.
    """

    title: str
    note: str = ""
    command: str = ""
    table: Table | None = None
    figures: Figures = field(default_factory=dict)
    gallery: tuple[Picture, ...] = ()


def write_sections(path: Path, title: str, note: str, sections: Sequence[Section]) -> Path:
    """Write a page of sections; each figure is inside it and beside it as a PNG."""
    figures = {name: make for each in sections for name, make in each.figures.items()}
    content = {"title": title, "note": note, "sections": sections}
    return write_page(path, "sections.html", content, figures)


def write_page(path: Path, template: str, content: Mapping[str, Any], figures: Figures) -> Path:
    """Fill a template; each figure is inside the page and beside it as a PNG."""
    drawn = {name: draw(make) for name, make in figures.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, png in drawn.items():
        beside = path.parent / f"{name}.png"
        beside.parent.mkdir(exist_ok=True)
        beside.write_bytes(png)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(
        **content, figures={name: data_uri(png) for name, png in drawn.items()}
    )
    path.write_text(page + "\n", encoding="utf-8")
    return path


def draw(make: Callable[[], Figure]) -> bytes:
    """Return a PNG without the version of the software: equal figures are equal bytes."""
    buffer = io.BytesIO()
    with mpl.rc_context({"font.size": 9}):
        make().savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def data_uri(png: bytes) -> str:
    """Return an address that carries the picture, for pages that one file holds."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def encode_png(pixels: npt.NDArray[np.uint8], zoom: int = _ZOOM) -> bytes:
    """Return a PNG of uint8 (H, W) or (H, W, 3), each pixel `zoom` times as large."""
    buffer = io.BytesIO()
    enlarged = pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)
    PillowImage.fromarray(enlarged).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
