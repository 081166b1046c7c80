"""Everything that the gRPC port speaks: the one place where services are registered."""

from __future__ import annotations

from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.guard import OpenDoor, RequestGuard
from medserve.gateway.core.health import HealthFace
from medserve.gateway.core.served_models import ServedModels
from medserve.gateway.faces.oip import service as oip
from medserve.gateway.faces.torchserve import inference, management
from medserve.gateway.faces.v1 import releases
from medserve.gateway.faces.v1 import service as typed
from medserve.gateway.settings import GatewaySettings

__all__ = ["register_services"]

_FACES: tuple[Any, ...] = (
    inference,
    management,
    oip,
    typed,
    releases,
)  # each has `register(gateway, server)`


def register_services(
    server: grpc.aio.Server, gateway: Gateway, served: ServedModels, settings: GatewaySettings
) -> HealthFace:
    """Register the faces behind the guard, and health and reflection, which are open to all.

    Reflection lists every service, so that a client needs no protocol files.
    """
    guard = RequestGuard(server, gateway, settings.upload_timeout_s, settings.max_calls)
    for face in _FACES:
        face.register(gateway, guard)
    unguarded = OpenDoor(server, gateway)
    health = HealthFace(gateway, served, guard.services)
    health_pb2_grpc.add_HealthServicer_to_server(health, unguarded)
    names = [*guard.services, *unguarded.services, reflection.SERVICE_NAME]
    servicer = reflection.aio.ReflectionServicer(names)  # type: ignore[attr-defined]
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, unguarded)
    return health
