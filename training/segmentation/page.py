"""What every report of a segmentation study shares: figures inside one HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
from matplotlib.figure import Figure

__all__ = ["data_uri", "draw", "write_page"]

_TEMPLATES = Path(__file__).parent.parent / "templates"


def write_page(
    path: Path,
    template: str,
    content: Mapping[str, Any],
    figures: Mapping[str, Callable[[], Figure]],
) -> Path:
    """Fill a template; each figure is inside the page and beside it as a PNG."""
    drawn = {name: draw(make) for name, make in figures.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, png in drawn.items():
        (path.parent / f"{name}.png").write_bytes(png)
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
    """A PNG without the software's version: equal figures are equal bytes."""
    buffer = io.BytesIO()
    with mpl.rc_context({"font.size": 9}):
        make().savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def data_uri(png: bytes) -> str:
    """A picture as an address that carries it."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
