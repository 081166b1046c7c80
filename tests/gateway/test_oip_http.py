"""The Open Inference Protocol over HTTP: JSON and binary tensors, and the form of its errors.

A stock client talks to a real server in `test_stock_clients.py`.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import math
import struct
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve.errors import InvalidRequestError, PayloadTooLargeError, ServerBusyError
from medserve.gateway.core.gateway import Gateway, Guards
from medserve.gateway.faces.oip import json_form
from medserve.gateway.faces.oip.json_form import HEADER, read_request
from medserve.gateway.faces.oip.tensors import bytes_elements
from medserve.gateway.faces.rest import app as rest
from medserve.spec import Task
from tests.gateway.faces import DIGEST, LABELS, SEGMENTATION, classified, drawn, segmented
from tests.gateway.fake_engine import FakeEngine, Request, fake_gateway, model
from tests.gateway.test_rest import OneToken

_MODELS = (
    model("kinds", labels=LABELS),
    model("hippocampus", Task.VOLUMES, labels=LABELS),
    model("sampler", Task.GENERATION, labels=()),
)
_INFER = "/v2/models/{}/infer"


def answers(request: Request) -> bytes | Sequence[bytes]:
    """As each of the three models answers."""
    kinds: dict[str, Any] = {"kinds": classified, "hippocampus": segmented, "sampler": drawn}
    answer: bytes | Sequence[bytes] = kinds[request.model](request)
    return answer


class Stage:
    """Stands for the gateway of the test that runs: building an application takes a second."""

    current: Gateway

    def __getattr__(self, name: str) -> Any:
        return getattr(self.current, name)


STAGE: Any = Stage()


@functools.cache
def application() -> FastAPI:
    app = FastAPI()
    app.include_router(rest.router(STAGE))
    return app


def ask(
    method: str,
    path: str,
    engine: FakeEngine | None = None,
    guards: Guards | None = None,
    **sent: Any,
) -> httpx.Response:
    STAGE.current = fake_gateway(engine or FakeEngine(answers), *_MODELS, guards=guards)

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(application())
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.request(method, path, **sent)

    return asyncio.run(run())


def in_json(files: Sequence[bytes], **parameters: Any) -> dict[str, Any]:
    """A request whose files are base64 inside JSON."""
    tensor = {
        "name": "data", "datatype": "BYTES", "shape": [len(files)],
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(file).decode() for file in files],
    }  # fmt: skip
    return {"id": "mark", "inputs": [tensor], "parameters": parameters}


def in_bytes(files: Sequence[bytes], **members: Any) -> dict[str, Any]:
    """A request whose files lie behind the JSON, laid out by hand as the extension says."""
    raw = b"".join(struct.pack("<I", len(file)) + file for file in files)
    tensor = {
        "name": "data", "datatype": "BYTES", "shape": [len(files)],
        "parameters": {"binary_data_size": len(raw)},
    }  # fmt: skip
    head = json.dumps({"inputs": [tensor], **members}).encode()
    return {"content": head + raw, "headers": {HEADER: str(len(head))}}


def outputs(response: httpx.Response) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in response.json()["outputs"]}


def error(response: httpx.Response) -> str:
    """The code in the protocol's form of an error: an object with one text."""
    content = response.json()
    assert set(content) == {"error"}
    code, colon, message = content["error"].partition(": ")
    assert colon
    assert message
    return str(code)


def test_files_inside_json_are_answered_in_json() -> None:
    response = ask("POST", _INFER.format("kinds"), json=in_json([b"bright", b"broken"], top_k=1))
    content = response.json()
    assert (content["id"], content["model_name"], content["model_version"]) == (
        "mark", "kinds", "1.0",
    )  # fmt: skip
    assert content["parameters"] == {"archive_digest": DIGEST}
    found = outputs(response)
    assert found["label"] == {
        "name": "label", "datatype": "BYTES", "shape": [2], "data": ["bright", ""],
    }  # fmt: skip
    assert found["class_id"]["data"] == [1, -1]
    assert found["probabilities"]["shape"] == [2, 2]
    assert found["probabilities"]["data"] == [0.25, 0.75, None, None]
    assert found["review"]["data"] == [True, True]
    assert found["status"]["data"] == ["ok", "INVALID_IMAGE"]


