"""A gRPC server that answers as TorchServe does, statuses and texts verbatim, without Java."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

import grpc

from medserve.wire import inference_pb2, inference_pb2_grpc, management_pb2, management_pb2_grpc

LABELS = ("AbdomenCT", "BreastMRI", "ChestCT", "CXR", "Hand", "HeadCT")
DIGEST = "sha256:" + "0" * 64


@dataclass
class Status(Exception):
    """A refusal with the code and the text that TorchServe would send."""

    code: grpc.StatusCode
    text: str


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


def explained(item: dict[str, Any]) -> dict[str, Any]:
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


Answer = Callable[[bytes], dict[str, Any]]
Hook = Callable[[inference_pb2.PredictionsRequest], None]


@dataclass
class FakeServer(
    inference_pb2_grpc.InferenceAPIsServiceServicer,
    management_pb2_grpc.ManagementAPIsServiceServicer,
):
    """What it saw and how it answers; tests change `answer` and `hooks`.

    Attributes:
        answer: One item's answer from its bytes.
        segments: Whether its models take the params of segmentation.
        frames: Whether they take those of frames, too.
        hooks: Called with each request before it is answered, one hook a request, in order;
            they may wait or raise `Status`. The last one stays.
    """

    answer: Answer = by_content
    hooks: list[Hook] = field(default_factory=list)
    token: str | None = None
    requests: list[inference_pb2.PredictionsRequest] = field(default_factory=list)
    workers: dict[str, list[str]] = field(default_factory=lambda: {"mednist": ["READY"]})
    versions: tuple[str, ...] = ("1.0",)
    segments: bool = False
    frames: bool = False
    address: str = ""
    StreamPredictions: ClassVar[Any] = None
    StreamPredictions2: ClassVar[Any] = None
    RegisterModel: ClassVar[Any] = None
    ScaleWorker: ClassVar[Any] = None
    SetDefault: ClassVar[Any] = None
    UnregisterModel: ClassVar[Any] = None
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def Predictions(  # noqa: D102 - name and meaning are TorchServe's
        self, request: inference_pb2.PredictionsRequest, context: Any
    ) -> inference_pb2.PredictionResponse:
        with self.lock:
            self.requests.append(request)
            hook = self._next_hook()
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            self._check(context)
            if hook is not None:
                hook(request)
            answer = self._answer(request)
        except Status as status:
            context.abort(status.code, status.text)
        finally:
            with self.lock:
                self.in_flight -= 1
        return inference_pb2.PredictionResponse(prediction=answer)

    def Ping(self, request: Any, context: Any) -> inference_pb2.TorchServeHealthResponse:  # noqa: D102
        return inference_pb2.TorchServeHealthResponse(health='{"status": "Healthy"}')

    def ListModels(self, request: Any, context: Any) -> management_pb2.ManagementResponse:  # noqa: D102
        names = sorted(self.workers)
        page = request.next_page_token
        size = min(request.limit, 1)  # TorchServe gives none for 0; here pages are short
        content: dict[str, Any] = {
            "models": [
                {"modelName": name, "modelUrl": f"{name}.mar"} for name in names[page:][:size]
            ]
        }
        if page + 1 < len(names):  # one model a page
            content["nextPageToken"] = str(page + 1)
        return management_pb2.ManagementResponse(msg=json.dumps(content))

    def DescribeModel(self, request: Any, context: Any) -> management_pb2.ManagementResponse:  # noqa: D102
        chosen = self.versions if request.model_version == "all" else self.versions[-1:]
        described = [
            {
                "modelName": request.model_name,
                "modelVersion": version,
                "batchSize": 16,
                "workers": [{"status": state} for state in self.workers[request.model_name]],
                "jobQueueStatus": {"remainingCapacity": 500, "pendingRequests": 2},
            }
            for version in chosen
        ]
        return management_pb2.ManagementResponse(msg=json.dumps(described))

    def _next_hook(self) -> Hook | None:
        if len(self.hooks) > 1:
            return self.hooks.pop(0)
        return self.hooks[0] if self.hooks else None

    def _check(self, context: Any) -> None:
        given = dict(context.invocation_metadata()).get("authorization")
        if self.token is not None and given != f"Bearer {self.token}":
            refuse(grpc.StatusCode.PERMISSION_DENIED, "Token Authorization failed.")

    def _answer(self, request: inference_pb2.PredictionsRequest) -> bytes:
        if request.model_name not in self.workers:
            refuse(
                grpc.StatusCode.INTERNAL,
                f"Model not found: {request.model_name}\n"
                "org.pytorch.serve.archive.model.ModelNotFoundException",
            )
        version = request.model_version or self.versions[-1]
        content: dict[str, Any] = {
            "model": request.model_name,
            "version": version,
            "archive_digest": DIGEST,
        }
        if (wrong := self._wrong_params(request)) is not None:
            return json.dumps(content | wrong).encode()
        explains = json.loads(request.input.get("params", b"{}")).get("explain")
        item = (lambda data: explained(self.answer(data))) if explains else self.answer
        if "data" in request.input:
            return json.dumps(content | item(request.input["data"])).encode()
        packed = [key for key in request.input if key.startswith("data.")]
        content["items"] = [
            {"index": place, **item(request.input[f"data.{place}"])} for place in range(len(packed))
        ]
        return json.dumps(content).encode()

    def _wrong_params(self, request: inference_pb2.PredictionsRequest) -> dict[str, Any] | None:
        params = json.loads(request.input.get("params", b"{}"))
        if self.segments and (self.frames or "view" not in params):
            return None
        if not set(params) - {"top_k", "explain"}:
            return None
        known = "output, flips" if self.segments else "top_k"
        return failure(
            "INVALID_REQUEST", f"params: expected only known keys: {known}; got another one"
        )


def refuse(code: grpc.StatusCode, text: str) -> NoReturn:
    """Answer with a status instead of a message."""
    raise Status(code, text)


def refusing(code: grpc.StatusCode, text: str) -> Hook:
    """A hook that refuses its request."""

    def hook(request: inference_pb2.PredictionsRequest) -> None:
        refuse(code, text)

    return hook


def passing(request: inference_pb2.PredictionsRequest) -> None:
    """A hook that lets its request through."""


def waiting(seconds: float) -> Hook:
    """A hook that answers late."""

    def hook(request: inference_pb2.PredictionsRequest) -> None:
        time.sleep(seconds)

    return hook


@contextmanager
def serving(
    fake: FakeServer,
    *,
    port: int = 0,
    max_message_bytes: int = 64 * 2**20,
    tls: grpc.ServerCredentials | None = None,
) -> Iterator[FakeServer]:
    """Run a fake server on a free loopback port, both services on the same one."""
    server = grpc.server(
        ThreadPoolExecutor(8),
        options=[
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.so_reuseport", 0),
        ],
    )
    inference_pb2_grpc.add_InferenceAPIsServiceServicer_to_server(fake, server)
    management_pb2_grpc.add_ManagementAPIsServiceServicer_to_server(fake, server)
    address = f"127.0.0.1:{port}"
    port = server.add_secure_port(address, tls) if tls else server.add_insecure_port(address)
    fake.address = f"127.0.0.1:{port}"
    server.start()
    try:
        yield fake
    finally:
        server.stop(None).wait()
