"""The typed calls of `medserve.v1`: named fields instead of a map of bytes."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc.aio
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from medserve.errors import (
    DeadlineError,
    InvalidRequestError,
    MedserveError,
)
from medserve.gateway.core.admission import Reservation
from medserve.gateway.core.call_context import CallContext, Context, answering
from medserve.gateway.core.calls import Face, ModelInfo
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.guard import STREAMED_BYTES
from medserve.gateway.core.packing import HeldImages, ImageFile, Outcome, answer_each
from medserve.gateway.core.requests import draw_samples, find_served
from medserve.gateway.core.status import rpc_status
from medserve.gateway.core.uploads import Incoming, InMemory, refuse_larger
from medserve.gateway.faces.options import describe_option, options_of, read_options, within_json
from medserve.gateway.faces.v1.messages import (
    chunks,
    estimate_response,
    message_params,
    provenance_message,
    sample_files,
    segment_result,
)
from medserve.spec import Task
from medserve.spec.values import ValueSpec
from medserve.tasks import Option
from medserve.tasks.classification import Explanation
from medserve.tasks.generation import GenerationResult, SampleProgress
from medserve.wire.v1 import imaging_pb2 as pb
from medserve.wire.v1 import imaging_pb2_grpc as pb_grpc

__all__ = ["TypedFace", "register"]

_IDLE_S = 60.0  # a client that sends nothing for so long holds memory for nothing
_UPLOAD_S = 600.0  # for one file, however steadily it drips in
_MAX_ID_BYTES = 256
_MAX_SETTINGS_BYTES = 2**17
_TASKS = {
    Task.CLASSIFICATION: pb.TASK_CLASSIFICATION,
    Task.REGRESSION: pb.TASK_REGRESSION,
    Task.VOLUMES: pb.TASK_VOLUMES,
    Task.FRAMES: pb.TASK_FRAMES,
    Task.GENERATION: pb.TASK_GENERATION,
}
_TYPES: dict[type, pb.OptionType.ValueType] = {
    bool: pb.OPTION_TYPE_BOOL,
    int: pb.OPTION_TYPE_INT,
    float: pb.OPTION_TYPE_FLOAT,
    str: pb.OPTION_TYPE_STR,
}


def register(gateway: Gateway, server: grpc.aio.Server, idle_s: float = _IDLE_S) -> None:
    """Let the server answer `medserve.v1.ImagingService`; a client may be silent for `idle_s`."""
    pb_grpc.add_ImagingServiceServicer_to_server(TypedFace(gateway, idle_s), server)


class TypedFace(pb_grpc.ImagingServiceServicer):
    """`medserve.v1.ImagingService`."""

    def __init__(self, gateway: Gateway, idle_s: float) -> None:
        self._gateway = gateway
        self._idle_s = idle_s

    async def Classify(  # noqa: D102 - the contract says what it does
        self, request_iterator: AsyncIterator[pb.ClassifyRequest], context: Context
    ) -> AsyncGenerator[pb.ClassifyResponse, None]:
        found = self._outcomes(request_iterator, context, Task.CLASSIFICATION)
        async with aclosing(found) as outcomes:
            async for outcome, settings in outcomes:
                yield _classify_response(outcome, settings.top_k)

    async def Estimate(  # noqa: D102
        self, request_iterator: AsyncIterator[pb.EstimateRequest], context: Context
    ) -> AsyncGenerator[pb.EstimateResponse, None]:
        found = self._outcomes(request_iterator, context, Task.REGRESSION)
        async with aclosing(found) as outcomes:
            async for outcome, _ in outcomes:
                yield estimate_response(outcome)

    async def Segment(  # noqa: D102
        self, request_iterator: AsyncIterator[pb.SegmentRequest], context: Context
    ) -> AsyncGenerator[pb.SegmentResponse, None]:
        async with answering(context, self._gateway) as incoming:
            parts = self._parts(request_iterator)
            settings = _settings(await anext(parts, None))
            task_request = incoming.task_request(
                settings.model_name, settings.model_version, Face.TYPED
            )
            model = await find_served(self._gateway, task_request, Task.VOLUMES, Task.FRAMES)
            asked = message_params(settings)
            task_request = task_request.with_params(read_options(model, within_json(model, asked)))
            async with self._room(model, settings.content_bytes, incoming) as (file, held):
                yield _progress(pb.SEGMENT_STAGE_ACCEPTED, 0)
                inputs = await _gather(parts, file, model.channels)
                if held is not None:
                    held.resize(file.size)
                yield _progress(pb.SEGMENT_STAGE_RUNNING, file.size)
                answer = await self._gateway.predict(task_request.call(inputs))
            result, files = await asyncio.to_thread(
                segment_result, answer, model.task, asked.get("format")
            )
            yield pb.SegmentResponse(result=result)
            for chunk in chunks(files):
                yield pb.SegmentResponse(chunk=chunk)

    async def Sample(  # noqa: D102
        self, request: pb.SampleRequest, context: Context
    ) -> AsyncGenerator[pb.SampleResponse, None]:
        async with answering(context, self._gateway) as incoming:
            task_request = incoming.task_request(
                request.model_name, request.model_version, Face.TYPED
            )
            model = await find_served(self._gateway, task_request, Task.GENERATION)
            task_request = task_request.with_params(read_options(model, message_params(request)))
            async with aclosing(draw_samples(self._gateway, task_request)) as parts:
                async for part in parts:
                    for response in _sample_responses(part):
                        yield response

    async def ListModels(  # noqa: D102
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        async with answering(context, self._gateway) as incoming:
            found = await self._gateway.models(incoming.caller)
            names = {request.model_name} if request.model_name else {info.name for info in found}
            return pb.ListModelsResponse(
                models=[_model(info) for info in found if info.name in names]
            )

    async def _outcomes(
        self, requests: AsyncIterator[Any], context: Context, task: Task
    ) -> AsyncGenerator[tuple[Outcome, Any], None]:
        """Yield what became of each image of a stream as it is known, with its settings."""
        async with answering(context, self._gateway) as incoming:
            parts = self._parts(requests)
            settings = _settings(await anext(parts, None))
            task_request = incoming.task_request(
                settings.model_name, settings.model_version, Face.TYPED
            )
            model = await find_served(self._gateway, task_request, task)
            task_request = task_request.to(model).with_params(
                read_options(model, message_params(settings))
            )
            held = HeldImages(self._gateway.budget, incoming.caller.owner)
            images = held.counted(_images(parts))
            with self._gateway.using(model):
                async with (
                    held,
                    aclosing(answer_each(self._gateway, task_request, images)) as outcomes,
                ):
                    async for outcome in outcomes:
                        held.release(outcome.index)
                        yield outcome, settings

    @asynccontextmanager
    async def _room(
        self, model: ModelInfo, announced: int, incoming: CallContext
    ) -> AsyncIterator[tuple[Incoming, Reservation | None]]:
        """Give a file its place: in memory, or on the disk where it is too large for a message.

        A file that is not announced has to fit into a message.
        """
        message = self._gateway.limits.message_bytes
        on_disk = self._gateway.uploads.most_bytes if model.reads_uploads else 0
        limit = min(max(message, on_disk), model.max_case_bytes)
        refuse_larger(announced, limit)
        owner, deadline = incoming.caller.owner, incoming.deadline
        if on_disk and announced > message - _MAX_SETTINGS_BYTES:  # which travel with it
            async with self._gateway.uploads.receive(announced, owner, deadline) as file:
                yield file, None
            return
        size = announced or min(limit, message)
        need = max(size, STREAMED_BYTES)
        async with self._gateway.budget.reserve(need, owner, deadline) as held:
            incoming.memory.reserved = True
            yield InMemory(size), held

    async def _parts(self, requests: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        """The messages of a client, each within the time that it may be silent."""
        source = aiter(requests)
        while True:
            try:
                async with asyncio.timeout(self._idle_s):
                    part = await anext(source, None)
            except TimeoutError:
                raise DeadlineError(
                    f"expected the next message within {self._idle_s:g} s, got none; send on, or "
                    "end the stream"
                ) from None
            if part is None:
                return
            yield part


def _settings(first: Any) -> Any:
    """What the first message of a stream has to carry."""
    if first is None or first.WhichOneof("part") != "settings":
        raise InvalidRequestError(
            "expected settings in the first message of the stream, got "
            + ("no message" if first is None else "something else")
        )
    if first.ByteSize() > _MAX_SETTINGS_BYTES:  # kept for as long as the stream
        raise InvalidRequestError(
            f"expected at most {_MAX_SETTINGS_BYTES} bytes of settings, got more"
        )
    return first.settings


async def _images(parts: AsyncIterator[Any]) -> AsyncGenerator[ImageFile, None]:
    async for part in parts:
        if part.WhichOneof("part") != "image":
            raise InvalidRequestError(
                "expected an image in every message but the first, got something else"
            )
        if len(part.image.id.encode()) > _MAX_ID_BYTES:
            raise InvalidRequestError(f"image.id: expected at most {_MAX_ID_BYTES} bytes, got more")
        yield ImageFile(part.image.id, part.image.content)


async def _gather(
    parts: AsyncIterator[pb.SegmentRequest], file: Incoming, channels: Sequence[str]
) -> Mapping[str, bytes]:
    """Bring the chunks into the file, or each channel's into its own; what the engine gets."""
    given: set[str] = set()
    try:
        async with asyncio.timeout(_UPLOAD_S):
            async for part in parts:
                match part.WhichOneof("part"):
                    case "chunk":
                        await file.take(part.chunk)
                    case "input":
                        key = _channel_key(part.input.channel, channels, given)
                        given.add(key)
                        file.begin(key)
                    case _:
                        raise InvalidRequestError(
                            "expected a chunk in every message but the first, or the channel whose "
                            "chunks follow, got something else"
                        )
    except TimeoutError:
        raise DeadlineError(
            f"expected the whole file within {_UPLOAD_S:g} s, got a part of it; send a smaller one"
        ) from None
    inputs = file.inputs()
    if not file.size or not all(inputs.values()):
        raise InvalidRequestError("expected a file in chunks, got none")
    return inputs


