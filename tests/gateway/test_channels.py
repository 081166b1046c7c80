"""Several images of one case: every face names them, takes them and refuses what is missing.

The model behind the faces sees `t1` and `flair`, and reads its inputs as every handler does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grpc
import httpx
import pytest
from fastapi import FastAPI

from handlers.request import parse
from medserve.errors import InvalidImageError
from medserve.gateway.faces.rest import app as rest
from medserve.wire import inference_pb2, inference_pb2_grpc
from medserve.wire import open_inference_pb2 as oip
from medserve.wire import open_inference_pb2_grpc as oip_grpc
from medserve.wire.v1 import imaging_pb2 as pb
from medserve.wire.v1 import imaging_pb2_grpc as pb_grpc
from tests.gateway.faces import LABELS, SEGMENTATION, paired, segmented, served, two_images
from tests.gateway.fake_engine import FakeEngine, Request, fake_gateway, model

_CASE = {"data.t1": b"first", "data.flair": b"second"}
_BY_NUMBER = {"data.0": b"first", "data.1": b"second"}
Sent = Sequence[tuple[str, tuple[str, bytes]]]


def answers(request: Request) -> bytes:
    return paired(request) if request.model == "tumour" else segmented(request)


def engine() -> FakeEngine:
    return FakeEngine(answers)


def files(request: Request) -> dict[str, bytes]:
    return {key: content for key, content in request.inputs.items() if key.startswith("data")}


# ---- what every face leads to


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"data.t1": b"a"}, r"each of data\.t1, data\.flair .* got no data\.flair"),
        ({"data.flair": b"a"}, r"got no data\.t1"),
        ({"data.1": b"a"}, r"got no data\.0"),
        ({"data.0": b"a", "data.flair": b"b"}, r"got no data\.t1"),
        ({**_CASE, "data.t2": b"c"}, "got another one, too"),
        ({**_BY_NUMBER, "data.2": b"c"}, "got another one, too"),
    ],
)
def test_a_case_lacks_no_image_and_has_no_other(inputs: Mapping[str, bytes], told: str) -> None:
    with pytest.raises(InvalidImageError, match=told):
        parse(inputs, two_images().spec.input, channels=("t1", "flair"))


@pytest.mark.parametrize("names", [("t1", "flair"), ("1", "0"), ("0", "1"), ("1", "flair")])
def test_images_come_in_the_models_order_however_they_are_sent(names: tuple[str, str]) -> None:
    first, second = names
    backwards = {f"data.{second}": b"second", f"data.{first}": b"first"}
    limits = two_images().spec.input
    assert parse(backwards, limits, channels=names).payloads == (b"first", b"second")
    if set(names) != {"0", "1"}:
        assert parse(_BY_NUMBER, limits, channels=names).payloads == (b"first", b"second")


# ---- REST


def post(to: FakeEngine, sent: Sent, name: str = "tumour", path: str = "segment") -> httpx.Response:
    async def run() -> httpx.Response:
        app = FastAPI()
        gateway = fake_gateway(to, two_images(), model("organs", two_images().task, labels=LABELS))
        app.include_router(rest.router(gateway))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            if not sent:
                return await client.get(f"/v1/models/{name}")
            return await client.post(f"/v1/models/{name}/{path}", files=list(sent))

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("sent", "keys"),
    [
        ([("data.flair", ("b", b"second")), ("data.t1", ("a", b"first"))], _CASE),
        (
            [("files", ("a_0001.nii.gz", b"second")), ("files", ("a_0000.nii.gz", b"first"))],
            _BY_NUMBER,
        ),
        ([("file", ("whole.nii", b"all"))], {"data": b"all"}),
        ([("file", ("subject_0007.nii", b"all"))], {"data": b"all"}),
    ],
)
def test_a_form_has_a_file_for_each_image(sent: Sent, keys: Mapping[str, bytes]) -> None:
    to = engine()
    response = post(to, sent)
    assert response.status_code == 200, response.text
    assert [files(each) for each in to.requests] == [keys]


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ([("data.t1", ("a", b"first"))], "got no data.flair"),
        (
            [("data.t1", ("a", b"a")), ("data.t2", ("b", b"b"))],
            "data.flair; got a field named 'data.t2'",
        ),
        (
            [("data.t1", ("a", b"a")), ("data.t1", ("b", b"b"))],
            "once, got another one",
        ),
        ([("data.t1", ("a", b"a")), ("files", ("b_0001.nii", b"b"))], "once, got another one"),
        ([("files", ("a.nii", b"a")), ("files", ("b.nii", b"b"))], "got other names"),
        ([("files", ("a_0000.nii", b"a")), ("files", ("b_0001.nii", b"b"))], "got other names"),
        ([("files", ("a_0000.nii", b"a")), ("files", ("a_0002.nii", b"b"))], "got no _0001"),
        ([("files", (f"a_000{n}.nii", b"a")) for n in range(3)], "at most 2 files"),
        ([("data.t1", ("a", b"")), ("data.flair", ("b", b"b"))], "expected the bytes of a file"),
    ],
)
def test_a_form_with_other_files_is_refused_in_words(sent: Sent, told: str) -> None:
    to = engine()
    response = post(to, sent)
    assert response.status_code in (400, 413)
    assert told in response.json()["error"]["message"]
    assert to.finished == 0


def test_a_model_of_one_image_takes_one_file_as_before() -> None:
    to = engine()
    assert post(to, [("file", ("a_0000.nii", b"a"))], "organs").status_code == 200
    assert files(to.requests[0]) == {"data": b"a"}
    for sent in (
        [("data.t1", ("a", b"a"))],
        [("files", ("a_0000.nii", b"a")), ("files", ("a_0001.nii", b"b"))],
    ):
        assert post(to, sent, "organs").status_code in (400, 413)


def test_a_model_is_described_with_the_names_of_its_images() -> None:
    assert post(engine(), ()).json()["channels"] == ["t1", "flair"]
    assert post(engine(), (), "organs").json()["channels"] == []


# ---- gRPC


def call(to: FakeEngine, stub: Any, method: str, request: Any) -> Any:
    """Ask by the ordinary client, on a real connection."""
    organs = model("organs", two_images().task, labels=LABELS)
    gateway = fake_gateway(to, two_images(), organs)

    def client(address: str) -> Any:
        with grpc.insecure_channel(address) as channel:
            answer = getattr(stub(channel), method)(request)
            return list(answer) if isinstance(answer, Iterable) else answer

    async def run() -> Any:
        async with served(gateway) as address:
            return await asyncio.to_thread(client, address)

    return asyncio.run(run())


def typed(to: FakeEngine, parts: Iterable[pb.SegmentRequest], name: str = "tumour") -> Any:
    settings = pb.SegmentRequest(settings=pb.SegmentSettings(model_name=name))
    return call(to, pb_grpc.ImagingServiceStub, "Segment", iter([settings, *parts]))


def image(channel: str, *chunks: bytes) -> list[pb.SegmentRequest]:
    begin = pb.SegmentRequest(input=pb.SegmentInput(channel=channel))
    return [begin, *(pb.SegmentRequest(chunk=chunk) for chunk in chunks)]


@pytest.mark.loopback
def test_a_typed_call_begins_each_file_with_the_name_of_its_channel() -> None:
    to = engine()
    responses = typed(to, [*image("flair", b"sec", b"ond"), *image("t1", b"first")])
    assert files(to.requests[0]) == _CASE
    [result] = [each.result for each in responses if each.WhichOneof("part") == "result"]
    assert tuple(result.shape) == SEGMENTATION.mask.shape
    assert [each.progress.received_bytes for each in responses[:2]] == [0, 11]

    typed(to, [pb.SegmentRequest(chunk=b"all")])
    assert files(to.requests[1]) == {"data": b"all"}


@pytest.mark.loopback
@pytest.mark.parametrize(
    ("parts", "name", "told"),
    [
        (image("t1", b"a"), "tumour", r"got no data\.flair"),
        ([*image("t1", b"a"), *image("t2", b"b")], "tumour", "each of t1, flair once"),
        ([*image("t1", b"a"), *image("t1", b"b")], "tumour", "each of t1, flair once"),
        ([*image("t1"), *image("flair", b"b")], "tumour", "expected a file in chunks"),
        (image("t1", b"a"), "organs", "expected no channel"),
    ],
)
def test_a_typed_call_with_other_files_is_refused_in_words(
    parts: list[pb.SegmentRequest], name: str, told: str
) -> None:
    to = engine()
    with pytest.raises(grpc.RpcError, match=told):
        typed(to, parts, name)
    assert to.finished == 0


@pytest.mark.loopback
def test_the_list_of_models_names_the_images() -> None:
    listed = call(engine(), pb_grpc.ImagingServiceStub, "ListModels", pb.ListModelsRequest()).models
    assert {each.name: list(each.channels) for each in listed} == {
        "organs": [],
        "tumour": ["t1", "flair"],
    }


def tensors(given: Mapping[str, bytes], name: str = "tumour") -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=name)
    for key, content in given.items():
        tensor = request.inputs.add(name=key, datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(content)
    return request


def infer(to: FakeEngine, given: Mapping[str, bytes], name: str = "tumour") -> Any:
    return call(to, oip_grpc.GRPCInferenceServiceStub, "ModelInfer", tensors(given, name))


@pytest.mark.loopback
@pytest.mark.parametrize("given", [_CASE, {"data": b"all"}])
def test_the_open_protocol_has_a_tensor_for_each_image(given: Mapping[str, bytes]) -> None:
    to = engine()
    assert "mask" in {each.name for each in infer(to, given).outputs}
    assert files(to.requests[0]) == given


@pytest.mark.loopback
@pytest.mark.parametrize(
    ("given", "name", "told"),
    [
        ({"data.t1": b"a"}, "tumour", r"the input data\.flair, got none"),
        ({**_CASE, "data.t2": b"c"}, "tumour", r"data\.flair.*data\.t1.* of tumour"),
        ({**_CASE, "data": b"c"}, "tumour", r"data\.flair.*data\.t1.* of tumour"),
        (_CASE, "organs", r"\['data'\] of organs"),
    ],
)
def test_the_open_protocol_refuses_other_tensors_by_name(
    given: Mapping[str, bytes], name: str, told: str
) -> None:
    to = engine()
    with pytest.raises(grpc.RpcError, match=told):
        infer(to, given, name)
    assert to.finished == 0


@pytest.mark.loopback
def test_the_metadata_of_the_open_protocol_names_the_images() -> None:
    request = oip.ModelMetadataRequest(name="tumour")
    found = call(engine(), oip_grpc.GRPCInferenceServiceStub, "ModelMetadata", request)
    assert [(each.name, each.datatype, list(each.shape)) for each in found.inputs] == [
        ("data.t1", "BYTES", [1]),
        ("data.flair", "BYTES", [1]),
    ]


@pytest.mark.loopback
@pytest.mark.parametrize("given", [_CASE, _BY_NUMBER, {"data": b"all"}])
def test_torchserves_contract_carries_them_as_they_are(given: Mapping[str, bytes]) -> None:
    to = engine()
    request = inference_pb2.PredictionsRequest(
        model_name="tumour", input={**given, "params": json.dumps({"output": "json"}).encode()}
    )
    call(to, inference_pb2_grpc.InferenceAPIsServiceStub, "Predictions", request)
    assert files(to.requests[0]) == given
