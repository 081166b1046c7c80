"""A real gateway on a free port before an engine that a test writes: real gRPC, no TorchServe.

with serving(FakeGateway()) as fake, Client(fake.address) as client: ...
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import grpc.aio

from medserve.engine.interface import Health
from medserve.errors import MedserveError
from medserve.gateway.core.calls import Caller, ModelInfo
from medserve.gateway.core.cancelled import CancelledCalls
from medserve.gateway.core.gateway import Gateway, Guards
from medserve.gateway.core.served_models import ServedModels
from medserve.gateway.services import register_services
from medserve.gateway.settings import GatewaySettings, Limits
from tests.gateway.fake_engine import FakeEngine, Request, model

__all__ = [
    "DIGEST",
    "LABELS",
    "WAITS",
    "FakeGateway",
    "by_content",
    "classification",
    "failure",
    "held",
    "passing",
    "refusing",
    "served_model",
    "serving",
    "together",
    "waiting",
]

LABELS = ("AbdomenCT", "BreastMRI", "ChestCT", "CXR", "Hand", "HeadCT")
DIGEST = "sha256:" + "0" * 64
WAITS = None  # a part of a stream: nothing more until the caller goes
_PATIENCE_S = 60.0

Answer = Callable[[bytes], dict[str, Any]]
Hook = Callable[[Request], None]
Part = bytes | MedserveError | None


def classification(
    label: str, *, probability: float = 0.98, novelty: float = 0.2
) -> dict[str, Any]:
    """One item of an answer, as the classification handler writes it."""
    rest = (1 - probability) / (len(LABELS) - 1)
    probabilities = {each: probability if each == label else rest for each in LABELS}
    return {
        "status": "ok",
        "label": label,
        "label_id": LABELS.index(label),
        "probability": probability,
        "probabilities": probabilities,
        "top": [{"label": label, "probability": probability}],
        "review": probability < 0.9,
        "novelty": novelty,
        "unlike_training": novelty > 1,
    }


def failure(code: str, message: str) -> dict[str, Any]:
    """One failed item, or a failed call."""
    return {"status": "error", "error": {"code": code, "message": message}}


def by_content(payload: bytes) -> dict[str, Any]:
    """Payload `Hand…` is a hand; `Hand?` unsure; `Hand!` unlike training; others are broken."""
    text = payload.decode("latin-1")
    for label in LABELS:
        if text.startswith(label):
            return classification(
                label,
                probability=0.6 if "?" in text else 0.98,
                novelty=3.0 if "!" in text else 0.2,
            )
    return failure("INVALID_IMAGE", "expected PNG, JPEG, TIFF or DICOM; send one of these")


def _explained(item: dict[str, Any]) -> dict[str, Any]:
    """The same item with a heat map, if it is an answer; the map's bytes name its class."""
    if item["status"] != "ok":
        return item
    heatmap = base64.b64encode(b"map of " + item["label"].encode()).decode()
    explanation = {
        "method": "occlusion",
        "label": item["label"],
        "without_warmest": 0.25,
        "without_coolest": 0.75,
        "full_colour": 1.5,
        "heatmap_png": heatmap,
    }
    return item | {"explanation": explanation}


