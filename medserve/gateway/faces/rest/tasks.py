"""The REST calls that ask a model: classify, estimate, segment, sample."""

# No `from __future__ import annotations`: FastAPI could not look up the local names in them.

import asyncio
import itertools
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from medserve.errors import InvalidRequestError, MedserveError, PayloadTooLargeError
from medserve.gateway.core.call_context import CallContext
from medserve.gateway.core.calls import Face, ModelInfo
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.packing import PACKING, ImageFile, Outcome, answer_each
from medserve.gateway.core.requests import TaskRequest, find_served
from medserve.gateway.faces.options import read_options
from medserve.gateway.faces.rest.body import (
    RestLimits,
    announced_bytes,
    arriving_bytes,
    case_files,
    files,
    is_form,
    whole,
)
from medserve.gateway.faces.rest.models import (
    ClassifiedFiles,
    ClassifyQuery,
    EstimatedFiles,
    EstimateQuery,
    OptionsQuery,
    SampleBody,
    SegmentQuery,
)
from medserve.gateway.faces.rest.route import Caller, Version, error_body, failures, task_request
from medserve.spec import Task

__all__ = ["add"]

_MAX_JSON_BYTES = 2**16
_ANSWER_BYTES = 16 * 2**20  # to a form, kept for a client who does not take them
_LINES = "application/x-ndjson"
_EVENTS = "text/event-stream"
_FILE = {"schema": {"type": "string", "format": "binary"}}
_BODY_OF_A_CASE = {
    "required": True,
    "description": "One file. Of a model that sees several images (`channels` in its description), "
    "a form may hold a file for each: in a field `data.NAME`, or in `files` and named …_0000, "
    "…_0001 in the model's order.",
    "content": {
        "application/octet-stream": _FILE,
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "file": {"type": "string", "format": "binary"},
                    "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
                },
                "additionalProperties": {"type": "string", "format": "binary"},
            }
        },
    },
}
_BODY_OF_FILES = {
    "required": True,
    "content": {
        "application/octet-stream": _FILE,
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["files"],
                "properties": {
                    "files": {"type": "array", "items": {"type": "string", "format": "binary"}}
                },
            }
        },
    },
}
_MASKS = {
    "application/gzip": {**_FILE, "example": "a .nii.gz"},
    "application/dicom": _FILE,
    "image/png": _FILE,
    "application/json": {"schema": {"type": "object"}},
}
_KINDS = (  # how an answer starts, what it is, and a name to keep it under
    (0, b"{", "application/json", ""),
    (0, b"\x89PNG", "image/png", "mask.png"),
    (0, b"\x1f\x8b", "application/gzip", "mask.nii.gz"),
    (128, b"DICM", "application/dicom", "mask.dcm"),
)


def add(routes: APIRouter, gateway: Gateway, caller: Caller, limits: RestLimits) -> None:
    """Add the routes."""
    _add_classify(routes, gateway, caller, limits)
    _add_estimate(routes, gateway, caller, limits)
    _add_segment(routes, gateway, caller, limits)
    _add_sample(routes, gateway, caller, limits)
    _add_predictions(routes, gateway, caller, limits)


def _add_classify(routes: APIRouter, gateway: Gateway, caller: Caller, limits: RestLimits) -> None:
    @routes.post(
        "/v1/models/{model}/classify", tags=["tasks"], response_model=ClassifiedFiles,
        responses={**failures(), 200: {"content": {_LINES: {}}}},
        openapi_extra={"requestBody": _BODY_OF_FILES},
    )  # fmt: skip
    async def classify(
        model: str,
        request: Request,
        incoming: Annotated[CallContext, Depends(caller)],
        query: Annotated[ClassifyQuery, Query()],  # type: ignore[valid-type]
    ) -> Any:
        """Tell what images show.

        One file as the body is answered with its classification, or with an error status. Files in
        a form get an item each; one that cannot be read costs no other. `Accept:
        application/x-ndjson` gives a line per file as soon as it is known, in no particular order;
        read them while you send, where the answer is longer than 16 MiB.
        """
        return await _each_file(
            request,
            gateway,
            task_request(incoming, model, query),
            Task.CLASSIFICATION,
            cast(OptionsQuery, query),
            limits,
        )


