"""An engine without TorchServe: a function answers, and what was asked is kept.

engine = FakeEngine(lambda request: b'{"status":"ok"}')
gateway = fake_gateway(engine, model("tiny"))
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from medserve.engine.interface import EngineModel
from medserve.errors import UnknownModelError
from medserve.gateway.core.calls import Health, ModelInfo
from medserve.gateway.core.gateway import Gateway, Guards
from medserve.gateway.core.served_models import ServedModels
from medserve.spec import (
    FrameSpec,
    GenerationSpec,
    InputKind,
    InputSpec,
    ModelSpec,
    ServingSpec,
    Task,
    VolumeSpec,
)
from medserve.spec.generation import Prediction, ScheduleKind
from medserve.spec.volumes import CodedTerm, SegmentCoding

__all__ = ["FakeEngine", "Request", "fake_gateway", "model"]

_CODING = SegmentCoding(CodedTerm("5366008", "Hippocampus"))


@dataclass(frozen=True)
class Request:
    """What reached the engine."""

    model: str
    version: str
    inputs: dict[str, bytes]
    timeout_s: float


Answers = Callable[[Request], bytes | Sequence[bytes]]


@dataclass
class FakeEngine:
    """Answers by a function; raise a MedserveError in it to fail.

    Attributes:
        answers: The answer to a request; a sequence is streamed chunk by chunk, and its last
            chunk answers a unary call.
        pause_s: Before each answer and each chunk.
        hold: Answers nothing before it is set.
        requests: Everything that was asked, in order.
        finished: How many requests were worked on to their end.
        workers_ready: What `describe` says of every model.
    """

    answers: Answers
    pause_s: float = 0.0
    hold: asyncio.Event | None = None
    known: tuple[str, ...] = ("tiny",)
    workers_ready: int = 1
    requests: list[Request] = field(default_factory=list)
    finished: int = 0
    closed: bool = False

    async def predict(self, message: bytes, timeout_s: float) -> bytes:
        """The last chunk of the answer."""
        *_, last = [chunk async for chunk in self.stream(message, timeout_s)]
        return last

    async def stream(self, message: bytes, timeout_s: float) -> AsyncIterator[bytes]:
        """The answer, chunk by chunk."""
        from medserve.wire import inference_pb2

        parsed = inference_pb2.PredictionsRequest.FromString(message)
        request = Request(parsed.model_name, parsed.model_version, dict(parsed.input), timeout_s)
        self.requests.append(request)
        if self.hold is not None:
            await self.hold.wait()
        answer = self.answers(request)
        for chunk in [answer] if isinstance(answer, bytes) else answer:
            await asyncio.sleep(self.pause_s)
            yield chunk
        self.finished += 1

    async def describe(self, model: str) -> Sequence[EngineModel]:
        """One version, 1.0, with `workers_ready` of one worker."""
        if model not in self.known:
            raise UnknownModelError(f"no {model}")
        return [EngineModel(model, "1.0", True, 1, self.workers_ready)]

    async def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True


def model(
    name: str = "tiny",
    task: Task = Task.CLASSIFICATION,
    serving: ServingSpec | None = None,
    labels: tuple[str, ...] = ("dark", "bright"),
    version: str = "1.0",
) -> ModelInfo:
    """A model as its archive would describe it, serving."""
    coded = {label: _CODING for label in labels[1:]} if task.segments else {}
    sections: dict[Task, dict[str, Any]] = {
        Task.CLASSIFICATION: {},
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
        labels=labels,
        input=InputSpec((InputKind.RASTER,), size),
        serving=serving or ServingSpec(1, 1, batch_size=8),
        **sections[task],
    )
    return ModelInfo(spec, "sha256:" + 64 * "0", True, Health(True), f"# {name}\n", {"accuracy": 1})


def fake_gateway(engine: FakeEngine, *models: ModelInfo, guards: Guards | None = None) -> Gateway:
    """A gateway in front of the fake, with these models (by default `tiny`), all serving."""
    return Gateway(engine, ServedModels(models or (model(),)), guards)