def test_files_behind_the_json_are_answered_as_they_are_asked_for() -> None:
    wanted = [{"name": "mask", "parameters": {"binary_data": True}}, {"name": "labels"}]
    response = ask(
        "POST", "/v2/models/hippocampus/versions/1.0/infer", **in_bytes([b"volume"], outputs=wanted)
    )
    size = int(response.headers[HEADER])
    mask, labels = json.loads(response.content[:size])["outputs"]
    assert mask["parameters"] == {"binary_data_size": len(response.content) - size}
    voxels = np.frombuffer(response.content[size:], np.uint8).reshape(mask["shape"])
    assert (voxels == SEGMENTATION.mask).all()
    assert labels["data"] == ["dark", "bright"]


def test_a_file_in_a_json_answer_is_base64_and_says_so() -> None:
    found = outputs(ask("POST", _INFER.format("sampler"), json={"parameters": {"n": 2, "seed": 5}}))
    assert found["images"]["parameters"] == {"content_type": "base64"}
    assert [base64.b64decode(each) for each in found["images"]["data"]] == [b"image 0", b"image 1"]
    assert found["seeds"]["data"] == [5, 6]


def test_one_flag_asks_for_every_output_as_bytes() -> None:
    flags = {"binary_data_output": True}
    response = ask("POST", _INFER.format("kinds"), json=in_json([b"dark"], **flags))
    size = int(response.headers[HEADER])
    described = json.loads(response.content[:size])["outputs"]
    sizes = [each["parameters"]["binary_data_size"] for each in described]
    assert sum(sizes) == len(response.content) - size
    assert not any("data" in each for each in described)


def test_options_reach_the_model_with_their_types() -> None:
    engine = FakeEngine(answers)
    volume = in_json([b"volume"], flips=False, spacing_mm="1,1,2.5")
    ask("POST", _INFER.format("hippocampus"), engine, json=volume)
    params = json.loads(engine.requests[0].inputs["params"])
    assert params == {"flips": False, "spacing_mm": [1, 1, 2.5], "output": "json"}


def test_models_are_described_counted_and_listed_with_numbers_as_numbers() -> None:
    config = ask("GET", "/v2/models/hippocampus/versions/1.0/config").json()
    assert config["max_batch_size"] == 0
    assert config["input"] == [{"name": "data", "data_type": "TYPE_STRING", "dims": [1]}]
    assert config["output"][0] == {"name": "mask", "data_type": "TYPE_UINT8", "dims": [-1, -1, -1]}
    for body in (b"", b"{}", b'{"ready": true}'):
        index = ask("POST", "/v2/repository/index", content=body).json()
        assert [(each["name"], each["state"]) for each in index] == [
            (each.name, "READY") for each in _MODELS
        ]
    [stats] = ask("GET", "/v2/models/kinds/stats").json()["model_stats"]
    assert int(stats["version"]) == 1  # perf_analyzer reads a number
    names = [each["name"] for each in ask("GET", "/v2/models/stats").json()["model_stats"]]
    assert names == [each.name for each in _MODELS]


def test_every_failure_has_the_form_that_the_clients_of_the_protocol_print() -> None:
    def busy(_: Request) -> bytes:
        raise ServerBusyError("full")

    failed = ask("POST", _INFER.format("hippocampus"), FakeEngine(busy), json=in_json([b"volume"]))
    assert (failed.status_code, error(failed)) == (503, "BUSY")
    assert failed.headers["retry-after"]
    guards = Guards(tokens=OneToken())
    refused = ask("POST", _INFER.format("kinds"), guards=guards, json=in_json([b"dark"]))
    assert (refused.status_code, error(refused)) == (401, "UNAUTHENTICATED")
    for method, path, status, code in (
        ("GET", "/v2/models/nobody", 404, "UNKNOWN_MODEL"),
        ("GET", "/v2/models/nobody/ready", 404, "UNKNOWN_MODEL"),
        ("GET", "/v2/models/nobody/config", 404, "UNKNOWN_MODEL"),
        ("GET", "/v2/models/nobody/stats", 404, "UNKNOWN_MODEL"),
        ("GET", "/v2/models/kinds/versions/9/config", 404, "UNKNOWN_MODEL"),
        ("POST", "/v2/models/nobody/infer", 404, "UNKNOWN_MODEL"),
        ("POST", "/v2/repository/models/kinds/load", 400, "INVALID_REQUEST"),
        ("POST", "/v2/repository/index", 400, "INVALID_REQUEST"),
        ("GET", "/v2/systemsharedmemory/status", 400, "INVALID_REQUEST"),
        ("GET", "/v2/logging", 400, "INVALID_REQUEST"),
    ):
        response = ask(method, path, content=b"[1]" if method == "POST" else None)
        assert (response.status_code, error(response)) == (status, code), path


