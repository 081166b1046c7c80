"""REST twins of the typed calls, for whoever has curl and no gRPC.

    POST /v1/models/{model}/classify   one file as the body, or many in a form
    POST /v1/models/{model}/estimate   the same of a model that tells numbers
    POST /v1/models/{model}/segment    one file; the mask as a file or JSON
    POST /v1/models/{model}/sample     a JSON object; images as JSON, or as a stream while they form
    GET  /v1/models, /v1/models/{model}, /v1/models/{model}/card
    POST /predictions/{model}[/{version}]  one file, as to TorchServe; see `tasks`
    PUT  /v1/models/{model}/versions/{version} …  changes of what is served, see `management`
    GET  /healthz, /readyz
    /v2 …                              the Open Inference Protocol, see `open_inference`

`router(gateway, settings)` gives all of them to mount in an application.
"""

# No `from __future__ import annotations`: FastAPI could not look up the local names in them.

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from medserve.errors import UnknownModelError
from medserve.gateway.core.call_context import CallContext
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.requests import find_served
from medserve.gateway.faces.rest import management, open_inference
from medserve.gateway.faces.rest import tasks as rest_tasks
from medserve.gateway.faces.rest.body import RestLimits
from medserve.gateway.faces.rest.models import (
    ModelDescription,
    ModelList,
    Readiness,
    describe,
)
from medserve.gateway.faces.rest.route import Caller, RestRoute, Version, failures, task_request
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
    management.add(whole, gateway, caller)
    whole.include_router(open_inference.router(gateway, caller, limits))
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
        return JSONResponse(
            describe(await find_served(gateway, task_request(incoming, model, query)))
        )

    @routes.get(
        "/v1/models/{model}/card", tags=["models"], response_class=PlainTextResponse,
        responses={
            200: {"description": "The card in Markdown.", "content": {"text/markdown": {}}},
            **failures(400, 401, 403, 404),
        },
    )  # fmt: skip
    async def get_card(model: str, incoming: known, query: Version) -> Any:
        """Give the card of a model: what it is for, what it was measured on, what it cannot do."""
        info = await find_served(gateway, task_request(incoming, model, query))
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
