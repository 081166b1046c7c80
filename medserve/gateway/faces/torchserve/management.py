"""TorchServe's management contract: what is served, and changes of it while it is served.

ListModels and DescribeModel tell what the caller may use. The others need a token that manages the
model. What TorchServe lets a caller override of an archive (its handler, its batches) is refused:
an archive is served as it was proven.
"""

from __future__ import annotations

import json
from typing import Any

import grpc.aio

from medserve.engine.interface import EngineModel
from medserve.engine.torchserve.calls import READY
from medserve.errors import InvalidRequestError, UnknownModelError
from medserve.gateway.core.call_context import Context, answering
from medserve.gateway.core.calls import ModelInfo
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.versions import Addition, Changer
from medserve.wire import management_pb2, management_pb2_grpc

__all__ = ["ManagementFace", "register"]

_LARGEST_PAGE = 100
_OF_THE_ARCHIVE = (
    "batch_size", "handler", "max_batch_delay", "response_timeout", "runtime", "s3_sse_kms",
    "startup_timeout",
)  # fmt: skip


def register(gateway: Gateway, server: grpc.aio.Server) -> None:
    """Let the server answer `org.pytorch.serve.grpc.management.ManagementAPIsService`."""
    management_pb2_grpc.add_ManagementAPIsServiceServicer_to_server(ManagementFace(gateway), server)


class ManagementFace(management_pb2_grpc.ManagementAPIsServiceServicer):
    """`org.pytorch.serve.grpc.management.ManagementAPIsService`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def ListModels(  # noqa: D102 - the contract says what it does
        self, request: management_pb2.ListModelsRequest, context: Context
    ) -> management_pb2.ManagementResponse:
        content: dict[str, Any] = {}
        async with answering(context, self._gateway) as incoming:
            models = [each for each in await self._gateway.models(incoming.caller) if each.default]
            start = max(request.next_page_token, 0)
            end = start + min(max(request.limit, 0), _LARGEST_PAGE)
            content["models"] = [
                {"modelName": each.name, "modelUrl": f"{each.name}-{each.version}.mar"}
                for each in models[start:end]
            ]
            if end < len(models):
                content["nextPageToken"] = str(end)
        return management_pb2.ManagementResponse(msg=json.dumps(content, indent=2))

    async def DescribeModel(  # noqa: D102
        self, request: management_pb2.DescribeModelRequest, context: Context
    ) -> management_pb2.ManagementResponse:
        content: list[dict[str, Any]] = []
        async with answering(context, self._gateway) as incoming:
            name, wanted = request.model_name, request.model_version
            served = await self._gateway.models(incoming.caller)
            found = [model for model in served if model.name == name]
            if wanted != "all":
                found = [each for each in found if each.version == (wanted or each.version)]
                found = [each for each in found if wanted or each.default]
            if not found:
                raise UnknownModelError("expected a served model and version, got another")
            states = {each.version: each for each in await self._gateway.workers(name)}
            content = [_described(each, states.get(each.version)) for each in found]
        return management_pb2.ManagementResponse(msg=json.dumps(content, indent=2))

    async def RegisterModel(  # noqa: D102
        self, request: management_pb2.RegisterModelRequest, context: Context
    ) -> management_pb2.ManagementResponse:
        async with answering(context, self._gateway) as incoming:
            if given := [each for each in _OF_THE_ARCHIVE if getattr(request, each)]:
                raise InvalidRequestError(
                    f"an archive is served as it was proven; leave out {', '.join(given)} and set "
                    "it in the model-config.yaml of a new version"
                )
            addition = Addition(
                request.url, model=request.model_name, workers=request.initial_workers
            )
            by = Changer.of(incoming)
            added = await self._gateway.versions.add(by, addition)
        return _said(f"{added.name} {added.version} is served; its golden input was answered")

    async def UnregisterModel(  # noqa: D102
        self, request: management_pb2.UnregisterModelRequest, context: Context
    ) -> management_pb2.ManagementResponse:
        async with answering(context, self._gateway) as incoming:
            by = Changer.of(incoming)
            await self._gateway.versions.remove(by, request.model_name, request.model_version)
        return _said(f"{request.model_name} {request.model_version}".strip() + " is unregistered")

    async def ScaleWorker(  # noqa: D102
        self, request: management_pb2.ScaleWorkerRequest, context: Context
    ) -> management_pb2.ManagementResponse:
        async with answering(context, self._gateway) as incoming:
            by = Changer.of(incoming)
            wanted = request.min_worker or request.max_worker
            scaled = await self._gateway.versions.scale(
                by, request.model_name, request.model_version, wanted
            )
        return _said(f"{scaled.name} {scaled.version} has {wanted} workers")

    async def SetDefault(  # noqa: D102
        self, request: management_pb2.SetDefaultRequest, context: Context
    ) -> management_pb2.ManagementResponse:
        async with answering(context, self._gateway) as incoming:
            if not request.model_version:
                raise InvalidRequestError("name the version that is to be the default")
            by = Changer.of(incoming)
            await self._gateway.versions.set_default(by, request.model_name, request.model_version)
        return _said(f"{request.model_version} is the default version of {request.model_name}")


def _said(sentence: str) -> management_pb2.ManagementResponse:
    """Return a sentence in JSON, as TorchServe answers."""
    return management_pb2.ManagementResponse(msg=json.dumps({"status": sentence}, indent=2))


def _described(model: ModelInfo, state: EngineModel | None) -> dict[str, Any]:
    """One version as TorchServe describes it; a worker is ready only if the model answers."""
    serving = model.spec.serving
    ready = state.workers_ready if state and model.ready else 0
    number = max(state.workers if state else 0, ready)
    return {
        "modelName": model.name,
        "modelVersion": model.version,
        "minWorkers": number,
        "maxWorkers": max(serving.max_workers, number),
        "batchSize": serving.batch_size,
        "maxBatchDelay": serving.max_batch_delay,
        "responseTimeout": serving.response_timeout,
        "workers": [
            {"id": str(place), "status": READY if place < ready else "UNLOADING"}
            for place in range(number)
        ],
        "jobQueueStatus": {
            "remainingCapacity": max(serving.job_queue_size - (state.pending if state else 0), 0),
            "pendingRequests": state.pending if state else 0,
        },
    }
