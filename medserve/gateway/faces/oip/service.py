"""The Open Inference Protocol, version 2: stock clients of KServe and Triton infer here.

Encoded files travel as elements of type BYTES, so a client needs no preprocessing: what it reads
from disk is what it sends.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import grpc.aio

from medserve import __version__
from medserve.errors import InvalidRequestError, MedserveError, UnknownModelError
from medserve.gateway.core.call_context import CallContext, Context, answering
from medserve.gateway.core.calls import Caller, Face, ModelInfo
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.packing import ImageFile, answer_each
from medserve.gateway.core.requests import TaskRequest, draw_samples, find_served
from medserve.gateway.faces.oip import models as oip_models
from medserve.gateway.faces.oip import statistics
from medserve.gateway.faces.oip.tensors import Tensor, bytes_elements, too_many, write_tensors
from medserve.gateway.faces.options import read_options, within_json
from medserve.spec import Task
from medserve.tasks.generation import GenerationResult, SampleProgress
from medserve.wire import open_inference_pb2 as pb
from medserve.wire import open_inference_pb2_grpc as pb_grpc

__all__ = [
    "OpenInferenceFace",
    "model_config",
    "model_metadata",
    "model_statistics",
    "register",
    "repository_index",
    "server_metadata",
]

_EXTENSIONS = (
    "model_stream_infer",
    "model_repository_index",
    "model_configuration",
    "statistics",
    "binary_tensor_data",
)
_FINAL = "triton_final_response"  # marks the last of several answers to one request
_PARAMS = "params"  # a JSON object with options, beside those that are parameters of their own
_TIMEOUT = "timeout"  # microseconds, as Triton's clients send it
_SEQUENCES = ("sequence_id", "sequence_start", "sequence_end", "priority")
_MOST_PARTS = 256  # tensors and parameters of a request
_MAX_PARAMS_BYTES = 65_536
_PREFIX = "triton_"  # how Triton's clients shape their own streams; nothing for a model


def register(gateway: Gateway, server: grpc.aio.Server) -> None:
    """Let the server answer `inference.GRPCInferenceService`."""
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(OpenInferenceFace(gateway), server)


def server_metadata() -> pb.ServerMetadataResponse:
    """What the server is."""
    return pb.ServerMetadataResponse(name="medserve", version=__version__, extensions=_EXTENSIONS)


async def model_metadata(
    gateway: Gateway, caller: Caller, name: str, version: str
) -> pb.ModelMetadataResponse:
    """Inputs and outputs of one model, for who may use it; UnknownModelError else."""
    named = await _named(gateway, caller, name)
    return oip_models.describe(_chosen(named, version), [info.version for info in named])


async def model_config(
    gateway: Gateway, caller: Caller, name: str, version: str
) -> pb.ModelConfigResponse:
    """Return the same as Triton's configuration has it; UnknownModelError else."""
    info = _chosen(await _named(gateway, caller, name), version)
    return pb.ModelConfigResponse(config=oip_models.configuration(info))


async def model_statistics(
    gateway: Gateway, caller: Caller, name: str, version: str
) -> pb.ModelStatisticsResponse:
    """Return the counts of one model, or of all where `name` is empty; UnknownModelError else."""
    if name:
        chosen = [_chosen(await _named(gateway, caller, name), version)]
    else:
        chosen = [info for info in await gateway.models(caller) if info.default]
    counts = [statistics.count(gateway.metrics, info) for info in chosen]
    return pb.ModelStatisticsResponse(model_stats=counts)


async def repository_index(
    gateway: Gateway, caller: Caller, *, ready: bool
) -> pb.RepositoryIndexResponse:
    """Return every version of the models that the caller may use; only ready ones if so asked."""
    response = pb.RepositoryIndexResponse()
    for info in await gateway.models(caller):
        if info.ready or not ready:
            response.models.add(
                name=info.name,
                version=info.version,
                state="READY" if info.ready else "UNAVAILABLE",
                reason=info.health.reason,
            )
    return response


