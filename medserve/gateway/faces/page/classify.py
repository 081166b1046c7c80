"""Classification: files in, answers out, corrections, thumbnails, heat maps, downloads."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from medserve.errors import InvalidRequestError, MedserveError, ServerFailedError
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.packing import PACKING, ImageFile, answer_each
from medserve.gateway.core.requests import TaskRequest
from medserve.gateway.faces.page import exports
from medserve.gateway.faces.page.context import TASKS, page_context, read_json
from medserve.gateway.faces.page.jobs import Item, Job, Kind, Status, whole_file
from medserve.gateway.faces.page.thumbnails import SIDES
from medserve.gateway.faces.page.uploads import Allowance, announce, receive
from medserve.tasks.classification import Classification, as_finding, read_finding

__all__ = ["routes"]

_NUMBER = re.compile(r"[0-9]{1,6}")  # of a file
_LARGE_BYTES = 2**20  # reading more takes a while


async def add(request: Request) -> Response:
    """Store a pack of files and classify them; sent again, it asks only for what is missing."""
    context = page_context(request)
    job, visitor = context.job(request, Kind.CLASSIFY)
    async with context.slots.upload(job):
        allowance = Allowance(context.limits.pack_files, context.limits.upload_bytes)
        items = await receive(request, job, context.jobs, context.limits, allowance)
    async with context.slots.call(job):
        task_request = context.task_request(job.model, job.version, visitor.caller, job.options)
        await _classify(context.gateway, job, items, task_request)
    return JSONResponse({"files": [item.described() for item in items]})


async def expect(request: Request) -> Response:
    """Note which files are about to come: {"files": [{"number", "name", "size"}]}."""
    context = page_context(request)
    job, _ = context.job(request, Kind.CLASSIFY)
    announce(job, context.jobs, context.limits, (await read_json(request)).get("files"))
    return Response(status_code=204)


async def answer(request: Request) -> Response:
    """Classify files that are stored already: {"numbers": [17, 18]}."""
    context = page_context(request)
    job, visitor = context.job(request, Kind.CLASSIFY)
    numbers = (await read_json(request)).get("numbers")
    most = context.limits.pack_files
    if not isinstance(numbers, list) or not 0 < len(numbers) <= most:
        raise InvalidRequestError(f'expected {{"numbers": […]}} with 1 to {most} numbers of files')
    items = [job.item(number) for number in numbers]
    async with context.slots.call(job):
        task_request = context.task_request(job.model, job.version, visitor.caller, job.options)
        await _classify(context.gateway, job, items, task_request)
    return JSONResponse({"files": [item.described() for item in items]})


async def change(request: Request) -> Response:
    """Set classes by hand: {"classes": {"17": "Hand", "18": null}}.

    Independent labels are one text, as "Effusion; Mass" or "none".
    """
    job, visitor = page_context(request).job(request, Kind.CLASSIFY)
    classes = (await read_json(request)).get("classes")
    if not isinstance(classes, dict) or not all(
        value is None or isinstance(value, str) for value in classes.values()
    ):
        raise InvalidRequestError('expected {"classes": {number: class or null}}')
    chosen = {_number(key): value for key, value in classes.items()}
    items = _correct(job, chosen, visitor.caller.name)
    return JSONResponse({"files": [item.described() for item in items]})


async def thumbnail(request: Request) -> Response:
    """A small picture of a file."""
    context = page_context(request)
    job, visitor = context.job(request, Kind.CLASSIFY)
    item = job.item(_number(request.path_params["number"]))
    side = SIDES[1] if request.query_params.get("side") == "large" else SIDES[0]
    task_request = context.task_request(job.model, job.version, visitor.caller)
    model = await context.find(task_request, *TASKS[job.kind])
    content = await context.thumbnails.png(job, item, model.spec.input, side)
    headers = {"cache-control": "private, max-age=3600", "content-security-policy": "sandbox"}
    return Response(content, media_type="image/png", headers=headers)


async def explain(request: Request) -> Response:
    """What the class of a file rests on, with its heat map."""
    context = page_context(request)
    job, visitor = context.job(request, Kind.CLASSIFY)
    item = job.item(_number(request.path_params["number"]))
    async with context.slots.call(job):
        task_request = context.task_request(job.model, job.version, visitor.caller)
        return JSONResponse(await _explanation(context.gateway, job, item, task_request))


async def download(request: Request) -> Response:
    """The results as results.csv, results.json or results.zip."""
    job, _ = page_context(request).job(request, Kind.CLASSIFY)
    match request.path_params["format"]:
        case "csv":
            content, kind = exports.to_csv(job), "text/csv; charset=utf-8"
        case "json":
            content, kind = exports.to_json(job), "application/json"
        case "zip":
            return StreamingResponse(
                exports.bundle(job), media_type="application/zip", headers=_saved(job, "zip")
            )
        case _:
            raise InvalidRequestError("expected results.csv, results.json or results.zip")
    return Response(content, media_type=kind, headers=_saved(job, request.path_params["format"]))


def _saved(job: Job, suffix: str) -> dict[str, str]:
    name = f"{exports.title(job)}.{suffix}"
    return {"content-disposition": f'attachment; filename="{name}"'}


async def _classify(
    gateway: Gateway, job: Job, items: Sequence[Item], task_request: TaskRequest
) -> None:
    """Ask the model for all files that it has not answered yet; each gets an outcome.

    Raises:
        MedserveError: the model cannot be asked at all; the files stay without an outcome.
    """
    waiting = [item for item in items if item.status in (Status.WAITING, Status.FAILED)]
    if not waiting:
        return

    sizes = [item.size_bytes for item in waiting]
    most = min(sum(sizes), PACKING.held_bytes + max(sizes))
    async with (
        gateway.budget.reserve(most, task_request.caller.owner, task_request.deadline),
        aclosing(answer_each(gateway, task_request, _images(job, waiting))) as outcomes,
    ):
        async for outcome in outcomes:
            item = waiting[outcome.index]
            try:
                item.outcome = outcome.regression() if job.values else outcome.classification()
            except MedserveError as error:
                item.outcome = error
            item.provenance = outcome.provenance


async def _explanation(
    gateway: Gateway, job: Job, item: Item, task_request: TaskRequest
) -> dict[str, Any]:
    """What the class of a file rests on; asked for once and kept with the job's files.

    Raises:
        MedserveError: the file has no class, or the model cannot be asked.
    """
    if not isinstance(item.outcome, Classification):
        raise InvalidRequestError("expected a file that has a class, got one without")
    if item.outcome.explanation is not None:  # an option of the job
        return item.outcome.explanation.to_json()
    kept = job.folder / f"{item.number:06d}-explanation.json"
    if kept.exists():
        content: dict[str, Any] = json.loads(await asyncio.to_thread(kept.read_bytes))
        return content
    asked = task_request.with_params({"explain": True})
    async with (
        gateway.budget.reserve(item.size_bytes, asked.caller.owner, asked.deadline),
        aclosing(answer_each(gateway, asked, _images(job, [item]))) as outcomes,
    ):
        found = (await anext(outcomes)).classification().explanation
    if found is None:
        raise ServerFailedError("the model answers without an explanation")
    content = found.to_json()
    with whole_file(job, kept.name) as file:
        file.write(json.dumps(content).encode())
    return content


async def _images(job: Job, items: Sequence[Item]) -> AsyncGenerator[ImageFile, None]:
    """Yield the files; small ones without a thread, for they lie in memory since their upload."""
    for item in items:
        read = job.path(item).read_bytes
        large = item.size_bytes > _LARGE_BYTES
        yield ImageFile(str(item.number), await asyncio.to_thread(read) if large else read())


def _number(text: str) -> int:
    """Return the number of a file; InvalidRequestError where the text is none of any file."""
    if not _NUMBER.fullmatch(text):
        raise InvalidRequestError("expected the number of a file, got something else")
    return int(text)


def _correct(job: Job, numbers: Mapping[int, str | None], by: str) -> list[Item]:
    """Set the class that a person chose, or take it back (None); all of them or none."""
    now = exports.time_said()
    if job.independent:
        numbers = {
            number: text and as_finding(read_finding(text, job.labels))
            for number, text in numbers.items()
        }
    elif unknown := {label for label in numbers.values() if label} - set(job.labels):
        raise InvalidRequestError(
            f"expected classes of this model, got {len(unknown)} that are none"
        )
    items = [job.item(number) for number in numbers]
    for item in items:
        item.correction = numbers[item.number] or None
        item.corrected_by, item.corrected_at = (by, now) if item.correction else ("", "")
    return items


async def corrections(request: Request) -> Response:
    """What a person corrected, with its provenance; with `?names` also the files' names."""
    job, _ = page_context(request).job(request, Kind.CLASSIFY)
    content = exports.to_corrections(job, names="names" in request.query_params)
    headers = {"content-disposition": 'attachment; filename="corrections.csv"'}
    return Response(content, media_type="text/csv; charset=utf-8", headers=headers)


routes = [
    Route("/jobs/{job}/files", add, methods=["POST"]),
    Route("/jobs/{job}/announcement", expect, methods=["POST"]),
    Route("/jobs/{job}/answers", answer, methods=["POST"]),
    Route("/jobs/{job}/classes", change, methods=["POST"]),
    Route("/jobs/{job}/files/{number}/thumbnail", thumbnail),
    Route("/jobs/{job}/files/{number}/explanation", explain, methods=["POST"]),
    Route("/jobs/{job}/results.{format}", download),
    Route("/jobs/{job}/corrections.csv", corrections),
]