def broken(**changes: Any) -> dict[str, Any]:
    body = in_json([b"dark"])
    body["inputs"][0] |= changes
    return {"json": body}


@pytest.mark.parametrize(
    "sent",
    [
        {"content": b"no json"},
        {"content": b"[]"},
        {"content": b"{}"},
        {"content": b'{"inputs": 1}'},
        {"content": b'{"inputs": [{"name": "data"}]}'},
        {"content": b"[" * 10_000},
        {"content": b"{}", "headers": {HEADER: "9"}},
        {"content": b"{}", "headers": {HEADER: "-1"}},
        {"content": b"{}", "headers": {HEADER: "two"}},
        {"content": b"{}rest", "headers": {HEADER: "2"}},
        {**in_bytes([b"dark"]), "headers": {}},
        {"json": in_json([b"dark"]), "headers": {"content-encoding": "gzip"}},
        {"json": in_json([b"dark"], binary_data_output="yes")},
        {"json": in_json([b"dark"], sequence_id=7)},
        {"json": in_json([b"dark"]) | {"outputs": [{"name": "logits"}]}},
        broken(data=[1]),
        broken(data=["*"]),
        broken(data=[["ZGFyaw=="], ["ZGFyaw=="]]),
        broken(datatype="FP32", data=[1.0]),
        broken(name="image"),
        broken(shape=[-1]),
        broken(parameters={"binary_data_size": 1}),
        broken(parameters={"binary_data_size": True}),
        broken(parameters={"shared_memory_region": "region"}),
    ],
)
def test_a_malformed_request_is_refused_as_such(sent: dict[str, Any]) -> None:
    response = ask("POST", _INFER.format("kinds"), **sent)
    assert (response.status_code, error(response)) == (400, "INVALID_REQUEST")


def test_a_refusal_repeats_nothing_that_a_caller_wrote() -> None:
    body = {"inputs": [{"name": "data", "datatype": "BYTES", "shape": ["Smith"], "Jones": 1}]}
    assert not {"Smith", "Jones"} & set(
        ask("POST", _INFER.format("kinds"), json=body).text.replace(";", " ").split()
    )


def test_very_many_members_are_refused_before_they_are_parsed() -> None:
    for piece in (b"[],", b"{},", b'"",'):
        with pytest.raises(PayloadTooLargeError, match="members of JSON"):
            read_request(b'{"inputs":[' + piece * 30_000 + b"]}", None, "kinds", "")


def test_a_mask_too_large_for_json_comes_as_bytes_or_as_a_file() -> None:

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_form, "_MOST_NUMBERS", 3)
        response = ask("POST", _INFER.format("hippocampus"), json=in_json([b"volume"]))
        assert (response.status_code, error(response)) == (413, "PAYLOAD_TOO_LARGE")
        wanted = in_json([b"volume"]) | {"outputs": [{"name": "mask_nifti"}]}
        assert ask("POST", _INFER.format("hippocampus"), json=wanted).status_code == 200


_FILES = st.lists(st.binary(max_size=40), max_size=5)


@settings(deadline=None)  # machines differ
@given(_FILES)
def test_both_forms_carry_the_same_files(files: list[bytes]) -> None:
    binary = in_bytes(files)
    inside = json.dumps(in_json(files)).encode()
    for body, header in ((binary["content"], binary["headers"][HEADER]), (inside, None)):
        assert bytes_elements(read_request(body, header, "kinds", "").message, "data") == files


@settings(deadline=None, max_examples=40)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["id", "inputs", "outputs", "parameters", "name", "shape", "data"])
                | st.text(max_size=5),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    ),
    st.binary(max_size=8),
    st.none() | st.text(max_size=4),
)
def test_a_body_of_any_kind_is_read_or_refused(content: Any, rest: bytes, header: Any) -> None:
    body = json.dumps(content).encode() + rest
    try:
        read_request(body, header, "kinds", "")
    except (InvalidRequestError, PayloadTooLargeError):
        return
    assert isinstance(content, dict)


def test_numbers_that_are_not_finite_are_null() -> None:
    found = outputs(ask("POST", _INFER.format("kinds"), json=in_json([b"broken"])))
    assert found["novelty"]["data"] == [None]
    assert not any(isinstance(x, float) and math.isnan(x) for x in found["probability"]["data"])