def _add_estimate(routes: APIRouter, gateway: Gateway, caller: Caller, limits: RestLimits) -> None:
    @routes.post(
        "/v1/models/{model}/estimate", tags=["tasks"], response_model=EstimatedFiles,
        responses={**failures(), 200: {"content": {_LINES: {}}}},
        openapi_extra={"requestBody": _BODY_OF_FILES},
    )  # fmt: skip
    async def estimate(
        model: str,
        request: Request,
        incoming: Annotated[CallContext, Depends(caller)],
        query: Annotated[EstimateQuery, Query()],  # type: ignore[valid-type]
    ) -> Any:
        """Tell numbers with units of images, such as an age or an ejection fraction.

        Files and answers travel as those of `classify`; each answer names its numbers with their
        units, and says why a person should look where one is not plausible.
        """
        return await _each_file(
            request,
            gateway,
            task_request(incoming, model, query),
            Task.REGRESSION,
            cast(OptionsQuery, query),
            limits,
        )


def _add_segment(routes: APIRouter, gateway: Gateway, caller: Caller, limits: RestLimits) -> None:
    @routes.post(
        "/v1/models/{model}/segment", tags=["tasks"], response_class=Response,
        responses={**failures(), 200: {"description": "The mask.", "content": _MASKS}},
        openapi_extra={"requestBody": _BODY_OF_A_CASE},
    )  # fmt: skip
    async def segment(
        model: str,
        request: Request,
        incoming: Annotated[CallContext, Depends(caller)],
        query: Annotated[SegmentQuery, Query()],  # type: ignore[valid-type]
    ) -> Response:
        """Mark what lies where in an image or volume: the mask on the grid of the input.

        By default the answer is the mask as a file. `output=json` adds measurements: volumes,
        positions, and the mask as base64. Images of one case must lie on one grid.
        """
        asked = task_request(incoming, model, query)
        info = await find_served(gateway, asked, Task.VOLUMES, Task.FRAMES)
        asked = asked.with_params(read_options(info, cast(OptionsQuery, query).params()))
        limit = min(info.max_case_bytes, gateway.limits.message_bytes)
        return await _predict_file(request, gateway, asked, limit, limits, info.channels)


def _add_sample(routes: APIRouter, gateway: Gateway, caller: Caller, limits: RestLimits) -> None:
    streams = {_LINES: {}, _EVENTS: {}, "application/json": {"schema": {"type": "object"}}}

    @routes.post(
        "/v1/models/{model}/sample", tags=["tasks"], response_class=Response,
        responses={**failures(), 200: {"description": "The images.", "content": streams}},
        openapi_extra={
            "requestBody": {
                "content": {"application/json": {"schema": SampleBody.model_json_schema()}}
            }
        },
    )  # fmt: skip
    async def sample(
        model: str,
        request: Request,
        incoming: Annotated[CallContext, Depends(caller)],
        query: Version,
    ) -> Response:
        """Draw synthetic images.

        The answer holds all images. `Accept: text/event-stream` or `application/x-ndjson` gives
        progress with preview pictures before it, as soon as there is some.
        """
        asked = task_request(incoming, model, query)
        info = await find_served(gateway, asked, Task.GENERATION)
        params = _json_object(await whole(request, _MAX_JSON_BYTES, limits))
        asked = asked.with_params(read_options(info, params))
        asked = asked.sooner(time.monotonic() + limits.answer_s)
        accepted = request.headers.get("accept", "")
        if _EVENTS in accepted:
            return StreamingResponse(_as_events(gateway, asked), media_type=_EVENTS)
        if _LINES in accepted:
            return StreamingResponse(_as_parts(gateway, asked), media_type=_LINES)
        return Response(await gateway.predict(asked.call({})), media_type="application/json")


