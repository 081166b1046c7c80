"""The Open Inference Protocol over HTTP, as the clients of KServe and Triton speak it."""

# No `from __future__ import annotations`: FastAPI could not look up the local names in them.

import asyncio
import dataclasses
import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from pydantic import BaseModel, Field, ValidationError

from medserve.errors import InvalidRequestError, MedserveError
from medserve.gateway.core.call_context import CallContext
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.requests import find_served
from medserve.gateway.faces.oip import json_form
from medserve.gateway.faces.oip.service import (
    OpenInferenceFace,
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
)
from medserve.gateway.faces.rest.body import RestLimits, announced_bytes, whole
from medserve.gateway.faces.rest.models import VersionQuery
from medserve.gateway.faces.rest.route import Caller, RestRoute, error_response, task_request

__all__ = ["router"]

_TAGS: list[Any] = ["Open Inference Protocol"]
_MAX_JSON_BYTES = 2**16
_NUMBERS = ("shape", "dims")  # members that JSON of protobuf writes as texts


class OpenInferenceError(BaseModel):
    """The body of every answer that is no success."""

    error: str


class IndexBody(BaseModel):
    """Which models are listed."""

    ready: bool = Field(False, description="only those that are ready")


class _Route(RestRoute):
    """A route whose failures have the form of the protocol."""

    def failure(self, error: MedserveError) -> Response:
        """Return an error as one text: medserve's code and the message."""
        return error_response(error, {"error": f"{error.code}: {error.message}"})


_FAILURES: dict[int | str, dict[str, Any]] = {
    "default": {"model": OpenInferenceError, "description": "Any failure."}
}


def router(gateway: Gateway, caller: Caller, limits: RestLimits) -> APIRouter:
    """Return every call of the protocol."""
    routes = APIRouter(route_class=_Route, tags=_TAGS, responses=_FAILURES)
    _add_server(routes, gateway, caller)
    _add_models(routes, gateway, caller)
    _add_infer(routes, gateway, caller, limits)
    _add_refused(routes)
    return routes


def _add_server(routes: APIRouter, gateway: Gateway, caller: Caller) -> None:
    known = Annotated[CallContext, Depends(caller)]

    @routes.get("/v2")
    async def server() -> Response:
        """Describe the server."""
        return JSONResponse(_members(server_metadata()))

    @routes.get("/v2/health/live")
    async def live() -> Response:
        """Say that the process answers."""
        return JSONResponse({"live": True})

    @routes.get("/v2/health/ready")
    async def ready() -> Response:
        """Say by the status whether every model serves."""
        serving = gateway.health().serving
        return JSONResponse({"ready": serving}, 200 if serving else 503)

    @routes.post("/v2/repository/index", openapi_extra=_body(IndexBody))
    async def index(request: Request, incoming: known) -> Response:
        """List every version of the models that the caller may use."""
        try:
            asked = IndexBody.model_validate_json(
                await whole(request, _MAX_JSON_BYTES, RestLimits()) or b"{}"
            )
        except ValidationError:
            raise InvalidRequestError(
                'expected no body or a JSON object such as {"ready": true}, got something else'
            ) from None
        found = await repository_index(gateway, incoming.caller, ready=asked.ready)
        return JSONResponse(_members(found).get("models", []))


def _add_models(routes: APIRouter, gateway: Gateway, caller: Caller) -> None:
    known = Annotated[CallContext, Depends(caller)]

    @routes.get("/v2/models/stats")
    @routes.get("/v2/models/{model}/stats")
    @routes.get("/v2/models/{model}/versions/{version}/stats")
    async def stats(incoming: known, model: str = "", version: str = "") -> Response:
        """Count the calls of a model, or of all of them."""
        found = await model_statistics(gateway, incoming.caller, model, version)
        return JSONResponse(_numbered(_members(found)))

    @routes.get("/v2/models/{model}")
    @routes.get("/v2/models/{model}/versions/{version}")
    async def metadata(model: str, incoming: known, version: str = "") -> Response:
        """Describe inputs and outputs of a model."""
        return JSONResponse(
            _members(await model_metadata(gateway, incoming.caller, model, version))
        )

    @routes.get("/v2/models/{model}/config")
    @routes.get("/v2/models/{model}/versions/{version}/config")
    async def config(model: str, incoming: known, version: str = "") -> Response:
        """Describe a model as Triton's configuration files do."""
        found = await model_config(gateway, incoming.caller, model, version)
        return JSONResponse({"max_batch_size": 0} | _members(found.config))

    @routes.get("/v2/models/{model}/ready")
    @routes.get("/v2/models/{model}/versions/{version}/ready")
    async def model_ready(model: str, incoming: known, version: str = "") -> Response:
        """Say by the status whether a model serves."""
        info = await find_served(
            gateway, task_request(incoming, model, VersionQuery(version=version))
        )
        content = {"name": info.name, "ready": info.ready}
        return JSONResponse(content, 200 if info.ready else 503)


