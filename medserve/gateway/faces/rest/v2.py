"""The Open Inference Protocol over HTTP: health and metadata. Inference has its own twins."""

# No `from __future__ import annotations`: FastAPI could not look up the local names in them.

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from medserve.gateway.core.call_context import CallContext
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.requests import find_served
from medserve.gateway.faces.oip.service import model_metadata, server_metadata
from medserve.gateway.faces.rest.models import VersionQuery
from medserve.gateway.faces.rest.route import Caller, failures, order

__all__ = ["add"]


def add(routes: APIRouter, gateway: Gateway, caller: Caller) -> None:
    """Add the routes."""
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
