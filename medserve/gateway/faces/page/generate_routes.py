"""Generation: pictures that a model makes, passed on as lines of JSON while they form."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from medserve.errors import MedserveError
from medserve.gateway.core.drawing import Drawn, Progress, sample
from medserve.gateway.faces.options import read_options
from medserve.gateway.faces.page.context import page_context, read_json
from medserve.gateway.faces.page.protection import error_content
from medserve.spec import Task

__all__ = ["routes"]

Parts = AsyncGenerator[Progress | Drawn, None]


async def draw(request: Request) -> Response:
    """Make pictures; a visitor who leaves is no longer waited for."""
    site = page_context(request)
    visitor = site.visitor(request)
    content = await read_json(request)
    model, version = str(content.pop("model", "")), str(content.pop("version", ""))
    order = site.order(model, version, visitor.caller)
    info = await site.find(order, Task.GENERATION)
    order = order.with_params(read_options(info, content))
    parts = sample(site.gateway, order)
    try:
        first = await anext(parts)  # a refusal comes with its own status
    except BaseException:
        await parts.aclose()
        raise
    return StreamingResponse(_lines(first, parts), media_type="application/x-ndjson")


async def _lines(first: Progress | Drawn, parts: Parts) -> AsyncGenerator[bytes, None]:
    async with aclosing(parts):
        yield _line(first)
        try:
            async for part in parts:
                yield _line(part)
        except MedserveError as error:  # the status has been sent already
            yield json.dumps({"event": "error", **error_content(error)}).encode() + b"\n"


def _line(part: Progress | Drawn) -> bytes:
    if isinstance(part, Progress):
        content = {
            "event": "progress",
            "image": part.image,
            "step": part.step,
            "of": part.steps,
            "png": base64.b64encode(part.preview_png).decode() or None,
        }
    else:
        content = {
            "event": "image",
            "image": part.index,
            "png": base64.b64encode(part.png).decode(),
            "seed": part.seed,
            "model": part.provenance.model,
            "version": part.provenance.version,
            "details": part.details,
        }
    return json.dumps(content).encode() + b"\n"


routes = [Route("/samples", draw, methods=["POST"])]
