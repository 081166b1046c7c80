"""The HTTP face as one application: the page, its routes, and the REST twins of the typed calls."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import replace

from fastapi import FastAPI
from prometheus_client import Gauge
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from medserve import __version__
from medserve.errors import MedserveError, ServerBusyError
from medserve.gateway.core.gateway import Gateway, new_request_id
from medserve.gateway.core.status import bug
from medserve.gateway.faces.monailabel import app as monailabel
from medserve.gateway.faces.monailabel.sessions import ImageSessions
from medserve.gateway.faces.page import (
    classify,
    generate,
    job_routes,
    masks,
    pages,
    segment,
)
from medserve.gateway.faces.page.context import PageContext, page_context
from medserve.gateway.faces.page.jobs import Jobs, PageLimits, Slots
from medserve.gateway.faces.page.protection import (
    ANSWERED,
    LOOPBACK_HOSTS,
    Protection,
    error_content,
)
from medserve.gateway.faces.page.rendering import Templates
from medserve.gateway.faces.page.sessions import Sessions
from medserve.gateway.faces.page.thumbnails import Thumbnails
from medserve.gateway.faces.rest import app as rest
from medserve.gateway.faces.rest.body import RestLimits
from medserve.gateway.settings import GatewaySettings
from medserve.run_folder import RunFolder

__all__ = ["create_app"]

_SWEEP_S = 30.0
_FOREVER = "public, max-age=31536000, immutable"
_ENVELOPE_BYTES = 2**20  # the message around the files, a zip's directory of 4000 slices

logger = logging.getLogger(__name__)


def create_app(
    gateway: Gateway, settings: GatewaySettings, limits: PageLimits | None = None
) -> ASGIApp:
    """The application for uvicorn; it keeps visitors' files from its start to its end.

    Args:
        gateway: Where every call goes.
        settings: Of the gateway.
        limits: How much the page takes; uploads never more than the gateway's largest message.
    """
    largest = gateway.limits.message_bytes - _ENVELOPE_BYTES
    limits = limits or PageLimits()
    limits = replace(limits, upload_bytes=min(limits.upload_bytes, largest))
    rendered = Templates()
    sessions = ImageSessions()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        folder = RunFolder.create()
        jobs = Jobs(folder.path, limits)
        sessions.folder = folder.path / "monailabel"
        sessions.folder.mkdir(mode=0o700)
        app.state.context = PageContext(
            gateway, limits, jobs, Sessions(gateway), rendered, Thumbnails(), Slots(limits)
        )
        sweeper = asyncio.create_task(_sweep(jobs, sessions, gateway.metrics.page_swept))
        try:
            yield
        finally:
            sweeper.cancel()
            folder.remove()

    app = FastAPI(
        title="medserve",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        exception_handlers={
            MedserveError: _answer_error,
            HTTPException: _answer_missing,
            Exception: _answer_bug,
        },
    )
    app.include_router(rest.router(gateway, settings))
    if settings.on_loopback or settings.monailabel:
        silence = RestLimits(silence_s=settings.upload_timeout_s)
        app.include_router(monailabel.router(gateway, sessions, silence))
    for module in (job_routes, classify, masks, segment, generate, pages):
        app.router.routes.extend(module.routes)
    app.router.routes.append(_static(rendered))
    return Protection(app, _hosts(settings))


def _hosts(settings: GatewaySettings) -> frozenset[str]:
    """The names to be addressed by; empty where the operator gave none and others may come."""
    given = frozenset(name.lower() for name in settings.host_names)
    if not given and not settings.on_loopback:
        return frozenset()
    return given | LOOPBACK_HOSTS | {settings.host.lower()}


def _static(rendered: Templates) -> Route:
    """Scripts and styles, under an address that changes with them."""
    found = StaticFiles(directory=rendered.static)

    async def static(request: Request) -> Response:
        response = await found.get_response(request.path_params["path"], request.scope)
        response.headers["cache-control"] = _FOREVER
        return response

    return Route(f"/static/{rendered.digest}/{{path:path}}", static)


async def _sweep(jobs: Jobs, sessions: ImageSessions, swept: Gauge) -> None:
    swept.set_to_current_time()
    while True:
        await asyncio.sleep(_SWEEP_S)
        try:
            over = jobs.over()
            await asyncio.to_thread(jobs.remove, over)
            await asyncio.to_thread(sessions.sweep)
            swept.set_to_current_time()
        except Exception as error:  # files must not outlive their time because of one
            bug(error, new_request_id())


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MedserveError)
    headers = {"retry-after": "1"} if isinstance(error, ServerBusyError) else None
    return JSONResponse(error_content(error), error.http_status, headers)


async def _answer_missing(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404 and "text/html" in request.headers.get("accept", ""):
        return page_context(request).templates.render(request, "missing.html", status=404)
    content = {"error": {"code": f"HTTP_{error.status_code}", "message": error.detail}}
    return JSONResponse(content, error.status_code, error.headers)


async def _answer_bug(request: Request, error: Exception) -> Response:
    failure = bug(error, new_request_id())
    request.scope[ANSWERED] = error
    return JSONResponse(error_content(failure), failure.http_status)