def _channel_key(channel: str, channels: Sequence[str], given: Collection[str]) -> str:
    """Return the key under which the file of a channel travels."""
    key = f"data.{channel}"
    if not channels:
        raise InvalidRequestError("expected no channel, for a single file is a case of this model")
    if channel not in channels or key in given:
        raise InvalidRequestError(
            f"input.channel: expected each of {', '.join(channels)} once, got another one or one "
            "twice"
        )
    return key


def _progress(stage: pb.SegmentStage.ValueType, received_bytes: int) -> pb.SegmentResponse:
    return pb.SegmentResponse(
        progress=pb.SegmentProgress(stage=stage, received_bytes=received_bytes)
    )


def _classify_response(outcome: Outcome, top_k: int) -> pb.ClassifyResponse:
    response = pb.ClassifyResponse(id=outcome.id, index=outcome.index)
    if outcome.provenance is not None:
        response.provenance.CopyFrom(provenance_message(outcome.provenance))
    try:
        found = outcome.classification()
    except MedserveError as error:
        response.error.CopyFrom(rpc_status(error))
        return response
    response.classification.CopyFrom(
        pb.Classification(
            label=found.label,
            label_id=found.label_id,
            probability=found.probability,
            probabilities=[
                pb.ClassProbability(label=label, probability=probability)
                for label, probability in zip(found.labels, found.probabilities, strict=True)
            ],
            top=[
                pb.ClassProbability(label=label, probability=probability)
                for label, probability in found.top(top_k)
            ],
            review=found.review,
            novelty=math.nan if found.novelty is None else found.novelty,
            explanation=None if found.explanation is None else _explanation(found.explanation),
            independent=found.present is not None,
            present=found.present or (),
        )
    )
    return response


