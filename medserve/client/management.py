"""Change what a gateway serves: versions come, go, and take each other's place.

    manager = Manager("127.0.0.1:8001", token=token)
    manager.add("mednist-1.1.mar", default=True)
    manager.roll_back("mednist")

Each call returns when the change is made and proven, or raises why it is not; a change that one
manager makes is refused to a second one until it has ended.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import grpc

from medserve.client.connection import Connection, Limits, TlsConfig, call_error
from medserve.settings import Address
from medserve.wire import management_pb2, management_pb2_grpc
from medserve.wire.v1 import releases_pb2, releases_pb2_grpc

__all__ = ["Manager"]


class Manager:
    """Whoever may change what a gateway serves.

    Args:
        address: The gateway's gRPC port, `host:port`.
        token: A token that manages, where the gateway keeps tokens.
        tls: TLS instead of plain text.
        timeout_s: For one change: workers start in it, or the calls to a version end.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:8001",
        *,
        token: str | None = None,
        tls: TlsConfig | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        self._connection = Connection(Address.parse(address), token, tls, Limits())
        self._timeout_s = timeout_s

    def add(self, archive: str, *, workers: int = 0, default: bool = False) -> str:
        """Serve an archive of the server's store beside the versions that are served.

        Args:
            archive: Name of its file there, such as `mednist-1.1.mar`.
            workers: Number of them; 0 takes what the archive asks for.
            default: Let it answer the requests that name no version, once it is proven.

        Returns:
            A sentence that names the model and its version.
        """
        request = management_pb2.RegisterModelRequest(
            url=archive, initial_workers=workers, synchronous=True
        )
        said = self._manage("RegisterModel", request)
        if default:
            model, version = said.split()[:2]
            said = self.set_default(model, version)
        return said

    def remove(self, model: str, version: str = "") -> str:
        """Serve a version no more; the calls to it end first."""
        request = management_pb2.UnregisterModelRequest(model_name=model, model_version=version)
        return self._manage("UnregisterModel", request)

    def set_default(self, model: str, version: str) -> str:
        """Let a served version answer the requests that name none."""
        request = management_pb2.SetDefaultRequest(model_name=model, model_version=version)
        return self._manage("SetDefault", request)

    def scale(self, model: str, workers: int, version: str = "") -> str:
        """Change the number of workers of a version; return when they are ready."""
        request = management_pb2.ScaleWorkerRequest(
            model_name=model,
            model_version=version,
            min_worker=workers,
            max_worker=workers,
            synchronous=True,
        )
        return self._manage("ScaleWorker", request)

    def roll_back(self, model: str) -> str:
        """Make the default version of before the default again; return which it is."""
        request = releases_pb2.RollBackRequest(model_name=model)
        return str(
            self._call(releases_pb2_grpc.ReleaseServiceStub, "RollBack", request).model_version
        )

    def set_route(
        self,
        model: str,
        *,
        canary: str = "",
        canary_share: float = 0.0,
        canary_callers: Sequence[str] = (),
        shadow: str = "",
        shadow_share: float = 0.0,
    ) -> None:
        """Lead callers to a version, and copies of calls to a version; nothing given ends both.

        Args:
            model: Name of the model.
            canary: Version that answers some of those who name none.
            canary_share: Share of the callers, or of the cases where calls name them, 0 to 1.
            canary_callers: Who get it whatever the share, as in the tokens file.
            shadow: Version that gets copies of calls; its answers are compared alone.
            shadow_share: Share of the calls, 0 to 1.
        """
        request = releases_pb2.SetRouteRequest(
            model_name=model,
            canary_version=canary,
            canary_share=canary_share,
            canary_callers=canary_callers,
            shadow_version=shadow,
            shadow_share=shadow_share,
        )
        self._call(releases_pb2_grpc.ReleaseServiceStub, "SetRoute", request)

    def evidence(self, model: str, allowed: float = 0.0) -> dict[str, Any]:
        """Return how the shadowed version compares; `allowed` as in `promote`."""
        request = releases_pb2.GetEvidenceRequest(model_name=model, allowed=allowed)
        answer = self._call(releases_pb2_grpc.ReleaseServiceStub, "GetEvidence", request)
        found: dict[str, Any] = json.loads(answer.evidence_json)
        return found

    def promote(self, model: str, version: str, allowed: float = 0.0) -> dict[str, Any]:
        """Make a compared version the default, and return the evidence.

        Args:
            model: Name of the model.
            version: That was shadowed.
            allowed: Share of differing classes, or what the mean Dice may lack of 1; 0: 0.02.

        Raises:
            InvalidRequestError: the interval does not exclude that it is worse than allowed.
        """
        request = releases_pb2.PromoteRequest(
            model_name=model, model_version=version, allowed=allowed
        )
        answer = self._call(releases_pb2_grpc.ReleaseServiceStub, "Promote", request)
        found: dict[str, Any] = json.loads(answer.evidence_json)
        return found

    def _manage(self, method: str, request: Any) -> str:
        """Return the sentence that TorchServe's contract answers."""
        answer = self._call(management_pb2_grpc.ManagementAPIsServiceStub, method, request)
        return str(json.loads(answer.msg)["status"])

    def _call(self, stub: Any, method: str, request: Any) -> Any:
        """Make one call over a connection of its own: changes are few."""

        async def call() -> Any:
            tls = self._connection.tls
            credentials = None if tls is None else tls.credentials()
            async with self._connection.open(credentials) as channel:
                try:
                    return await getattr(stub(channel), method)(
                        request, timeout=self._timeout_s, metadata=self._connection.metadata
                    )
                except grpc.RpcError as error:
                    raise call_error(error, str(self._connection.address)) from error

        return asyncio.run(call())
