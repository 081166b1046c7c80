"""Reports that one HTML file carries: a template, filled, with its figures inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image as PillowImage

__all__ = ["data_uri", "draw", "encode_png", "write_page"]

_ZOOM = 2  # screen pixels an image pixel

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
