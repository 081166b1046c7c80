"""`medserve.v1.ReleaseService`: from one version of a model to the next, and back."""

from __future__ import annotations

import json
from typing import Any

import grpc.aio
from pydantic import ValidationError

from medserve.errors import InvalidRequestError
from medserve.gateway.core.call_context import Context, answering
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.releases import evidence_for, promote, set_route
from medserve.gateway.core.routes import Route
from medserve.gateway.core.versions import Changer
from medserve.wire.v1 import releases_pb2 as pb
from medserve.wire.v1 import releases_pb2_grpc as pb_grpc

__all__ = ["ReleaseFace", "register"]


def register(gateway: Gateway, server: grpc.aio.Server) -> None:
    """Let the server answer `medserve.v1.ReleaseService`."""
    pb_grpc.add_ReleaseServiceServicer_to_server(ReleaseFace(gateway), server)


class ReleaseFace(pb_grpc.ReleaseServiceServicer):
    """`medserve.v1.ReleaseService`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def RollBack(  # noqa: D102 - the contract says what it does
        self, request: pb.RollBackRequest, context: Context
    ) -> pb.RollBackResponse:
        async with answering(context, self._gateway) as incoming:
            by = Changer.of(incoming)
            now = await self._gateway.versions.roll_back(by, request.model_name)
        return pb.RollBackResponse(model_version=now.version)

    async def SetRoute(  # noqa: D102
        self, request: pb.SetRouteRequest, context: Context
    ) -> pb.SetRouteResponse:
        async with answering(context, self._gateway) as incoming:
            by = Changer.of(incoming)
            await set_route(self._gateway, by, request.model_name, _route(request))
        return pb.SetRouteResponse()

    async def GetEvidence(  # noqa: D102
        self, request: pb.GetEvidenceRequest, context: Context
    ) -> pb.GetEvidenceResponse:
        async with answering(context, self._gateway) as incoming:
            by = Changer.of(incoming)
            found = evidence_for(self._gateway, by, request.model_name, request.allowed)
        return pb.GetEvidenceResponse(evidence_json=json.dumps(found))

    async def Promote(  # noqa: D102
        self, request: pb.PromoteRequest, context: Context
    ) -> pb.PromoteResponse:
        async with answering(context, self._gateway) as incoming:
            by = Changer.of(incoming)
            found = await promote(
                self._gateway, by, request.model_name, request.model_version, request.allowed
            )
        return pb.PromoteResponse(evidence_json=json.dumps(found))


def _route(request: pb.SetRouteRequest) -> Route:
    """Return the route of a request; InvalidRequestError where a share is none."""
    content: dict[str, Any] = {}
    if request.canary_version:
        content["canary"] = {
            "version": request.canary_version,
            "share": request.canary_share,
            "callers": list(request.canary_callers),
        }
    if request.shadow_version:
        content["shadow"] = {"version": request.shadow_version, "share": request.shadow_share}
    try:
        return Route.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = "_".join(map(str, first["loc"]))
        raise InvalidRequestError(f"{place}: {first['msg']}") from None
