"""Jobs: begin, look, delete. What they are for stands in the routes of each kind."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from medserve.errors import InvalidRequestError, MedserveError
from medserve.gateway.faces.page.context import (
    TASKS,
    PageContext,
    options_of_job,
    page_context,
    read_json,
)
from medserve.gateway.faces.page.jobs import Job, Kind

__all__ = ["routes", "summary"]


async def begin(request: Request) -> Response:
    """A new job for a model; starts the visitor's session where there is none.

    `files_of` names another job of the visitor, whose files the new one gets without an upload.
    """
    context = page_context(request)
    visitor = context.visitor(request)
    content = await read_json(request)
    try:
        kind = Kind(content.get("kind", ""))
    except ValueError:
        raise InvalidRequestError(f"kind: expected one of {', '.join(Kind)}") from None
    model, version = str(content.get("model", "")), str(content.get("version", ""))
    found = await context.find(context.task_request(model, version, visitor.caller), *TASKS[kind])
    options = content.get("options", {})
    if not isinstance(options, dict):
        raise InvalidRequestError("options: expected a JSON object, got something else")
    options = options_of_job(found, options) if options else {}
    source = None
    if (given := content.get("files_of")) is not None:
        source = context.jobs.get(str(given), visitor.owner, kind)
    response = JSONResponse(None, 201)
    owner = visitor.owner or context.sessions.begin(request, response)
    job = context.jobs.create(
        *(kind, owner, found.name, found.version, found.labels, visitor.caller.owner),
        *(found.spec.has_independent_labels, found.spec.values),
    )
    job.options = options
    if source is not None:
        try:
            context.jobs.copy_files(source, job)
        except MedserveError:
            context.jobs.delete(job)
            raise
    response.body = response.render(summary(context, job))
    response.headers["content-length"] = str(len(response.body))
    return response


async def look(request: Request) -> Response:
    """All that is known of a job."""
    context = page_context(request)
    job, _ = context.job(request)
    items = [item.described() for item in job.files]
    return JSONResponse(summary(context, job) | {"files": items, "answer": job.answers or None})


async def delete(request: Request) -> Response:
    """Remove a job with everything that was sent for it."""
    context = page_context(request)
    job, _ = context.job(request)
    context.jobs.delete(job)
    return Response(status_code=204)


def summary(context: PageContext, job: Job) -> dict[str, Any]:
    """A job without its files."""
    return {
        "id": job.id,
        "kind": job.kind,
        "model": job.model,
        "version": job.version,
        "labels": list(job.labels),
        "independent": job.independent,
        "values": msgspec.to_builtins(job.values),
        "options": job.options,
        "case": job.case,
        "left_s": round(context.jobs.left_s(job)),
    }


routes = [
    Route("/jobs", begin, methods=["POST"]),
    Route("/jobs/{job}", look, methods=["GET"]),
    Route("/jobs/{job}", delete, methods=["DELETE"]),
]
