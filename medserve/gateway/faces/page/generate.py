"""Generation: pictures that a model makes, passed on as lines of JSON while they form."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from medserve.errors import MedserveError
from medserve.gateway.core.requests import draw_samples
from medserve.gateway.faces.options import read_options
from medserve.gateway.faces.page.context import page_context, read_json
from medserve.gateway.faces.page.protection import error_content
from medserve.spec import Task
from medserve.tasks.generation import GenerationResult, SampleImage, SampleProgress

__all__ = ["routes"]

Part = SampleProgress | GenerationResult


async def draw(request: Request) -> Response:
    """Make pictures; a visitor who leaves is no longer waited for."""
    context = page_context(request)
    visitor = context.visitor(request)
    content = await read_json(request)
    model, version = str(content.pop("model", "")), str(content.pop("version", ""))
    task_request = context.task_request(model, version, visitor.caller)
    info = await context.find(task_request, Task.GENERATION)
    task_request = task_request.with_params(read_options(info, content))
    parts = draw_samples(context.gateway, task_request)
    try:
        first = await anext(parts)  # a refusal comes with its own status
    except BaseException:
        await parts.aclose()
        raise
    return StreamingResponse(_lines(first, parts), media_type="application/x-ndjson")


async def _lines(first: Part, parts: AsyncGenerator[Part, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(parts):
        try:
            for line in _of_part(first):
                yield line
            async for part in parts:
                for line in _of_part(part):
                    yield line
        except MedserveError as error:  # the status has been sent already
            yield _line("error", error_content(error))


def _of_part(part: Part) -> Iterator[bytes]:
    """Yield the lines for a part of the answer: one an image or a file, so that none is long."""
    if isinstance(part, SampleProgress):
        shown = {"image": part.image, "step": part.step, "of": part.steps}
        yield _line("progress", {**shown, "png": _base64(part.preview_png)})
        return
    for place, image in enumerate(part.images):
        made = {"image": place, "png": _base64(image.png), "seed": image.seed}
        origin = {"model": part.model, "version": part.version, "details": _details(image)}
        yield _line("image", {**made, **origin})
        if image.dicom is not None:
            yield _file("dcm", image.dicom, image=place)
    if part.npz is not None:
        yield _file("npz", part.npz)
    if part.nifti is not None:
        yield _file("nii.gz", part.nifti)


def _file(suffix: str, content: bytes, image: int | None = None) -> bytes:
    return _line("file", {"suffix": suffix, "image": image, "content": _base64(content)})


def _details(image: SampleImage) -> dict[str, Any]:
    content = image.to_json()
    return {key: each for key, each in content.items() if key not in ("png", "seed", "dicom")}


def _base64(content: bytes | None) -> str | None:
    return base64.b64encode(content).decode("ascii") if content else None


def _line(event: str, content: Mapping[str, Any]) -> bytes:
    return json.dumps({"event": event, **content}).encode() + b"\n"


routes = [Route("/samples", draw, methods=["POST"])]