def _add_predictions(
    routes: APIRouter, gateway: Gateway, caller: Caller, limits: RestLimits
) -> None:
    async def predictions(
        model: str,
        request: Request,
        incoming: Annotated[CallContext, Depends(caller)],
        version: str = "",
    ) -> Response:
        """Answer one file as TorchServe's REST address does: what the model says, as it says it.

        The file is the body, or a field of a form. A model that draws takes a JSON object.
        """
        asked = incoming.task_request(model, version, Face.HTTP)
        info = await find_served(gateway, asked)
        if info.task is Task.GENERATION:
            params = _json_object(await whole(request, _MAX_JSON_BYTES, limits))
            asked = asked.with_params(read_options(info, params))
            asked = asked.sooner(time.monotonic() + limits.answer_s)
            answer = await gateway.predict(asked.call({}))
            return Response(answer, media_type="application/json")
        limit = min(info.max_case_bytes, gateway.limits.message_bytes)
        return await _predict_file(request, gateway, asked, limit, limits, info.channels)

    addresses = ("/predictions/{model}", "/predictions/{model}/{version}")
    for method, address in itertools.product(("POST", "PUT"), addresses):
        routes.add_api_route(
            address, predictions, methods=[method], tags=["tasks"], response_class=Response,
            responses={**failures(), 200: {"description": "The answer.", "content": _MASKS}},
            openapi_extra={"requestBody": _BODY_OF_A_CASE},
        )  # fmt: skip


async def _each_file(
    request: Request,
    gateway: Gateway,
    asked: TaskRequest,
    task: Task,
    query: OptionsQuery,
    limits: RestLimits,
) -> Response:
    """The answer to one file as the body, or an item for each file of a form."""
    info = await find_served(gateway, asked, task)
    asked = asked.with_params(read_options(info, query.params()))
    limit = min(info.spec.input.max_payload_bytes, gateway.limits.message_bytes)
    if not is_form(request):
        return await _predict_file(request, gateway, asked, limit, limits)
    most = _answer_bytes(request, asked)
    items = _answered(request, gateway, asked.to(info), limits, info)
    if _LINES in request.headers.get("accept", ""):
        return _WhileReading(_as_lines(items, most), media_type=_LINES)
    head = {"model": info.name, "version": info.version, "archive_digest": info.digest}
    return Response(await _as_list(head, items, most), media_type="application/json")


class _WhileReading(StreamingResponse):
    """An answer that begins before the request has ended.

    Starlette's own would meanwhile wait for the client to go, and swallow what is left to read.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.stream_response(send)


async def _predict_file(
    request: Request,
    gateway: Gateway,
    asked: TaskRequest,
    limit: int,
    limits: RestLimits,
    channels: Sequence[str] = (),
) -> Response:
    """The model's answer to one file, or to one of each channel, as the model wrote it."""
    owner = asked.caller.owner
    async with gateway.budget.reserve(
        arriving_bytes(request, limit), owner, asked.deadline
    ) as held:
        found = await case_files(request, limit, limits.within(asked.left_s), channels)
        held.resize(sum(map(len, found.values())))
        asked = asked.sooner(time.monotonic() + limits.answer_s)
        answer = await gateway.predict(asked.call(found))
    for place, magic, media_type, name in _KINDS:
        if answer.startswith(magic, place):
            headers = {"content-disposition": f'attachment; filename="{name}"'} if name else {}
            return Response(answer, media_type=media_type, headers=headers)
    return Response(answer, media_type="application/octet-stream")


