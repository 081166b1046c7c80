"""Everything that the gRPC port speaks: the one place where services are registered."""

from __future__ import annotations

from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from medserve.gateway import edge, management, oip, typed
from medserve.gateway.core import Gateway
from medserve.gateway.fleet import Fleet
from medserve.gateway.health import HealthFace
from medserve.gateway.intake import Intake, OpenDoor

__all__ = ["register_services"]

_FACES: tuple[Any, ...] = (edge, management, oip, typed)  # each has `register(gateway, server)`


def register_services(
    server: grpc.aio.Server, gateway: Gateway, fleet: Fleet, upload_timeout_s: float
) -> HealthFace:
    """Register the faces behind the intake, and health and reflection, which are open to all.

    Reflection lists every service, so that a client needs no protocol files.
    """
    intake = Intake(server, gateway, upload_timeout_s)
    for face in _FACES:
        face.register(gateway, intake)
    door = OpenDoor(server)
    health = HealthFace(gateway, fleet, intake.services)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, door)
    names = [*intake.services, *door.services, reflection.SERVICE_NAME]
    servicer = reflection.aio.ReflectionServicer(names)  # type: ignore[attr-defined]
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, door)
    return health
