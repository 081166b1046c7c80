"""What a caller of one task asks for, on its way to the calls that the gateway makes for it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from medserve.errors import InvalidRequestError, ServerFailedError, UnknownModelError
from medserve.gateway.core.calls import Caller, EngineCall, Face, ModelInfo
from medserve.gateway.core.gateway import Gateway
from medserve.spec import Task
from medserve.tasks.generation import GenerationResult, SampleProgress, read_part

__all__ = ["TaskRequest", "draw_samples", "find_model", "find_served"]

_VERBS = {
    Task.CLASSIFICATION: "classify",
    Task.REGRESSION: "estimate",
    Task.VOLUMES: "segment",
    Task.FRAMES: "segment",
    Task.GENERATION: "sample",
}


@dataclass(frozen=True)
class TaskRequest:
    """What all calls made for one request of a caller share.

    Attributes:
        model: Name of the model.
        version: "" asks the default version.
        caller: Who asks.
        request_id: Hexadecimal digits and hyphens, the same in every call.
        face: Where the request came in.
        deadline: `time.monotonic()` at which the caller stops waiting; None: never.
        params: What the caller asks of the model beside the file; the model checks it.
    """

    model: str
    version: str
    caller: Caller
    request_id: str
    face: Face
    deadline: float | None = None
    params: Mapping[str, Any] = field(default_factory=dict)

    def call(self, data: Mapping[str, bytes]) -> EngineCall:
        """One call with these files."""
        inputs = dict(data)
        if self.params:
            inputs["params"] = json.dumps(self.params, separators=(",", ":")).encode()
        return EngineCall(
            model=self.model,
            version=self.version,
            inputs=inputs,
            request_id=self.request_id,
            deadline=self.deadline,
            caller=self.caller,
            face=self.face,
        )

    def to(self, model: ModelInfo) -> TaskRequest:
        """The same request to one version, whichever is the default when its calls are made."""
        return dataclasses.replace(self, version=model.version)

    def with_params(self, params: Mapping[str, Any]) -> TaskRequest:
        """The same request with these parameters too; they win over those of the same name."""
        return dataclasses.replace(self, params={**self.params, **params})

    def sooner(self, deadline: float) -> TaskRequest:
        """The same request, to be answered by `deadline` at the latest."""
        earliest = deadline if self.deadline is None else min(deadline, self.deadline)
        return dataclasses.replace(self, deadline=earliest)

    @property
    def left_s(self) -> float:
        """Time until the deadline, in seconds; infinite where there is none."""
        return float("inf") if self.deadline is None else max(self.deadline - time.monotonic(), 0)


def find_model(models: Sequence[ModelInfo], request: TaskRequest, *tasks: Task) -> ModelInfo:
    """Return the model that the request names, among those that its caller may use.

    Raises:
        UnknownModelError: there is none.
        InvalidRequestError: its task is none of `tasks`, where some are given.
    """
    for info in models:
        wanted = info.version == request.version if request.version else info.default
        if info.name == request.model and wanted:
            return _of_task(info, tasks)
    raise UnknownModelError(
        "expected the name and version of a served model, got others; ask for the list"
    )


async def find_served(gateway: Gateway, request: TaskRequest, *tasks: Task) -> ModelInfo:
    """Return the model that the request names, before any file of the request is taken in.

    A caller who may not use it, or who names one that is not served, is accounted.

    Raises:
        MedserveError: the caller may not use it, there is none, or its task is none of
            `tasks`.
    """
    return _of_task(gateway.find(request.call({})), tasks)


async def draw_samples(
    gateway: Gateway, request: TaskRequest
) -> AsyncGenerator[SampleProgress | GenerationResult, None]:
    """Yield the progress of images while they form, then all of them.

    Raises:
        MedserveError: whatever went wrong, also after some progress.
    """
    part: SampleProgress | GenerationResult | None = None
    async with aclosing(gateway.stream(request.call({}))) as parts:
        async for content in parts:
            part = read_part(content)
            yield part
    if not isinstance(part, GenerationResult):
        raise ServerFailedError("the model showed progress and no images")


def _of_task(info: ModelInfo, tasks: Sequence[Task]) -> ModelInfo:
    if tasks and info.task not in tasks:
        raise InvalidRequestError(
            f"{info.name} cannot {_VERBS[tasks[0]]}, its task is {info.task}; "
            f"use {_VERBS[info.task]} for it"
        )
    return info