async def _answered(
    request: Request, gateway: Gateway, asked: TaskRequest, limits: RestLimits, info: ModelInfo
) -> AsyncGenerator[tuple[int, bytes], None]:
    """Yield the items of an answer as JSON with their places, each as soon as it is known."""
    limit = min(info.spec.input.max_payload_bytes, gateway.limits.message_bytes)

    async def images() -> AsyncIterator[ImageFile]:
        async with aclosing(files(request, limit, limits.within(asked.left_s))) as found:
            async for file in found:
                yield ImageFile(file.name, file.content)

    # What waits for its outcome, the one file that is arriving, and what is not taken yet.
    most = arriving_bytes(request, PACKING.held_bytes + limit, whole=False)
    most += _answer_bytes(request, asked)
    with gateway.using(info):
        async with (
            gateway.budget.reserve(most, asked.caller.owner, asked.deadline),
            aclosing(answer_each(gateway, asked, images())) as outcomes,
        ):
            async for outcome in outcomes:
                yield outcome.index, _json(_item(outcome))


def _answer_bytes(request: Request, asked: TaskRequest) -> int:
    """Return how much of an answer to a form is kept for a client who does not take it.

    An item is short beside its file, unless it holds a heat map.
    """
    announced = announced_bytes(request)
    if announced is None or asked.params.get("explain"):
        return _ANSWER_BYTES
    return min(_ANSWER_BYTES, 4 * announced + 2**16)


def _item(outcome: Outcome) -> dict[str, Any]:
    head = {"index": outcome.index, "name": outcome.id}
    if isinstance(outcome.answer, MedserveError):
        return head | {"status": "error", **error_body(outcome.answer)}
    return head | {"status": "ok", **outcome.answer}


async def _as_list(
    head: dict[str, Any], items: AsyncGenerator[tuple[int, bytes], None], most: int
) -> bytes:
    """Return the items in the order of their files, as the last member of one JSON object.

    Raises:
        PayloadTooLargeError: they are more than `most` bytes.
    """
    found: dict[int, bytes] = {}
    size = 0
    async with aclosing(items):
        async for index, item in items:
            found[index] = item
            size += len(item)
            if size > most:
                raise PayloadTooLargeError(
                    f"expected an answer of at most {most} bytes, got more; take it line by line "
                    f"(Accept: {_LINES}), or send fewer files at once"
                )
    listed = b",".join(item for _, item in sorted(found.items()))
    return _json(head)[:-1] + b',"items":[' + listed + b"]}"


async def _as_lines(
    items: AsyncGenerator[tuple[int, bytes], None], most: int
) -> AsyncGenerator[bytes, None]:
    """Yield one JSON object a line.

    Most HTTP clients read nothing before they have sent everything. So the lines are kept until
    they are taken, and hold back the reading of the request only where they are many.
    """
    lines: asyncio.Queue[bytes | None] = asyncio.Queue()
    room = asyncio.Event()
    kept = 0

    async def fill() -> None:
        nonlocal kept
        try:
            async with aclosing(items):
                async for _, item in items:
                    kept += len(item)
                    lines.put_nowait(item + b"\n")
                    while kept > most:
                        room.clear()
                        await room.wait()
        except MedserveError as error:  # the status has gone out already
            lines.put_nowait(_line(error_body(error)))
        finally:
            lines.put_nowait(None)

    filling = asyncio.create_task(fill())
    try:
        while (line := await lines.get()) is not None:
            yield line
            kept -= len(line) - 1
            room.set()
    finally:
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _line(content: dict[str, Any]) -> bytes:
    return _json(content) + b"\n"


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        known = ", ".join(SampleBody.model_fields)
        raise InvalidRequestError(
            f"expected a JSON object with some of {known}, got something else"
        )
    return content


async def _as_parts(gateway: Gateway, asked: TaskRequest) -> AsyncGenerator[bytes, None]:
    """The parts of a streamed answer, one a line; an error is the last."""
    try:
        async with aclosing(gateway.stream(asked.call({}))) as parts:
            async for part in parts:
                yield part.replace(b"\n", b"") + b"\n"
    except MedserveError as error:
        yield _line(error_body(error))


async def _as_events(gateway: Gateway, asked: TaskRequest) -> AsyncGenerator[bytes, None]:
    """The same as server-sent events."""
    async with aclosing(_as_parts(gateway, asked)) as lines:
        async for line in lines:
            yield b"data: " + line + b"\n"
