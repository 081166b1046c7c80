"""How synthetic images are shown: on a sheet that says what they are, and as records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medserve.cli import sheet
from medserve.client import SampledImage
from medserve.results.files.synthetic import NOTICE
from medserve.spec import InputKind, InputSpec

__all__ = ["contact_sheet", "sample_record"]


def contact_sheet(images: Sequence[SampledImage], path: Path) -> None:
    """Write all images as one PNG, each with its seed, its class and the word SYNTHETIC."""
    tiles = [
        sheet.Tile(
            image.png,
            f"SYNTHETIC  {image.sample.label}".strip(),
            (f"seed {image.sample.seed}, {image.sample.sampler}, {image.sample.steps} steps",),
        )
        for image in images
    ]
    spec = InputSpec((InputKind.RASTER,), images[0].sample.image.shape[:2])
    sheet.draw(tiles, spec, path, {"Synthetic": NOTICE})


def sample_record(image: SampledImage) -> dict[str, Any]:
    """What draws the image again, and which archive did; no pixels."""
    content = image.sample.to_image(b"").to_json()
    del content["png"]
    return content | image.sample.provenance.to_json()
