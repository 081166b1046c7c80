"""Questions whose answers are known, over every contract of the gateway.

A question returns what must be the same whenever it is asked: labels, digests of masks and images,
or the status with which a bad input is refused. Its known answer is the one of a quiet server; who
asks again under load compares.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from medserve.archive.read import ArchiveInfo, golden_input
from medserve.spec import Task
from medserve.wire import (
    inference_pb2,
    inference_pb2_grpc,
    open_inference_pb2,
    open_inference_pb2_grpc,
)
from medserve.wire.v1 import imaging_pb2, imaging_pb2_grpc

__all__ = ["Question", "Ways", "questions_for", "ways_to"]

_TIMEOUT_S = 240.0
_ROOMS = Path(__file__).parent.parent / "models"
_DRAWN = {"n": 1, "seed": 5, "steps": 8}
_PACKED = 12  # images of a call
_BROKEN = 7  # the place of a broken one among them
_BAD = (
    *(b"", b"no image", b"\x1f\x8b" + bytes(50), b"PK\x03\x04" + bytes(60)),
    *(bytes(128) + b"DICM" + bytes(200), b"\x89PNG\r\n\x1a\n" + bytes(40)),
    b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (2,)}" + bytes(50),
)
_REFUSED = ("INVALID_ARGUMENT", "error", "400", "413")


@dataclass(frozen=True)
class Ways:
    """The connections of one caller: open ones for gRPC, and the address for HTTP."""

    predict: inference_pb2_grpc.InferenceAPIsServiceStub
    typed: imaging_pb2_grpc.ImagingServiceStub
    oip: open_inference_pb2_grpc.GRPCInferenceServiceStub
    http_address: str

    def post(self, path: str, body: bytes, kind: str) -> tuple[int, bytes]:
        """Return status and body of an HTTP request, over a connection of its own."""
        over = http.client.HTTPConnection(self.http_address, timeout=_TIMEOUT_S)
        with contextlib.closing(over):
            over.request("POST", path, body, {"Content-Type": kind})
            answer = over.getresponse()
            return answer.status, answer.read()


@contextlib.contextmanager
def ways_to(address: str, http_address: str) -> Iterator[Ways]:
    """Connect one caller: `host:port` of gRPC and of HTTP."""
    options = [
        ("grpc.use_local_subchannel_pool", 1),  # a connection of its own
        ("grpc.max_receive_message_length", -1),
    ]
    with grpc.insecure_channel(address, options=options) as channel:
        yield Ways(
            inference_pb2_grpc.InferenceAPIsServiceStub(channel),
            imaging_pb2_grpc.ImagingServiceStub(channel),
            open_inference_pb2_grpc.GRPCInferenceServiceStub(channel),
            http_address,
        )


@dataclass(frozen=True)
class Question:
    """One call that can be repeated.

    Attributes:
        kind: Contract and manner, under which answers are counted.
        weight: How often it is asked, against others.
        ask: Sends it and returns what must not change.
        right: The known answer; None where only a quiet server tells it.
    """

    kind: str
    model: str
    weight: float
    ask: Callable[[Ways], object]
    right: object = None


def questions_for(archives: Sequence[ArchiveInfo]) -> list[Question]:
    """Return what is asked of each model, bad inputs and a model that nobody serves included."""
    asked: list[Question] = []
    for each in archives:
        task = each.spec.task
        if task is Task.GENERATION:
            asked += _of_drawings(each.name)
        else:
            contents = _contents(each)
            found = _of_images if task is Task.CLASSIFICATION else _of_cases
            asked += [*found(each.name, contents), *_of_bad_inputs(each.name, task)]
    return [*asked, _of_nobody()]


def _contents(archive: ArchiveInfo) -> Mapping[str, bytes]:
    """Return the inputs of a model by their label, or by any name where it has no examples."""
    folder = _ROOMS / archive.name / "examples"
    examples = {
        each.name.partition(".")[0]: each.read_bytes() for each in sorted(folder.glob("*.*"))
    }
    return examples or {"": golden_input(archive.path)}


def _of_images(model: str, contents: Mapping[str, bytes]) -> Iterator[Question]:
    for label, content in contents.items():
        right = label or None
        share = 1 / len(contents)
        for kind, weight, ask in (
            ("predictions", 20.0, _predict_label),
            ("stream predictions", 2.0, _stream_label),
            ("oip", 4.0, _oip_label),
            ("rest", 6.0, _rest_label),
        ):
            yield Question(kind, model, weight * share, _bound(ask, model, content), right)
    labels, images = [*contents], [*contents.values()]
    turns = [place % len(images) for place in range(_PACKED)]
    sent = [images[place] for place in turns]
    known = tuple(labels[place] for place in turns) if labels[0] else None
    for kind, weight, pack in (("typed", 4.0, _typed_labels), ("rest form", 3.0, _form_labels)):
        yield Question(kind, model, weight, _bound(pack, model, sent), known)
    sent = [*sent[:_BROKEN], b"broken", *sent[_BROKEN + 1 :]]
    known = known and (*known[:_BROKEN], "error", *known[_BROKEN + 1 :])
    yield Question("packed", model, 6.0, _bound(_packed_labels, model, sent), known)


def _of_cases(model: str, contents: Mapping[str, bytes]) -> Iterator[Question]:
    content = next(iter(contents.values()))
    for kind, weight, ask in (
        ("predictions", 1.0, _predict_digest),
        ("rest", 0.5, _rest_digest),
        ("typed", 0.5, _typed_digest),
    ):
        yield Question(f"{kind}, mask", model, weight, _bound(ask, model, content))


def _of_drawings(model: str) -> Iterator[Question]:
    yield Question("predictions, drawn", model, 0.6, lambda ways: _drawn(ways, model))
    yield Question("typed, drawn", model, 0.4, lambda ways: _typed_drawn(ways, model))


def _of_bad_inputs(model: str, task: Task) -> Iterator[Question]:
    verb = "classify" if task is Task.CLASSIFICATION else "segment"
    for content in _BAD:
        refused = _bound(_refusal, model, content)
        yield Question("predictions, bad", model, 2.0 / len(_BAD), refused)
        path = f"/v1/models/{model}/{verb}"
        yield Question("rest, bad", model, 1.0 / len(_BAD), _bound(_rest_refusal, path, content))


def _of_nobody() -> Question:
    def ask(ways: Ways) -> str:
        try:
            _prediction(ways, "nobody", {"data": b"image"})
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    return Question("predictions, unknown", "nobody", 1.0, ask, "NOT_FOUND")


def _bound(ask: Callable[[Ways, Any, Any], object], *given: Any) -> Callable[[Ways], object]:
    return lambda ways: ask(ways, *given)


# ---- TorchServe's contract


def _prediction(ways: Ways, model: str, inputs: Mapping[str, bytes]) -> bytes:
    request = inference_pb2.PredictionsRequest(model_name=model, input=inputs)
    return ways.predict.Predictions(request, timeout=_TIMEOUT_S).prediction


def _predict_label(ways: Ways, model: str, content: bytes) -> object:
    return _label(json.loads(_prediction(ways, model, {"data": content})))


def _stream_label(ways: Ways, model: str, content: bytes) -> object:
    request = inference_pb2.PredictionsRequest(model_name=model, input={"data": content})
    *_, last = ways.predict.StreamPredictions(request, timeout=_TIMEOUT_S)
    return _label(json.loads(last.prediction))


def _packed_labels(ways: Ways, model: str, contents: Sequence[bytes]) -> object:
    inputs = {f"data.{place}": content for place, content in enumerate(contents)}
    return tuple(map(_label, json.loads(_prediction(ways, model, inputs))["items"]))


def _predict_digest(ways: Ways, model: str, content: bytes) -> object:
    return _digest(_prediction(ways, model, {"data": content}))


def _drawn(ways: Ways, model: str) -> object:
    answer = json.loads(_prediction(ways, model, {"params": json.dumps(_DRAWN).encode()}))
    return [_digest(each["png"].encode()) for each in answer["images"]]


def _refusal(ways: Ways, model: str, content: bytes) -> str:
    try:
        found = str(json.loads(_prediction(ways, model, {"data": content}))["status"])
    except grpc.RpcError as error:
        found = error.code().name
    if found not in _REFUSED:
        raise AssertionError(f"{model}: expected a bad input to be refused, got {found}")
    return found


# ---- the other contracts


def _typed_labels(ways: Ways, model: str, contents: Sequence[bytes]) -> object:
    def sent() -> Iterator[imaging_pb2.ClassifyRequest]:
        settings = imaging_pb2.ClassifySettings(model_name=model)
        yield imaging_pb2.ClassifyRequest(settings=settings)
        for place, content in enumerate(contents):
            image = imaging_pb2.ImageFile(id=str(place), content=content)
            yield imaging_pb2.ClassifyRequest(image=image)

    answers = {
        int(each.id): each.classification.label
        for each in ways.typed.Classify(sent(), timeout=_TIMEOUT_S)
    }
    return tuple(answers[place] for place in range(len(contents)))


def _typed_digest(ways: Ways, model: str, content: bytes) -> object:
    settings = imaging_pb2.SegmentSettings(model_name=model, content_bytes=len(content))
    parts = [
        imaging_pb2.SegmentRequest(settings=settings),
        imaging_pb2.SegmentRequest(chunk=content),
    ]
    answers = ways.typed.Segment(iter(parts), timeout=_TIMEOUT_S)
    return _digest(b"".join(each.chunk.content for each in answers if each.HasField("chunk")))


def _typed_drawn(ways: Ways, model: str) -> object:
    request = imaging_pb2.SampleRequest(
        model_name=model, image_count=_DRAWN["n"], seed=_DRAWN["seed"], steps=_DRAWN["steps"]
    )
    parts = list(ways.typed.Sample(request, timeout=_TIMEOUT_S))
    return [_digest(each.image.png) for each in parts if each.HasField("image")]


def _oip_label(ways: Ways, model: str, content: bytes) -> object:
    request = open_inference_pb2.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name="data", datatype="BYTES", shape=[2])
    tensor.contents.bytes_contents.extend([content, b"broken"])
    answer = ways.oip.ModelInfer(request, timeout=_TIMEOUT_S)
    [labels] = [each.contents.bytes_contents for each in answer.outputs if each.name == "label"]
    if labels[1]:
        raise AssertionError(f"{model}: expected a bad input without a label, got {labels[1]!r}")
    return bytes(labels[0]).decode()


def _rest_label(ways: Ways, model: str, content: bytes) -> object:
    path = f"/v1/models/{model}/classify"
    return _label(json.loads(_ok(ways.post(path, content, "application/octet-stream"))))


def _form_labels(ways: Ways, model: str, contents: Sequence[bytes]) -> object:
    head = b'--X\r\nContent-Disposition: form-data; name="files"; filename="%d"\r\n\r\n'
    body = b"".join(head % n + content + b"\r\n" for n, content in enumerate(contents))
    path = f"/v1/models/{model}/classify"
    answer = _ok(ways.post(path, body + b"--X--\r\n", "multipart/form-data; boundary=X"))
    return tuple(map(_label, json.loads(answer)["items"]))


def _rest_digest(ways: Ways, model: str, content: bytes) -> object:
    path = f"/v1/models/{model}/segment"
    return _digest(_ok(ways.post(path, content, "application/octet-stream")))


def _rest_refusal(ways: Ways, path: str, content: bytes) -> str:
    status, answer = ways.post(path, content, "application/octet-stream")
    if str(status) not in _REFUSED:
        raise AssertionError(f"{path}: expected a bad input to be refused, got {status} {answer!r}")
    return str(status)


def _ok(answer: tuple[int, bytes]) -> bytes:
    status, body = answer
    if status != 200:
        raise AssertionError(f"expected status 200, got {status}: {body[:120]!r}")
    return body


def _label(item: Mapping[str, Any]) -> str:
    return str(item.get("label") or item["status"])


def _digest(content: bytes) -> str:
    if not content:
        raise AssertionError("expected an answer, got none")
    return hashlib.sha256(content).hexdigest()
