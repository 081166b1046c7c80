"""What the tests of the gRPC faces share: a server on a free port, and models that need no engine.

async with served(gateway) as address, grpc.aio.insecure_channel(address) as channel: ...
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc.aio
import numpy as np
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from msgspec import structs

from handlers.request import parse
from medserve.gateway.core.calls import ModelInfo
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.guard import RequestGuard
from medserve.gateway.faces.oip import service as oip
from medserve.gateway.faces.torchserve import inference
from medserve.gateway.faces.v1 import service as typed
from medserve.imaging.geometry import Geometry
from medserve.results.segmentation import Segmentation
from medserve.spec import InputKind, Task
from medserve.spec.volumes import NormalisationSpec
from medserve.tasks.generation import GenerationResult, SampleImage
from medserve.tasks.result import Doubt, DoubtReason
from tests.gateway.fake_engine import Request, model

__all__ = [
    "DIGEST",
    "DOUBT",
    "IMAGES",
    "LABELS",
    "PREFACE",
    "SEGMENTATION",
    "classified",
    "compact",
    "drawn",
    "frame",
    "header",
    "paired",
    "reason",
    "segmented",
    "served",
    "two_images",
]

DIGEST = "sha256:" + 64 * "0"
LABELS = ("dark", "bright")
IMAGES = ("t1", "flair")  # of one case of `two_images`
_HEAD = {"version": "1.0", "archive_digest": DIGEST}
DOUBT = Doubt(DoubtReason.SIZE, "9 x 9 x 9 mm, in the training data 31 to 43 mm")
SEGMENTATION = Segmentation(
    np.indices((4, 3, 2)).sum(axis=0).astype(np.uint8) % 2,
    Geometry((4, 3, 2), np.array([[0, -2, 0, 5], [1, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1.0]])),
    LABELS,
)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame of HTTP/2 (RFC 9113, section 4.1)."""
    size = struct.pack(">I", len(payload))[1:]
    return size + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def header(stream: int, path: str) -> bytes:
    """The head of a gRPC call in HTTP/2, without compression (RFC 7541, section 6.2.2)."""
    listed = {":authority": "gateway", "content-type": "application/grpc", "te": "trailers"}
    block = b"\x83\x86" + b"\x04" + bytes([len(path)]) + path.encode()  # POST, http, the path
    for name, value in listed.items():
        block += b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
    return frame(1, 4, stream, block)


@asynccontextmanager
async def served(gateway: Gateway, idle_s: float = 30.0) -> AsyncIterator[str]:
    """All gRPC faces behind the intake, on a free port of loopback; gives its address."""
    server = grpc.aio.server(
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 * 2**20)]
    )
    intake: Any = RequestGuard(server, gateway, upload_timeout_s=30)  # stands for the server
    typed.register(gateway, intake, idle_s)
    oip.register(gateway, intake)
    inference.register(gateway, intake)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def classified(request: Request) -> bytes:
    """As a classifier answers a packed call: `bright…` is bright, `dark…` dark, others broken."""
    items = [
        {"index": place, **_item(request.inputs[f"data.{place}"])}
        for place in range(sum(key.startswith("data.") for key in request.inputs))
    ]
    return compact({"model": request.model, **_HEAD, "items": items})


def compact(content: Mapping[str, Any]) -> bytes:
    """JSON as the handlers write it."""
    return json.dumps(content, separators=(",", ":")).encode()


def _item(content: bytes) -> dict[str, Any]:
    for label in LABELS:
        if content.startswith(label.encode()):
            probabilities = {each: 0.75 if each == label else 0.25 for each in LABELS}
            return {
                "status": "ok",
                "label": label,
                "label_id": LABELS.index(label),
                "probability": 0.75,
                "probabilities": probabilities,
                "top": [{"label": label, "probability": 0.75}],
                "review": True,
                "novelty": 0.5,
                "unlike_training": False,
            }
    error = {"code": "INVALID_IMAGE", "message": "expected PNG, got text"}
    return {"status": "error", "error": error}


def segmented(request: Request) -> bytes:
    """As a model that segments answers: a fixed mask, and what `params` ask for."""
    params = json.loads(request.inputs.get("params", b"{}"))
    content: dict[str, Any] = {"model": request.model, **_HEAD, "status": "ok"}
    content |= SEGMENTATION.to_result().to_json()
    content |= {"review": True, "unlike_training": True, "doubts": [DOUBT.to_json()]}
    for name, member in (("overlay", "overlay_png"), ("uncertainty", "entropy_nifti")):
        if params.get(name):
            content[member] = base64.b64encode(name.encode()).decode()
    if params.get("format") == "dicom-seg":
        content["dicom_seg"] = base64.b64encode(b"dicom" * 2**20).decode()
    return compact(content)


def two_images(name: str = "tumour") -> ModelInfo:
    """A model of volumes that sees two images of one case."""
    info = model(name, Task.VOLUMES, labels=LABELS)
    assert info.spec.volume is not None
    rules = structs.replace(
        info.spec.volume, channels={each: NormalisationSpec() for each in IMAGES}
    )
    kinds = structs.replace(info.spec.input, channels=2, kinds=(InputKind.NIFTI, InputKind.NPY))
    return replace(info, spec=structs.replace(info.spec, input=kinds, volume=rules))


def paired(request: Request) -> bytes:
    """As that model answers: it reads its inputs as every handler does."""
    parse(request.inputs, two_images().spec.input, channels=IMAGES)
    return segmented(request)


def drawn(request: Request) -> Sequence[bytes]:
    """As a model that draws answers: progress of two steps, then the images."""
    params = json.loads(request.inputs.get("params", b"{}"))
    seed, wanted = params.get("seed", 7), params.get("format")
    preview = base64.b64encode(b"preview").decode()
    progress: list[dict[str, Any]] = [
        {"event": "progress", "step": step, "of": 2, "image": 0, "preview_png": preview}
        for step in (1, 2)
    ]
    images = tuple(
        SampleImage(
            png=b"image %d" % n, seed=seed + n, label="t1", steps=2, sampler="ddim", guidance=1.0,
            size=64, synthetic=True, dicom=b"dicom %d" % n if wanted == "dicom" else None,
        )
        for n in range(params.get("n", 1))
    )  # fmt: skip
    files = {wanted: wanted.encode()} if wanted in ("npz", "nifti") else {}
    answer = GenerationResult(images=images, withheld=0, **files).to_json()
    answer |= {"model": request.model, **_HEAD, "status": "ok"}
    return [compact(each) for each in (*progress, answer)]


def reason(status: status_pb2.Status) -> str:
    """Medserve's code in the details of a status."""
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "medserve"
    return str(info.reason)
