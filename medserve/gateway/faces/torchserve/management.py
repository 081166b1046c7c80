"""TorchServe's management contract as far as it only looks, so that `medserve models` works here.

ListModels and DescribeModel tell what the caller may use. What would change the set of models or
of workers is refused; it stays on TorchServe's own port, which nobody but the operator reaches.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import grpc.aio

from medserve.engine.interface import EngineModel
from medserve.engine.torchserve.calls import READY
from medserve.errors import ForbiddenError, UnknownModelError
from medserve.gateway.core.call_context import Context, answering
from medserve.gateway.core.calls import ModelInfo
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.status import abort
from medserve.wire import management_pb2, management_pb2_grpc

__all__ = ["ManagementFace", "register"]

_LARGEST_PAGE = 100


def register(gateway: Gateway, server: grpc.aio.Server) -> None:
    """Let the server answer `org.pytorch.serve.grpc.management.ManagementAPIsService`."""
    management_pb2_grpc.add_ManagementAPIsServiceServicer_to_server(ManagementFace(gateway), server)


class ManagementFace(management_pb2_grpc.ManagementAPIsServiceServicer):
    """The methods that only look, and a refusal for the others."""

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

    async def RegisterModel(self, request: object, context: Context) -> NoReturn:  # noqa: D102
        await self._refuse(context)

    async def UnregisterModel(self, request: object, context: Context) -> NoReturn:  # noqa: D102
        await self._refuse(context)

    async def ScaleWorker(self, request: object, context: Context) -> NoReturn:  # noqa: D102
        await self._refuse(context)

    async def SetDefault(self, request: object, context: Context) -> NoReturn:  # noqa: D102
        await self._refuse(context)

    async def _refuse(self, context: Context) -> NoReturn:
        await abort(context, ForbiddenError("the gateway changes neither models nor workers"))


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
