"""Change what is served over REST; each call has a twin in TorchServe's wording.

    PUT    /v1/models/{model}/versions/{version}          POST   /models?url=FILE
    DELETE /v1/models/{model}/versions/{version}          DELETE /models/{model}[/{version}]
    PUT    /v1/models/{model}/versions/{version}/workers  PUT    /models/{model}?min_worker=
    PUT    /v1/models/{model}/default                     PUT    /models/{model}/{v}/set-default
    POST   /v1/models/{model}/rollback
    PUT    /v1/models/{model}/route
    GET    /v1/models/{model}/evidence
    POST   /v1/models/{model}/promote

Where tokens are in use, each needs one that manages the model.
"""

# No `from __future__ import annotations`: FastAPI could not look up the local names in them.

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from medserve.errors import InvalidRequestError
from medserve.gateway.core.call_context import CallContext
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.releases import ALLOWED, evidence_for, promote, set_route
from medserve.gateway.core.routes import Route
from medserve.gateway.core.versions import Addition, Changer
from medserve.gateway.faces.rest.models import ModelDescription, describe
from medserve.gateway.faces.rest.route import Caller, failures

__all__ = ["add"]

_TAGS: Any = ["management"]
_FAILURES = failures(400, 401, 403, 404, 503)


class NewVersion(BaseModel):
    """Which archive of the server's store is to be served, and how."""

    model_config = ConfigDict(extra="forbid")

    archive: str = Field(default="", description="its file in the store; found by version if empty")
    workers: int = Field(default=0, ge=0, description="0 takes what the archive asks for")
    default: bool = Field(default=False, description="answers requests that name no version")


class DefaultVersion(BaseModel):
    """Which version answers requests that name none."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(min_length=1)


class Workers(BaseModel):
    """How many workers a version has."""

    model_config = ConfigDict(extra="forbid")

    workers: int = Field(ge=1)


class Promotion(BaseModel):
    """Which version is to be the default, and what it may be worse by."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(min_length=1)
    allowed: float = Field(default=ALLOWED, gt=0, lt=1, description="classes, or lack of Dice")


class Done(BaseModel):
    """What has happened, as TorchServe tells it."""

    status: str


def add(routes: APIRouter, gateway: Gateway, caller: Caller) -> None:
    """Add the calls to an application's routes."""
    known = Annotated[CallContext, Depends(caller)]
    _add_own(routes, gateway, known)
    _add_releases(routes, gateway, known)
    _add_twins(routes, gateway, known)


def _add_own(routes: APIRouter, gateway: Gateway, known: Any) -> None:
    address = "/v1/models/{model}/versions/{version}"

    @routes.put(
        address, tags=_TAGS, response_model=ModelDescription, status_code=201, responses=_FAILURES
    )
    async def serve_version(
        model: str,
        version: str,
        incoming: known,
        wanted: Annotated[NewVersion | None, Body()] = None,
    ) -> Any:
        """Serve an archive of the store, once it has answered its golden input."""
        new = wanted or NewVersion()
        addition = Addition(new.archive, model, version, new.workers, new.default)
        served = await gateway.versions.add(Changer.of(incoming), addition)
        return JSONResponse(describe(served), 201)

    @routes.delete(address, tags=_TAGS, response_model=Done, responses=_FAILURES)
    async def remove_version(model: str, version: str, incoming: known) -> Any:
        """Serve a version no more, after the calls to it have ended; its archive stays."""
        await gateway.versions.remove(Changer.of(incoming), model, version)
        return JSONResponse({"status": f"{model} {version} is unregistered"})

    @routes.put(
        f"{address}/workers", tags=_TAGS, response_model=ModelDescription, responses=_FAILURES
    )
    async def scale_version(model: str, version: str, incoming: known, wanted: Workers) -> Any:
        """Change the number of workers of a version, until the next start of the server."""
        scaled = await gateway.versions.scale(Changer.of(incoming), model, version, wanted.workers)
        return JSONResponse(describe(scaled))

    @routes.put(
        "/v1/models/{model}/default", tags=_TAGS, response_model=ModelDescription,
        responses=_FAILURES,
    )  # fmt: skip
    async def set_default(model: str, incoming: known, wanted: DefaultVersion) -> Any:
        """Let a served version answer the requests that name none, from the next one on."""
        chosen = await gateway.versions.set_default(Changer.of(incoming), model, wanted.version)
        return JSONResponse(describe(chosen))

    @routes.post(
        "/v1/models/{model}/rollback", tags=_TAGS, response_model=ModelDescription,
        responses=_FAILURES,
    )  # fmt: skip
    async def roll_back(model: str, incoming: known) -> Any:
        """Make the default version of before the default again."""
        return JSONResponse(describe(await gateway.versions.roll_back(Changer.of(incoming), model)))