def _add_infer(routes: APIRouter, gateway: Gateway, caller: Caller, limits: RestLimits) -> None:
    face = OpenInferenceFace(gateway)
    body = _body(json_form.InferBody)

    @routes.post("/v2/models/{model}/infer", openapi_extra=body)
    @routes.post("/v2/models/{model}/versions/{version}/infer", openapi_extra=body)
    async def infer(
        model: str,
        request: Request,
        incoming: Annotated[CallContext, Depends(caller)],
        version: str = "",
    ) -> Response:
        """Run a model on tensors.

        Tensors are JSON, or bytes behind it: `binary_data_size` and the header
        `Inference-Header-Content-Length` as in Triton's binary tensor extension. Files inside JSON
        are base64, which the parameter `content_type` of their tensor says.
        """
        await find_served(gateway, task_request(incoming, model, VersionQuery(version=version)))
        if request.headers.get("content-encoding", "identity") != "identity":
            raise InvalidRequestError("expected a body without content encoding; send it as it is")
        limit = gateway.limits.message_bytes
        owner = incoming.caller.owner
        left_s = limits.answer_s
        if incoming.deadline is not None:
            left_s = max(incoming.deadline - time.monotonic(), 0)
        size = min(announced_bytes(request) or limit, limit)
        async with gateway.budget.reserve(size, owner, incoming.deadline) as held:
            content = await whole(request, limit, limits.within(left_s))
            held.resize(len(content))
            length = request.headers.get(json_form.HEADER)
            asked = await asyncio.to_thread(json_form.read_request, content, length, model, version)
            answer = await face.infer(asked.message, _sooner(incoming, limits.answer_s))
        # in a thread: a large mask takes a while to write, and others are to be served
        written, head = await asyncio.to_thread(json_form.write_response, answer, asked)
        if head == len(written):
            return Response(written, media_type="application/json")
        return Response(
            written, media_type="application/octet-stream",
            headers={json_form.HEADER: str(head)},
        )  # fmt: skip


def _add_refused(routes: APIRouter) -> None:
    @routes.api_route("/v2/{rest:path}", methods=["GET", "POST"], include_in_schema=False)
    async def refused(rest: str) -> Response:
        """Refuse what Triton offers beside inference, in the form of the protocol."""
        raise InvalidRequestError(
            "expected a call of the Open Inference Protocol that this server offers: health, "
            "metadata, config, stats, index and infer; shared memory, tracing, logging and the "
            "loading of models are not"
        )


def _body(kind: type[BaseModel]) -> dict[str, Any]:
    """Return how OpenAPI describes a body that the call reads by itself."""
    schema = kind.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}


def _inlined(schema: Any, parts: Mapping[str, Any]) -> Any:
    """Return a schema that holds its parts where it refers to them."""
    if isinstance(schema, list):
        return [_inlined(each, parts) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if reference := schema.get("$ref"):
        return _inlined(parts[reference.rpartition("/")[2]], parts)
    return {key: _inlined(each, parts) for key, each in schema.items()}


def _sooner(incoming: CallContext, answer_s: float) -> CallContext:
    """Return the same caller, who waits no longer than a model gets for one answer."""
    deadline = time.monotonic() + answer_s
    if incoming.deadline is not None:
        deadline = min(deadline, incoming.deadline)
    return dataclasses.replace(incoming, deadline=deadline)


def _members(message: Message) -> dict[str, Any]:
    """Return the JSON of the HTTP form, in which sizes are numbers."""
    content: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    for kind in ("inputs", "outputs", "input", "output"):
        for tensor in content.get(kind, ()):
            for sizes in _NUMBERS:
                if sizes in tensor:
                    tensor[sizes] = [int(size) for size in tensor[sizes]]
    return content


def _numbered(content: Any) -> Any:
    """Return statistics whose counts are numbers; only names and versions are texts."""
    if isinstance(content, dict):
        return {
            key: value if key in ("name", "version") else _numbered(value)
            for key, value in content.items()
        }
    if isinstance(content, list):
        return [_numbered(each) for each in content]
    return int(content)