def _explanation(found: Explanation) -> pb.Explanation:
    return pb.Explanation(
        method=found.method,
        label=found.label,
        probability_without_warmest=found.without_warmest,
        probability_without_coolest=found.without_coolest,
        full_colour_nats=found.full_colour,
        heatmap_png=found.heatmap_png,
    )


def _sample_responses(part: SampleProgress | GenerationResult) -> Iterator[pb.SampleResponse]:
    if isinstance(part, SampleProgress):
        progress = pb.SampleProgress(
            image_index=part.image,
            step=part.step,
            steps=part.steps,
            preview_png=part.preview_png or b"",
        )
        yield pb.SampleResponse(progress=progress)
        return
    for index, image in enumerate(part.images):
        details = image.to_json()
        for name in ("png", "seed", "dicom"):  # in places of their own
            details.pop(name, None)
        sampled = pb.SampledImage(
            index=index,
            png=image.png,
            seed=image.seed,
            details=_struct(details),
            provenance=provenance_message(part.provenance),
        )
        yield pb.SampleResponse(image=sampled)
    for chunk in chunks(sample_files(part)):
        yield pb.SampleResponse(chunk=chunk)


def _model(info: ModelInfo) -> pb.Model:
    return pb.Model(
        name=info.name,
        version=info.version,
        default_version=info.default,
        task=_TASKS[info.task],
        title=info.title,
        labels=info.labels,
        input_kinds=info.input_kinds,
        channels=info.channels,
        ready=info.ready,
        card_markdown=info.card,
        metrics=_struct(info.metrics),
        archive_digest=info.digest,
        options=[_option(each) for each in options_of(info)],
        values=[_value(each) for each in info.spec.values],
    )


def _value(value: ValueSpec) -> pb.ModelValue:
    least, most = value.range or (None, None)
    return pb.ModelValue(
        name=value.name, unit=value.unit, unit_name=value.unit_name, least=least, most=most
    )


def _option(option: Option) -> pb.ModelOption:
    default = describe_option(option)["default"]
    return pb.ModelOption(
        name=option.key,
        type=_TYPES[option.kind],
        help=option.help,
        count=option.count,
        choices=option.choices,
        least=option.least,
        most=option.most,
        above=option.above,
        default_json="" if default is None else json.dumps(default),
    )


def _struct(content: Mapping[str, Any]) -> Struct:
    return ParseDict(dict(content), Struct())
