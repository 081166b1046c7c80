"""Heat maps through the gateway's REST and typed calls."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import grpc
import httpx
import pytest
from fastapi import FastAPI

from medserve.gateway.core.gateway import Gateway
from medserve.gateway.faces.rest import app as rest
from medserve.tasks.classification import EXPLAINED_PER_CALL
from medserve.wire.v1 import imaging_pb2 as pb
from medserve.wire.v1 import imaging_pb2_grpc as pb_grpc
from tests.gateway.faces import LABELS, classified, compact, served
from tests.gateway.fake_engine import FakeEngine, Request, fake_gateway, model

IMAGES = [b"bright 0", b"broken", *(b"dark %d" % n for n in range(2, 20))]


def explained(request: Request) -> bytes:
    """As a classifier answers, with a map where it was asked for; its bytes name the image."""
    asked = json.loads(request.inputs.get("params", b"{}")).get("explain", False)
    single = "data" in request.inputs
    inputs = {"data.0": request.inputs["data"]} if single else request.inputs
    content: dict[str, Any] = json.loads(classified(Request(request.model, "", inputs, 1)))
    for item in content["items"]:
        if asked and item["status"] == "ok":
            item["explanation"] = {
                "method": "occlusion",
                "label": item["label"],
                "without_warmest": 0.25,
                "without_coolest": 0.75,
                "full_colour": 1.5,
                "heatmap_png": base64.b64encode(inputs[f"data.{item['index']}"]).decode(),
            }
    return compact(content | content.pop("items")[0] if single else content)


def gateway() -> tuple[Gateway, FakeEngine]:
    engine = FakeEngine(explained)
    return fake_gateway(engine, model("kinds", labels=LABELS)), engine


def sizes(engine: FakeEngine) -> list[int]:
    """How many images each call carried."""
    return [len([key for key in each.inputs if "data." in key]) for each in engine.requests]


def ask(to: Gateway, path: str, **request: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        application = FastAPI()
        application.include_router(rest.router(to))
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post(path, **request)

    return asyncio.run(run())


def stream(to: Gateway, settings: pb.ClassifySettings) -> list[pb.ClassifyResponse]:
    async def run() -> list[pb.ClassifyResponse]:
        async with served(to) as address:
            return await asyncio.to_thread(client, address)

    def client(address: str) -> list[pb.ClassifyResponse]:
        requests = [pb.ClassifyRequest(settings=settings)]
        requests += [pb.ClassifyRequest(image=pb.ImageFile(content=each)) for each in IMAGES]
        with grpc.insecure_channel(address) as channel:
            stub: Any = pb_grpc.ImagingServiceStub(channel)
            return sorted(stub.Classify(iter(requests)), key=lambda each: each.index)

    return asyncio.run(run())


def test_one_file_over_rest_comes_back_with_its_map() -> None:
    to, _ = gateway()
    answer = ask(
        to, "/v1/models/kinds/classify?explain=true", content=b"bright",
        headers={"content-type": "application/octet-stream"},
    )  # fmt: skip
    assert base64.b64decode(answer.json()["explanation"]["heatmap_png"]) == b"bright"


def test_a_form_is_explained_in_calls_that_a_model_takes() -> None:
    to, engine = gateway()
    files = [("files", (f"{n}.png", content)) for n, content in enumerate(IMAGES)]
    answer = ask(to, "/v1/models/kinds/classify?explain=true&top_k=1", files=files)
    items = answer.json()["items"]
    for place, (content, item) in enumerate(zip(IMAGES, items, strict=True)):
        if place == 1:
            assert item["error"]["code"] == "INVALID_IMAGE"
        else:
            assert base64.b64decode(item["explanation"]["heatmap_png"]) == content
    assert sum(sizes(engine)) == len(IMAGES)
    assert max(sizes(engine)) <= EXPLAINED_PER_CALL
    assert json.loads(engine.requests[0].inputs["params"]) == {"top_k": 1, "explain": True}


def test_plain_files_travel_in_large_calls_without_maps() -> None:
    to, engine = gateway()
    files = [("files", (f"{n}.png", content)) for n, content in enumerate(IMAGES)]
    for query in ("", "?explain=false"):
        items = ask(to, f"/v1/models/kinds/classify{query}", files=files).json()["items"]
        assert not any("explanation" in item for item in items)
    assert max(sizes(engine)) > EXPLAINED_PER_CALL


def test_explain_is_a_flag_and_nothing_else() -> None:
    to, engine = gateway()
    answer = ask(
        to, "/v1/models/kinds/classify?explain=everything", content=b"bright",
        headers={"content-type": "application/octet-stream"},
    )  # fmt: skip
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "INVALID_REQUEST"
    assert not engine.requests


@pytest.mark.loopback
@pytest.mark.parametrize("explain", [True, False])
def test_the_typed_call_carries_the_map_beside_the_class(explain: bool) -> None:
    to, engine = gateway()
    responses = stream(to, pb.ClassifySettings(model_name="kinds", explain=explain))
    assert [each.WhichOneof("outcome") for each in responses[:3]] == [
        *("classification", "error", "classification")
    ]
    for content, response in zip(IMAGES, responses, strict=True):
        if response.WhichOneof("outcome") == "error":
            continue
        found = response.classification
        assert found.HasField("explanation") is explain
        if explain:
            assert found.explanation.heatmap_png == content
            assert found.explanation.label == found.label
            assert found.explanation.probability_without_warmest == 0.25
            assert found.explanation.probability_without_coolest == 0.75
            assert found.explanation.full_colour_nats == 1.5
    if explain:
        assert max(sizes(engine)) <= EXPLAINED_PER_CALL
