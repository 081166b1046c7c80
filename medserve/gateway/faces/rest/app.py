"""REST twins of the typed calls, for whoever has curl and no gRPC.

    POST /v1/models/{model}/classify   one file as the body, or many in a form
    POST /v1/models/{model}/segment    one file; the mask as a file or JSON
    POST /v1/models/{model}/sample     a JSON object; images as JSON, or as a stream while they form
    GET  /v1/models, /v1/models/{model}, /v1/models/{model}/card
    GET  /healthz, /readyz
    GET  /v2 …                         health and metadata of the Open Inference Protocol

`router(gateway, settings)` gives all of them to mount in an application.
"""

# No `from __future__ import annotations`: FastAPI could not look up the local names in them.

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from medserve.errors import UnknownModelError
from medserve.gateway.core.call_context import CallContext
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.requests import find_served
from medserve.gateway.faces.oip.service import model_metadata, server_metadata
from medserve.gateway.faces.rest import tasks as rest_tasks
from medserve.gateway.faces.rest.body import RestLimits
from medserve.gateway.faces.rest.models import (
    ModelDescription,
    ModelList,
    Readiness,
    VersionQuery,
    describe,
)
from medserve.gateway.faces.rest.route import Caller, RestRoute, Version, failures, order
from medserve.gateway.settings import GatewaySettings

__all__ = ["router"]


def router(
    gateway: Gateway,
    settings: GatewaySettings | None = None,
    limits: RestLimits | None = None,
) -> APIRouter:
    """All REST calls on one gateway; `limits` win over what the settings give."""
    if limits is None:
        limits = RestLimits(silence_s=settings.upload_timeout_s) if settings else RestLimits()
    caller = Caller(gateway)
    whole = APIRouter(route_class=RestRoute)
    _add_models(whole, gateway, caller)
    _add_health(whole, gateway)
    rest_tasks.add(whole, gateway, caller, limits)
    _add_open_inference(whole, gateway, caller)
    return whole


def _add_models(routes: APIRouter, gateway: Gateway, caller: Caller) -> None:
    known = Annotated[CallContext, Depends(caller)]

    @routes.get(
        "/v1/models", tags=["models"], response_model=ModelList,
        responses=failures(401),
    )  # fmt: skip
    async def list_models(incoming: known) -> Any:
        """List the models that the caller may use, with their figures and their health."""
        found = await gateway.models(incoming.caller)
        return JSONResponse({"models": [describe(info) for info in found]})

    @routes.get(
        "/v1/models/{model}", tags=["models"], response_model=ModelDescription,
        responses=failures(400, 401, 403, 404),
    )  # fmt: skip
    async def get_model(model: str, incoming: known, query: Version) -> Any:
        """Describe one model."""
        return JSONResponse(describe(await find_served(gateway, order(incoming, model, query))))

    @routes.get(
        "/v1/models/{model}/card", tags=["models"], response_class=PlainTextResponse,
        responses={
            200: {"description": "The card in Markdown.", "content": {"text/markdown": {}}},
            **failures(400, 401, 403, 404),
        },
    )  # fmt: skip
    async def get_card(model: str, incoming: known, query: Version) -> Any:
        """Give the card of a model: what it is for, what it was measured on, what it cannot do."""
        info = await find_served(gateway, order(incoming, model, query))
        if not info.card:
            raise UnknownModelError("this model has no card")
        return PlainTextResponse(info.card, media_type="text/markdown; charset=utf-8")


def _add_health(routes: APIRouter, gateway: Gateway) -> None:
    @routes.get("/healthz", tags=["health"])
    async def live() -> Response:
        """Say that the process answers; nothing about models."""
        return PlainTextResponse("ok")

    @routes.get(
        "/readyz", tags=["health"], response_model=Readiness,
        responses={503: {"model": Readiness, "description": "At least one model does not serve."}},
    )  # fmt: skip
    async def ready() -> Response:
        """Say whether every model has proven itself and answers."""
        serving = gateway.health().serving
        return JSONResponse({"ready": serving}, 200 if serving else 503)


def _add_open_inference(routes: APIRouter, gateway: Gateway, caller: Caller) -> None:
    """Add health and metadata of the Open Inference Protocol; inference has its own twins."""
    known = Annotated[CallContext, Depends(caller)]
    errors = failures(401, 403, 404)
    tags: list[Any] = ["Open Inference Protocol"]

    @routes.get("/v2", tags=tags)
    async def server() -> Response:
        """Describe the server."""
        return JSONResponse(_members(server_metadata()))

    @routes.get("/v2/health/live", tags=tags)
    async def live() -> Response:
        """Say that the process answers."""
        return JSONResponse({"live": True})

    @routes.get("/v2/health/ready", tags=tags)
    async def ready() -> Response:
        """Say by the status whether every model serves."""
        serving = gateway.health().serving
        return JSONResponse({"ready": serving}, 200 if serving else 503)

    @routes.get("/v2/models/{model}", tags=tags, responses=errors)
    @routes.get("/v2/models/{model}/versions/{version}", tags=tags, responses=errors)
    async def metadata(model: str, incoming: known, version: str = "") -> Response:
        """Describe inputs and outputs of a model."""
        return JSONResponse(
            _members(await model_metadata(gateway, incoming.caller, model, version))
        )

    @routes.get("/v2/models/{model}/ready", tags=tags, responses=errors)
    @routes.get("/v2/models/{model}/versions/{version}/ready", tags=tags, responses=errors)
    async def model_ready(model: str, incoming: known, version: str = "") -> Response:
        """Say by the status whether a model serves."""
        info = await find_served(gateway, order(incoming, model, VersionQuery(version=version)))
        content = {"name": info.name, "ready": info.ready}
        return JSONResponse(content, 200 if info.ready else 503)


def _members(message: Message) -> dict[str, Any]:
    """The JSON of the HTTP form, in which sizes are numbers."""
    content: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    for tensor in (*content.get("inputs", ()), *content.get("outputs", ())):
        tensor["shape"] = [int(size) for size in tensor["shape"]]
    return content
