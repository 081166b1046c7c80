"""The streamed answer of a model that draws images, read part by part."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from medserve.errors import ServerFailedError
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.masks import member_bytes, read_object
from medserve.gateway.core.requests import TaskRequest
from medserve.tasks.result import Provenance

__all__ = ["Drawn", "Progress", "read_drawn", "sample"]


@dataclass(frozen=True)
class Progress:
    """How far one image is; `preview_png` is empty where the model shows none."""

    image: int
    step: int
    steps: int
    preview_png: bytes = b""


@dataclass(frozen=True)
class Drawn:
    """One finished image; `details` is what else the model says of it."""

    index: int
    png: bytes
    seed: int
    provenance: Provenance
    details: dict[str, Any] = field(default_factory=dict)


async def sample(gateway: Gateway, order: TaskRequest) -> AsyncGenerator[Progress | Drawn, None]:
    """Progress while the images form, then the images.

    Raises:
        MedserveError: whatever went wrong, also after some progress.
    """
    answered = False
    async with aclosing(gateway.stream(order.call({}))) as parts:
        async for part in parts:
            content = read_object(part)
            if content.get("event") == "progress":
                yield _progress(content)
                continue
            answered = True
            for drawn in read_drawn(content):
                yield drawn
    if not answered:
        raise ServerFailedError("the model showed progress and no images")


def read_drawn(content: dict[str, Any]) -> list[Drawn]:
    """The images of a whole answer."""
    provenance = Provenance.from_json(content)
    try:
        return [
            Drawn(
                index=index,
                png=member_bytes(image, "png") or b"",
                seed=int(image["seed"]),
                provenance=provenance,
                details={key: each for key, each in image.items() if key not in ("png", "seed")},
            )
            for index, image in enumerate(content["images"])
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ServerFailedError(
            f"expected images from the model, got members {sorted(content)}"
        ) from error


def _progress(content: dict[str, Any]) -> Progress:
    try:
        return Progress(
            image=int(content["image"]),
            step=int(content["step"]),
            steps=int(content["of"]),
            preview_png=member_bytes(content, "preview_png") or b"",
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ServerFailedError("expected the progress of an image from the model") from error