def _asked(answer: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """The answer without the files that were not asked for."""
    asked = {
        "overlay_png": "overlay" in params,
        "entropy_nifti": "uncertainty" in params,
        "dicom_seg": params.get("format") in ("dicom-seg", "dicom-labelmap"),
    }
    return {key: value for key, value in answer.items() if asked.get(key, True)}


def served_model(
    name: str = "mednist",
    version: str = "1.0",
    *,
    default: bool = True,
    ready: bool = True,
    **description: Any,
) -> ModelInfo:
    """A model behind the gateway, a classifier unless its description says otherwise."""
    info = model(name, version=version, **({"labels": LABELS} | description))
    return replace(info, default=default, health=_health(ready))


def _health(ready: bool) -> Health:
    return Health(ready, "" if ready else "no worker is ready")


@dataclass
class FakeGateway:
    """How the engine behind the gateway answers, and what reached it.

    Attributes:
        models: What the gateway serves.
        token: What every call must bring; None lets everybody in.
        answer: One file's answer from its bytes.
        hooks: Called in a thread with each request before it is answered, one hook a request, in
            order; they may wait or raise a MedserveError. The last one stays.
        streams: Parts of the next streamed answers, one list a call.
        answers: The next whole answers; by default they are made of `answer`.
        requests: What came.
        cancelled: Set once a caller has gone before its answer.
    """

    models: tuple[ModelInfo, ...] = field(default_factory=lambda: (served_model(),))
    token: str | None = None
    answer: Answer = by_content
    hooks: list[Hook] = field(default_factory=list)
    streams: list[Sequence[Part]] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    address: str = ""
    most_in_flight: int = 0
    _in_flight: int = 0

    def set_ready(self, name: str, version: str = "1.0", *, ready: bool = True) -> None:
        """Change whether a model serves."""
        self.fleet.set_health(name, version, _health(ready))

    def caller(self, token: str) -> Caller | None:
        """Know the owner of the one token, as the gateway's token file does."""
        return Caller("tester") if token == self.token else None

    def open(self) -> Gateway:
        """The gateway, with nothing but the engine replaced."""
        self.fleet = ServedModels(self.models)
        engine = FakeEngine(self._reply, known=())
        engine.know(*self.models)
        self.requests = engine.requests
        tokens = None if self.token is None else self
        guards = Guards(
            tokens=tokens,
            cancelled=_Cancelled(self.cancelled),
            limits=Limits(gather=1),  # the requests of the engine are those of the client
        )
        return Gateway(engine, self.fleet, guards)

    async def _reply(self, request: Request) -> AsyncIterator[bytes]:
        hook = self._next_hook()
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            if hook is not None:
                await asyncio.to_thread(hook, request)
            async for part in self._parts(request):
                yield part
        finally:
            self._in_flight -= 1

    async def _parts(self, request: Request) -> AsyncIterator[bytes]:
        if request.stream:
            for part in self.streams.pop(0):
                if part is WAITS:
                    while not self.cancelled.is_set():
                        await asyncio.sleep(0.01)
                elif isinstance(part, MedserveError):
                    raise part
                else:
                    yield part
        else:
            yield self.answers.pop(0) if self.answers else self._whole(request)

    def _next_hook(self) -> Hook | None:
        if len(self.hooks) > 1:
            return self.hooks.pop(0)
        return self.hooks[0] if self.hooks else None

    def _whole(self, request: Request) -> bytes:
        content: dict[str, Any] = {
            "model": request.model,
            "version": request.version or "1.0",
            "archive_digest": DIGEST,
        }
        params = json.loads(request.inputs.get("params", b"{}"))
        item = (lambda data: _explained(self.answer(data))) if "explain" in params else self.answer
        if "data" in request.inputs:
            return json.dumps(content | _asked(item(request.inputs["data"]), params)).encode()
        packed = [key for key in request.inputs if key.startswith("data.")]
        content["items"] = [
            {"index": place, **item(request.inputs[f"data.{place}"])}
            for place in range(len(packed))
        ]
        return json.dumps(content).encode()


class _Cancelled(CancelledCalls):
    """Notes that the caller of any call has gone."""

    def __init__(self, event: threading.Event) -> None:
        super().__init__(None)
        self._event = event

    def mark(self, request_id: str) -> None:
        self._event.set()


def refusing(error: MedserveError) -> Hook:
    """A hook that fails its request."""

    def hook(request: Request) -> None:
        raise error

    return hook


def passing(request: Request) -> None:
    """A hook that lets its request through."""


def held(until: threading.Event) -> Hook:
    """A hook that answers when a test says so."""

    def hook(request: Request) -> None:
        until.wait(_PATIENCE_S)

    return hook


def waiting(seconds: float) -> Hook:
    """A hook that answers late."""

    def hook(request: Request) -> None:
        time.sleep(seconds)

    return hook


def together(number: int) -> list[Hook]:
    """The hooks of the first requests: none is answered before so many are there."""
    barrier = threading.Barrier(number)

    def hook(request: Request) -> None:
        barrier.wait(_PATIENCE_S)

    return [hook] * number


@contextmanager
def serving(
    fake: FakeGateway,
    *,
    port: int = 0,
    max_message_bytes: int = 64 * 2**20,
    tls: grpc.ServerCredentials | None = None,
) -> Iterator[FakeGateway]:
    """Run the gateway in a thread of its own, on a free port of loopback."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fake-gateway", daemon=True)
    thread.start()

    async def start() -> tuple[grpc.aio.Server, Gateway]:
        gateway = fake.open()
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.so_reuseport", 0),
            ]
        )
        register_services(server, gateway, fake.fleet, GatewaySettings())
        address = f"127.0.0.1:{port}"
        bound = server.add_secure_port(address, tls) if tls else server.add_insecure_port(address)
        fake.address = f"127.0.0.1:{bound}"
        await server.start()
        return server, gateway

    async def stop() -> None:
        await server.stop(None)
        await gateway.close()

    server, gateway = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    try:
        yield fake
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
