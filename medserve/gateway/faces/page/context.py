"""What every route of the page needs, in one place; and how routes read and answer."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request

from medserve.errors import DeadlineError, InvalidRequestError, PayloadTooLargeError
from medserve.gateway.core.calls import Face
from medserve.gateway.core.gateway import Caller, Gateway, ModelInfo, new_request_id
from medserve.gateway.core.requests import TaskRequest, find_model
from medserve.gateway.faces.options import read_options, within_json
from medserve.gateway.faces.page.jobs import Job, Jobs, Kind, PageLimits, Slots
from medserve.gateway.faces.page.rendering import Templates
from medserve.gateway.faces.page.sessions import Sessions, Visitor
from medserve.gateway.faces.page.thumbnails import Thumbnails
from medserve.spec import Task

__all__ = ["TASKS", "PageContext", "options_of_job", "page_context", "read_json", "small_body"]

TASKS = {
    Kind.CLASSIFY: (Task.CLASSIFICATION, Task.REGRESSION),
    Kind.SEGMENT: (Task.VOLUMES, Task.FRAMES),
}
_MAX_JSON_BYTES = 2**20
_MAX_OPTIONS_BYTES = 2**12


@dataclass(frozen=True)
class PageContext:
    """The page of one gateway."""

    gateway: Gateway
    limits: PageLimits
    jobs: Jobs
    sessions: Sessions
    templates: Templates
    thumbnails: Thumbnails
    slots: Slots

    def visitor(self, request: Request) -> Visitor:
        """Who sent the request; AuthenticationError where they have to log in first."""
        visitor = self.sessions.visitor(request)
        request.state.visitor = visitor.caller.name  # pages offer to log out
        return visitor

    def job(self, request: Request, kind: Kind | None = None) -> tuple[Job, Visitor]:
        """The job in the path, if it is the visitor's; else UnknownJobError."""
        visitor = self.visitor(request)
        return self.jobs.get(request.path_params["job"], visitor.owner, kind), visitor

    async def models(self, caller: Caller, *tasks: Task) -> list[ModelInfo]:
        """The models that a caller may use, by name, the default version of each first."""
        found = [
            each for each in await self.gateway.models(caller) if not tasks or each.task in tasks
        ]
        return sorted(found, key=lambda each: (each.name, not each.default, each.version))

    def task_request(
        self, model: str, version: str, caller: Caller, params: Mapping[str, Any] | None = None
    ) -> TaskRequest:
        """What the calls of one request share."""
        deadline = time.monotonic() + self.limits.answer_s
        return TaskRequest(
            model, version, caller, new_request_id(), Face.HTTP, deadline, dict(params or {})
        )

    async def find(self, task_request: TaskRequest, *tasks: Task) -> ModelInfo:
        """The served model that a request names."""
        return find_model(await self.gateway.models(task_request.caller), task_request, *tasks)


def page_context(request: Request) -> PageContext:
    """Return what the routes of this page share."""
    context: PageContext = request.app.state.context
    return context


async def small_body(request: Request, most: int) -> bytes:
    """Return the body of a request that a page sends at once.

    Raises:
        DeadlineError: it does not come.
        InvalidRequestError: a part of it came.
        PayloadTooLargeError: more than `most` bytes came.
    """
    body, within_s = bytearray(), page_context(request).limits.silence_s
    try:
        async with asyncio.timeout(within_s):
            async for piece in request.stream():
                body += piece
                if len(body) > most:
                    raise PayloadTooLargeError(f"expected at most {most} bytes, got more")
    except TimeoutError:
        raise DeadlineError(
            f"expected the whole request within {within_s:g} s; send it again"
        ) from None
    except ClientDisconnect:
        raise InvalidRequestError("expected the whole body, got a part of it") from None
    return bytes(body)


async def read_json(request: Request) -> dict[str, Any]:
    """The JSON object in a request's body, which must not be large.

    Raises:
        DeadlineError: it does not come.
        InvalidRequestError: something else.
        PayloadTooLargeError: more than a page ever sends.
    """
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise InvalidRequestError("expected application/json, got another content type")
    body = await small_body(request, _MAX_JSON_BYTES)
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InvalidRequestError("expected a JSON object, got something else")
    return content


def options_of_job(model: ModelInfo, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as the model takes them; they are kept in memory as long as their job.

    Raises:
        InvalidRequestError: the model does not take them, or they are longer than any has to be.
    """
    options = read_options(model, within_json(model, asked))
    if len(json.dumps(options)) > _MAX_OPTIONS_BYTES:
        raise InvalidRequestError(
            f"expected options of at most {_MAX_OPTIONS_BYTES} bytes as JSON, got more; leave out "
            "what need not be chosen"
        )
    return options
