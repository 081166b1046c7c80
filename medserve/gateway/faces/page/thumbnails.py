"""Small pictures of files that a browser cannot show by itself: DICOM, TIFF."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import numpy as np
from PIL import Image as pillow

from medserve.gateway.faces.page.jobs import Item, Job, whole_file
from medserve.imaging.codecs.sniff import decode
from medserve.imaging.image import Image
from medserve.spec import InputSpec

__all__ = ["SIDES", "Thumbnails"]

SIDES = (96, 512)  # pixels of the longer side: a row of the table, the enlarged view


class Thumbnails:
    """Decodes with the guards of the models' own input, few at a time, each once."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(2)

    async def png(self, job: Job, item: Item, spec: InputSpec, side: int) -> bytes:
        """The picture; MedserveError where the file is none."""
        kept = job.folder / f"{item.number:06d}-{side}.png"
        async with self._turns:
            return await asyncio.to_thread(_kept_or_made, kept, job, item, spec, side)


def _kept_or_made(kept: Path, job: Job, item: Item, spec: InputSpec, side: int) -> bytes:
    if not kept.exists():
        picture = _png(decode(job.path(item).read_bytes(), spec), side)
        with whole_file(job, kept.name) as file:
            file.write(picture)
    return kept.read_bytes()


def _png(image: Image, side: int) -> bytes:
    picture = pillow.fromarray(np.rint(image.array * 255).astype(np.uint8))
    picture.thumbnail((side, side), pillow.Resampling.BILINEAR)
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()
