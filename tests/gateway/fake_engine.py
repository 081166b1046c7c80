"""An engine without TorchServe: a function answers, and what was asked is kept.

engine = FakeEngine(lambda request: b'{"status":"ok"}')
gateway = fake_gateway(engine, model("tiny"))
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from medserve.archive.read import ArchiveInfo
from medserve.engine.interface import EngineModel, EngineRequest, Health
from medserve.errors import (
    DeadlineError,
    InvalidRequestError,
    ServerUnreachableError,
    UnknownModelError,
)
from medserve.gateway.core.calls import ModelInfo
from medserve.gateway.core.gateway import Gateway, Guards
from medserve.gateway.core.served_models import ServedModels
from medserve.spec import (
    FrameSpec,
    GenerationSpec,
    InputKind,
    InputSpec,
    ModelSpec,
    OutputSpec,
    ServingSpec,
    Task,
    VolumeSpec,
)
from medserve.spec.generation import Prediction, ScheduleKind
from medserve.spec.values import ValueSpec
from medserve.spec.volumes import CodedTerm, SegmentCoding
from medserve.wire import inference_pb2

__all__ = ["VALUES", "FakeEngine", "Request", "fake_gateway", "model"]

VALUES = (  # that a model of regression tells
    ValueSpec(name="bone age", unit="mo", unit_name="months", range=(0.0, 240.0)),
    ValueSpec(name="ossified", unit="%", unit_name="percent"),
)
_CODING = SegmentCoding(CodedTerm("5366008", "Hippocampus"))


@dataclass(frozen=True)
class Request:
    """What reached the engine."""

    model: str
    version: str
    inputs: dict[str, bytes]
    timeout_s: float
    stream: bool = False
    request_id: str = ""
    deadline: float | None = None


Answers = Callable[[Request], bytes | Sequence[bytes] | AsyncIterator[bytes]]


@dataclass
class FakeEngine:
    """Answers by a function; raise a MedserveError in it to fail.

    Attributes:
        answers: The answer to a request; a sequence is streamed chunk by chunk, and its last
            chunk answers a unary call. An iterator may wait between its chunks.
        pause_s: Before each answer and each chunk.
        hold: Answers nothing before it is set.
        known: Names of the models that it has in version 1.0.
        workers_ready: What `describe` says of every model.
        requests: Everything that was asked, in order.
        finished: How many requests were worked on to their end.
    """

    answers: Answers
    pause_s: float = 0.0
    hold: asyncio.Event | None = None
    known: tuple[str, ...] = ("tiny",)
    workers_ready: int = 1
    requests: list[Request] = field(default_factory=list)
    finished: int = 0
    drained: bool = False

    def __post_init__(self) -> None:
        self._models = [
            EngineModel(name, "1.0", True, 1, self.workers_ready) for name in self.known
        ]
        self._running = 0

    def know(self, *models: ModelInfo) -> None:
        """Answer these models, too."""
        there = {(each.name, each.version) for each in self._models}
        self._models += [
            EngineModel(each.name, each.version, each.default, 1, self.workers_ready)
            for each in models
            if (each.name, each.version) not in there
        ]

    async def call(self, request: EngineRequest, timeout_s: float) -> bytes:
        """The last chunk of the answer."""
        *_, last = [chunk async for chunk in self._answer(request, timeout_s, stream=False)]
        return last

    async def stream(self, request: EngineRequest, timeout_s: float) -> AsyncGenerator[bytes, None]:
        """The answer, chunk by chunk."""
        async for chunk in self._answer(request, timeout_s, stream=True):
            yield chunk

    async def _answer(
        self, asked: EngineRequest, timeout_s: float, *, stream: bool
    ) -> AsyncGenerator[bytes, None]:
        self._require_open()
        self._find(asked.model, asked.version)
        inputs = dict(asked.inputs)
        if asked.wire is not None:
            inputs = dict(inference_pb2.PredictionsRequest.FromString(asked.wire).input)
        request = Request(
            *(asked.model, asked.version, inputs, timeout_s, stream),
            *(asked.request_id, asked.deadline),
        )
        self.requests.append(request)
        self._running += 1
        try:
            async with asyncio.timeout(timeout_s):
                if self.hold is not None:
                    await self.hold.wait()
                async for chunk in _chunks(self.answers(request)):
                    await asyncio.sleep(self.pause_s)
                    yield chunk
        except TimeoutError:
            raise DeadlineError("the fake gave no answer in time") from None
        finally:
            self._running -= 1
        self.finished += 1

    async def load(self, archive: ArchiveInfo, *, workers: int = 0, default: bool = False) -> None:
        """Answer this version, too."""
        if any(
            (each.name, each.version) == (archive.name, archive.version) for each in self._models
        ):
            raise InvalidRequestError("loaded already")
        first = not any(each.name == archive.name for each in self._models)
        number = workers or 1
        new = EngineModel(archive.name, archive.version, first or default, number, number)
        if default:
            self._models = [
                dataclasses.replace(each, default=each.default and each.name != archive.name)
                for each in self._models
            ]
        self._models.append(new)

    async def unload(self, model: str, version: str) -> None:
        """Answer this version no more."""
        found = self._find(model, version)
        if found.default and sum(each.name == model for each in self._models) > 1:
            raise InvalidRequestError("the default version")
        self._models.remove(found)

    async def set_default(self, model: str, version: str) -> None:
        """Answer with this version when a request names none."""
        self._find(model, version)
        self._models = [
            dataclasses.replace(each, default=each.version == version)
            if each.name == model
            else each
            for each in self._models
        ]

    async def scale(self, model: str, version: str, workers: int) -> None:
        """Say that the version has so many workers."""
        place = self._models.index(self._find(model, version))
        self._models[place] = dataclasses.replace(
            self._models[place], workers=workers, workers_ready=workers
        )

    async def describe(self, model: str = "") -> Sequence[EngineModel]:
        """Every version, each with `workers_ready` workers."""
        self._require_open()
        found = [each for each in self._models if model in ("", each.name)]
        if model and not found:
            raise UnknownModelError(f"no {model}")
        return found

    async def drain(self, timeout_s: float = 0.0) -> None:
        """Take nothing new, and wait for what runs."""
        self.drained = True
        while self._running and timeout_s > 0:
            await asyncio.sleep(0.01)
            timeout_s -= 0.01

    def _require_open(self) -> None:
        if self.drained:
            raise ServerUnreachableError("drained")

    def _find(self, model: str, version: str) -> EngineModel:
        for each in self._models:
            if each.name == model and (each.version == version or (not version and each.default)):
                return each
        raise UnknownModelError(f"no {model} {version}")


async def _chunks(
    answer: bytes | Sequence[bytes] | AsyncIterator[bytes],
) -> AsyncIterator[bytes]:
    if isinstance(answer, AsyncIterator):
        async for chunk in answer:
            yield chunk
    else:
        for chunk in [answer] if isinstance(answer, bytes) else answer:
            yield chunk


def model(
    name: str = "tiny",
    task: Task = Task.CLASSIFICATION,
    serving: ServingSpec | None = None,
    labels: tuple[str, ...] = ("dark", "bright"),
    version: str = "1.0",
    output: OutputSpec | None = None,
) -> ModelInfo:
    """A model as its archive would describe it, serving."""
    coded = {label: _CODING for label in labels[1:]} if task.segments else {}
    sections: dict[Task, dict[str, Any]] = {
        Task.CLASSIFICATION: {"output": output},
        Task.REGRESSION: {"values": VALUES},
        Task.VOLUMES: {"volume": VolumeSpec((1.0, 1.0, 1.0), snomed=coded)},
        Task.FRAMES: {"frame": FrameSpec(snomed=coded)},
        Task.GENERATION: {
            "generation": GenerationSpec(ScheduleKind.COSINE, Prediction.VELOCITY, (64,))
        },
    }
    size = (16, 16, 16) if task is Task.VOLUMES else (64, 64)
    spec = ModelSpec(
        name=name,
        version=version,
        title=f"The model {name}",
        task=task,
        labels=() if task is Task.REGRESSION else labels,
        input=InputSpec((InputKind.RASTER,), size),
        serving=serving or ServingSpec(1, 1, batch_size=8),
        **sections[task],
    )
    return ModelInfo(spec, "sha256:" + 64 * "0", True, Health(True), f"# {name}\n", {"accuracy": 1})


def fake_gateway(engine: FakeEngine, *models: ModelInfo, guards: Guards | None = None) -> Gateway:
    """A gateway in front of the fake, with these models (by default `tiny`), all serving."""
    served = models or (model(),)
    engine.know(*served)
    return Gateway(engine, ServedModels(served), guards)