class OpenInferenceFace(pb_grpc.GRPCInferenceServiceServicer):
    """`inference.GRPCInferenceService`; the contract says what each call does."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def ServerLive(  # noqa: D102
        self, request: pb.ServerLiveRequest, context: Context
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: D102
        self, request: pb.ServerReadyRequest, context: Context
    ) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._gateway.health().serving)

    async def ModelReady(  # noqa: D102
        self, request: pb.ModelReadyRequest, context: Context
    ) -> pb.ModelReadyResponse:
        async with answering(context, self._gateway) as incoming:
            named = await _named(self._gateway, incoming.caller, request.name)
            return pb.ModelReadyResponse(ready=_chosen(named, request.version).ready)

    async def ServerMetadata(  # noqa: D102
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        return server_metadata()

    async def ModelMetadata(  # noqa: D102
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        async with answering(context, self._gateway) as incoming:
            return await model_metadata(
                self._gateway, incoming.caller, request.name, request.version
            )

    async def RepositoryIndex(  # noqa: D102
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        async with answering(context, self._gateway) as incoming:
            return await repository_index(self._gateway, incoming.caller, ready=request.ready)

    async def ModelConfig(  # noqa: D102
        self, request: pb.ModelConfigRequest, context: Context
    ) -> pb.ModelConfigResponse:
        async with answering(context, self._gateway) as incoming:
            return await model_config(self._gateway, incoming.caller, request.name, request.version)

    async def ModelStatistics(  # noqa: D102
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        async with answering(context, self._gateway) as incoming:
            return await model_statistics(
                self._gateway, incoming.caller, request.name, request.version
            )

    async def ModelInfer(  # noqa: D102
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        async with answering(context, self._gateway) as incoming:
            return await self.infer(request, incoming)

    async def infer(
        self, request: pb.ModelInferRequest, incoming: CallContext
    ) -> pb.ModelInferResponse:
        """Return the one answer to a request; MedserveError else."""
        task_request, model = await self._task_request(request, incoming)
        return _response(request, model, await self._infer(request, task_request, model))

    async def ModelStreamInfer(  # noqa: D102
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncGenerator[pb.ModelStreamInferResponse, None]:
        async with answering(context, self._gateway) as incoming:
            async for request in request_iterator:
                try:
                    async for response in self._answers(request, incoming):
                        yield pb.ModelStreamInferResponse(infer_response=response)
                except MedserveError as error:  # costs its own request and no other
                    yield pb.ModelStreamInferResponse(
                        error_message=f"{error.code}: {error.message}",
                        infer_response=pb.ModelInferResponse(
                            model_name=request.model_name, id=request.id
                        ),
                    )

    async def _answers(
        self, request: pb.ModelInferRequest, incoming: CallContext
    ) -> AsyncGenerator[pb.ModelInferResponse, None]:
        """One answer; of a model that draws, also one for each picture on the way."""
        task_request, model = await self._task_request(request, incoming)
        if model.task is not Task.GENERATION:
            with self._gateway.using(model):
                tensors = await self._infer(request, task_request, model)
            yield _response(request, model, tensors)
            return
        _read_inputs(request, model)
        _check_outputs(request, model)
        async with aclosing(draw_samples(self._gateway, task_request)) as parts:
            async for part in parts:
                if isinstance(part, SampleProgress):
                    yield _progress(request, model, part)
                    continue
                final = _response(request, model, oip_models.images(part))
                final.parameters[_FINAL].bool_param = True
                yield final

    async def _infer(
        self, request: pb.ModelInferRequest, task_request: TaskRequest, model: ModelInfo
    ) -> list[Tensor]:
        inputs = _read_inputs(request, model)
        _check_outputs(request, model)
        match model.task:
            case Task.CLASSIFICATION | Task.REGRESSION:
                images = _images(inputs["data"])
                outcomes = [
                    outcome async for outcome in answer_each(self._gateway, task_request, images)
                ]
                outcomes.sort(key=lambda outcome: outcome.index)
                is_classifier = model.task is Task.CLASSIFICATION
                rows = oip_models.classes if is_classifier else oip_models.values
                return rows(outcomes, model)
            case Task.VOLUMES | Task.FRAMES:
                files = {name: elements[0] for name, elements in inputs.items()}
                answer = await self._gateway.predict(task_request.call(files))
                # in a thread: a volume takes a while to unpack, and others are to be served
                return await asyncio.to_thread(oip_models.mask, answer, model.task)
            case Task.GENERATION:
                answer = await self._gateway.predict(task_request.call({}))
                return oip_models.images(GenerationResult.decode(answer))

    async def _task_request(
        self, request: pb.ModelInferRequest, incoming: CallContext
    ) -> tuple[TaskRequest, ModelInfo]:
        if len(request.inputs) + len(request.outputs) + len(request.parameters) > _MOST_PARTS:
            raise too_many()
        params, timeout_s = _read_parameters(request.parameters)
        task_request = incoming.task_request(request.model_name, request.model_version, Face.OIP)
        if timeout_s is not None:
            task_request = task_request.sooner(time.monotonic() + timeout_s)
        model = await find_served(self._gateway, task_request)
        task_request = task_request.with_params(read_options(model, within_json(model, params)))
        return task_request.to(model), model  # the answer names the version


def _read_parameters(
    given: Mapping[str, pb.InferParameter],
) -> tuple[dict[str, Any], float | None]:
    """Return options for the model, and the seconds that the caller waits (None: not said).

    Raises:
        InvalidRequestError: sequences or priorities, which are not offered, or malformed JSON.
    """
    params: dict[str, Any] = {}
    timeout_s = None
    for name, parameter in given.items():
        kind = parameter.WhichOneof("parameter_choice")
        value = getattr(parameter, kind) if kind else None
        if name in _SEQUENCES:
            raise InvalidRequestError(
                "expected no sequences and no priority; each request stands alone"
            )
        if name == _TIMEOUT and isinstance(value, int) and not isinstance(value, bool):
            timeout_s = value / 1e6
        elif name == _PARAMS:
            params |= _json_object(value)
        elif not name.startswith(_PREFIX):
            params[name] = value
    return params, timeout_s


def _json_object(text: object) -> dict[str, Any]:
    try:
        short = isinstance(text, str) and len(text) <= _MAX_PARAMS_BYTES
        content = json.loads(text) if isinstance(text, str) and short else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InvalidRequestError(
            'parameter params: expected a JSON object such as {"top_k": 3}, got something else'
        )
    return content


async def _named(gateway: Gateway, caller: Caller, name: str) -> list[ModelInfo]:
    """Return every version of a model that the caller may use."""
    return [info for info in await gateway.models(caller) if info.name == name]


def _chosen(named: Sequence[ModelInfo], version: str) -> ModelInfo:
    """Of the versions of one model, the one that was asked for."""
    for info in named:
        if info.version == version or (info.default and not version):
            return info
    raise UnknownModelError(
        "expected the name and version of a served model, got others; ask for the list"
    )


def _read_inputs(request: pb.ModelInferRequest, model: ModelInfo) -> dict[str, list[bytes]]:
    """Return the files of each input; refuse inputs that the model does not have, and bad counts.

    A model that sees several images has an input for each, or takes all of them in one file.
    """
    known = [name for name, _, _ in oip_models.input_tensors(model)]
    given = [tensor.name for tensor in request.inputs]
    if model.channels and given == ["data"]:
        known = given
    if not set(given) <= set(known):
        raise InvalidRequestError(
            f"expected the inputs {sorted(known) or 'none'} of {model.name}, got another one"
        )
    if len(given) > len(set(given)):
        raise InvalidRequestError("expected each input once, got one of them twice")
    if any(tensor.parameters for tensor in request.inputs):
        raise InvalidRequestError(
            "expected no parameters of an input; shared memory is not offered, send the bytes"
        )
    found = {name: bytes_elements(request, name) for name in known}
    if missing := [name for name, files in found.items() if not files]:
        raise InvalidRequestError(f"expected at least one file in the input {missing[0]}, got none")
    inputs = {name: files for name, files in found.items() if files}
    for name, files in inputs.items():
        if model.task.segments and len(files) > 1:
            raise InvalidRequestError(f"expected one file in the input {name}, got {len(files)}")
    return inputs


def _check_outputs(request: pb.ModelInferRequest, model: ModelInfo) -> None:
    """Refuse to be asked for outputs that the model does not have."""
    known = [name for name, _, _ in oip_models.output_tensors(model)]
    known += oip_models.files_on_request(model)
    if any(output.name not in known for output in request.outputs):
        raise InvalidRequestError(f"expected outputs out of {', '.join(known)}; got another one")
    if any(output.parameters for output in request.outputs):
        raise InvalidRequestError(
            "expected no parameters of an output; classification counts and shared memory are "
            "not offered"
        )


async def _images(files: Iterable[bytes]) -> AsyncGenerator[ImageFile, None]:
    for file in files:
        yield ImageFile("", file)


def _response(
    request: pb.ModelInferRequest, model: ModelInfo, tensors: Sequence[Tensor]
) -> pb.ModelInferResponse:
    """The outputs that were asked for; all of them where none was."""
    response = pb.ModelInferResponse(
        model_name=model.name, model_version=model.version, id=request.id
    )
    response.parameters["archive_digest"].string_param = model.digest
    by_name = {tensor.name: tensor for tensor in tensors}
    wanted = [output.name for output in request.outputs] or [
        name for name in by_name if name not in oip_models.ONLY_ON_REQUEST
    ]
    if missing := [name for name in wanted if name not in by_name]:
        raise InvalidRequestError(
            f"The answer holds no {missing[0]}; ask for it by an option of the model."
        )
    # Who sent numbers in lists reads lists; who sent bytes, or nothing, reads bytes.
    raw = bool(request.raw_input_contents) or not request.inputs
    write_tensors(response, [by_name[name] for name in wanted], raw=raw)
    return response


def _progress(
    request: pb.ModelInferRequest, model: ModelInfo, part: SampleProgress
) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(
        model_name=model.name, model_version=model.version, id=request.id
    )
    for name, number in (("image", part.image), ("step", part.step), ("steps", part.steps)):
        response.parameters[name].int64_param = number
    response.parameters[_FINAL].bool_param = False
    write_tensors(response, [Tensor("preview_png", "BYTES", [part.preview_png or b""])], raw=True)
    return response