def _add_releases(routes: APIRouter, gateway: Gateway, known: Any) -> None:
    @routes.put("/v1/models/{model}/route", tags=_TAGS, response_model=Route, responses=_FAILURES)
    async def lead_callers(model: str, incoming: known, wanted: Route) -> Any:
        """Lead a share of callers, or copies of a share of calls, to a version; {} ends both."""
        await set_route(gateway, Changer.of(incoming), model, wanted)
        return JSONResponse(wanted.model_dump(mode="json"))

    @routes.get("/v1/models/{model}/evidence", tags=_TAGS, responses=_FAILURES)
    async def evidence(model: str, incoming: known, allowed: float = ALLOWED) -> Any:
        """Tell how the answers of the shadowed version compare with those that callers got."""
        return JSONResponse(dict(evidence_for(gateway, Changer.of(incoming), model, allowed)))

    @routes.post("/v1/models/{model}/promote", tags=_TAGS, responses=_FAILURES)
    async def promote_version(model: str, incoming: known, wanted: Promotion) -> Any:
        """Make a version the default, if it was compared and is not worse than allowed."""
        found = await promote(gateway, Changer.of(incoming), model, wanted.version, wanted.allowed)
        return JSONResponse(dict(found))


def _add_twins(routes: APIRouter, gateway: Gateway, known: Any) -> None:
    @routes.post("/models", tags=_TAGS, response_model=Done, responses=_FAILURES)
    async def register(
        incoming: known,
        url: Annotated[str, Query(description="name of a file in the server's store")] = "",
        model_name: str = "",
        initial_workers: Annotated[int, Query(ge=0)] = 0,
    ) -> Any:
        """Serve an archive, in TorchServe's wording; the answer comes when it is proven."""
        if not url:
            raise InvalidRequestError("url: name a file in the server's store")
        addition = Addition(url, model_name, workers=initial_workers)
        new = await gateway.versions.add(Changer.of(incoming), addition)
        return JSONResponse({"status": f"{new.name} {new.version} is served"})

    @routes.put(
        "/models/{model}/{version}/set-default", tags=_TAGS, response_model=Done,
        responses=_FAILURES,
    )  # fmt: skip
    async def default(model: str, version: str, incoming: known) -> Any:
        """Make a version the default, in TorchServe's wording."""
        await gateway.versions.set_default(Changer.of(incoming), model, version)
        return JSONResponse({"status": f"{version} is the default version of {model}"})

    for address in ("/models/{model}", "/models/{model}/{version}"):
        _add_twins_of_a_model(routes, gateway, known, address)


def _add_twins_of_a_model(routes: APIRouter, gateway: Gateway, known: Any, address: str) -> None:
    @routes.put(address, tags=_TAGS, response_model=Done, responses=_FAILURES)
    async def scale(
        model: str,
        incoming: known,
        version: str = "",
        min_worker: Annotated[int, Query(ge=0)] = 0,
        max_worker: Annotated[int, Query(ge=0)] = 0,
    ) -> Any:
        """Change the number of workers, in TorchServe's wording."""
        workers = min_worker or max_worker
        scaled = await gateway.versions.scale(Changer.of(incoming), model, version, workers)
        return JSONResponse({"status": f"{scaled.name} {scaled.version} has {workers} workers"})

    @routes.delete(address, tags=_TAGS, response_model=Done, responses=_FAILURES)
    async def unregister(model: str, incoming: known, version: str = "") -> Any:
        """Serve a version no more, in TorchServe's wording."""
        await gateway.versions.remove(Changer.of(incoming), model, version)
        return JSONResponse({"status": f"{model} {version}".strip() + " is unregistered"})
