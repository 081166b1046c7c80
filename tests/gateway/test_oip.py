"""The Open Inference Protocol: tensors in and out, as any client of it sends and reads them.

A stock client talks to a real server in `test_stock_clients.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import struct
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import grpc.aio
import numpy as np
import pytest
from google.rpc import status_pb2  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve import __version__
from medserve.errors import InvalidRequestError, PayloadTooLargeError, ServerBusyError
from medserve.gateway.core.gateway import Caller, Gateway, Guards
from medserve.gateway.core.wire_format import refuse_many_fields
from medserve.gateway.faces.oip.tensors import bytes_elements
from medserve.imaging.codecs import nifti
from medserve.spec import Task
from medserve.wire import open_inference_pb2 as pb
from medserve.wire import open_inference_pb2_grpc as pb_grpc
from tests.gateway.faces import (
    DIGEST,
    LABELS,
    SEGMENTATION,
    classified,
    drawn,
    reason,
    segmented,
    served,
)
from tests.gateway.fake_engine import FakeEngine, Request, fake_gateway, model

pytestmark = pytest.mark.loopback

_MODELS = (
    model("kinds", labels=LABELS),
    model("hippocampus", Task.VOLUMES, labels=LABELS),
    model("sampler", Task.GENERATION, labels=()),
)
Stub = Any  # grpc's own stub has no type of its own for asyncio


class OneToken:
    """Knows a single token, for a single model."""

    def caller(self, token: str) -> Caller | None:
        """Whose it is."""
        return Caller("ward-7", frozenset({"kinds"})) if token == "secret" else None


def answers(request: Request) -> bytes | Sequence[bytes]:
    """As each of the three models answers."""
    kinds: dict[str, Callable[[Request], bytes | Sequence[bytes]]] = {
        "kinds": classified, "hippocampus": segmented, "sampler": drawn,
    }  # fmt: skip
    return kinds[request.model](request)


def talk(
    conversation: Callable[[Stub], Coroutine[Any, Any, Any]],
    engine: FakeEngine | None = None,
    **guards: Any,
) -> Any:
    """Run a client against the gateway on a real connection."""
    to: Gateway = fake_gateway(engine or FakeEngine(answers), *_MODELS, guards=Guards(**guards))

    async def run() -> Any:
        async with served(to) as address, grpc.aio.insecure_channel(address) as channel:
            return await conversation(pb_grpc.GRPCInferenceServiceStub(channel))

    return asyncio.run(run())


def infer(request: pb.ModelInferRequest, engine: FakeEngine | None = None) -> Any:
    return talk(lambda stub: stub.ModelInfer(request), engine)


def request(
    files: Sequence[bytes] = (b"dark",), name: str = "kinds", *, raw: bool = True, **parameters: Any
) -> pb.ModelInferRequest:
    """Files as one BYTES tensor, laid out by hand as the specification says."""
    message = pb.ModelInferRequest(model_name=name, id="mark")
    tensor = message.inputs.add(name="data", datatype="BYTES", shape=[len(files)])
    if raw:
        message.raw_input_contents.append(
            b"".join(struct.pack("<I", len(file)) + file for file in files)
        )
    else:
        tensor.contents.bytes_contents.extend(files)
    for key, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
        setattr(message.parameters[key], kind[type(value)], value)
    return message


def numbers(response: pb.ModelInferResponse, name: str) -> Any:
    """A raw output as numpy reads it."""
    kinds = {"INT64": "<i8", "FP32": "<f4", "FP64": "<f8", "UINT8": "u1", "BOOL": "?"}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.name == name:
            return np.frombuffer(raw, kinds[output.datatype]).reshape(output.shape)
    raise AssertionError(f"no output {name}")


def texts(response: pb.ModelInferResponse, name: str) -> list[bytes]:
    """The elements of a raw BYTES output."""
    place = [output.name for output in response.outputs].index(name)
    raw, found = response.raw_output_contents[place], []
    while raw:
        (size,) = struct.unpack_from("<I", raw)
        found.append(raw[4 : 4 + size])
        raw = raw[4 + size :]
    assert list(response.outputs[place].shape) == [len(found)]
    return found


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        call()
    metadata: Any = caught.value.trailing_metadata()
    return reason(status_pb2.Status.FromString(dict(metadata)["grpc-status-details-bin"]))


def test_one_row_per_file_in_order_and_a_broken_one_has_a_status_of_its_own() -> None:
    response = infer(request([b"bright", b"broken", b"dark"] * 20))
    assert texts(response, "label") == [b"bright", b"", b"dark"] * 20
    assert numbers(response, "class_id").tolist() == [1, -1, 0] * 20
    assert texts(response, "status") == [b"ok", b"INVALID_IMAGE", b"ok"] * 20
    assert texts(response, "error")[1] == b"expected PNG, got text"
    probabilities = numbers(response, "probabilities")
    assert probabilities.shape == (60, 2)
    assert probabilities[0].tolist() == [0.25, 0.75]
    assert math.isnan(probabilities[1, 0])
    assert numbers(response, "review").tolist() == [True] * 60
    assert (response.id, response.model_version) == ("mark", "1.0")
    assert response.parameters["archive_digest"].string_param == DIGEST


def test_who_sends_lists_reads_lists() -> None:
    response = infer(request([b"bright"], raw=False))
    by_name = {output.name: output for output in response.outputs}
    assert not response.raw_output_contents
    assert list(by_name["label"].contents.bytes_contents) == [b"bright"]
    assert list(by_name["class_id"].contents.int64_contents) == [1]
    assert list(by_name["probabilities"].contents.fp32_contents) == [0.25, 0.75]
    assert list(by_name["review"].contents.bool_contents) == [True]


def test_only_the_outputs_that_are_asked_for_come_in_that_order() -> None:
    wanted = request()
    wanted.outputs.add(name="status")
    wanted.outputs.add(name="label")
    response = infer(wanted)
    assert [output.name for output in response.outputs] == ["status", "label"]
    assert texts(response, "label") == [b"dark"]


def test_a_mask_comes_as_voxels_on_their_grid() -> None:
    engine = FakeEngine(answers)
    response = infer(request([b"volume"], "hippocampus", flips=False), engine)
    params = json.loads(engine.requests[0].inputs["params"])
    assert params == {"flips": False, "output": "json"}
    assert engine.requests[0].inputs["data"] == b"volume"
    assert (numbers(response, "mask") == SEGMENTATION.mask).all()
    assert (numbers(response, "affine") == SEGMENTATION.geometry.affine).all()
    assert texts(response, "labels") == [b"dark", b"bright"]
    assert numbers(response, "volumes_ml").tolist() == [SEGMENTATION.volumes_ml["bright"]]
    [file] = texts(response, "mask_nifti")
    assert (nifti.decode(file).array == SEGMENTATION.mask).all()


def test_a_file_that_an_option_asks_for_is_one_more_output() -> None:
    response = infer(request([b"volume"], "hippocampus", overlay=True))
    assert texts(response, "overlay_png") == [b"overlay"]
    wanted = request([b"volume"], "hippocampus", uncertainty=True)
    wanted.outputs.add(name="entropy_nifti")
    assert texts(infer(wanted), "entropy_nifti") == [b"uncertainty"]
    drawn_as = pb.ModelInferRequest(model_name="sampler")
    drawn_as.parameters["format"].string_param = "dicom"
    drawn_as.parameters["n"].int64_param = 2
    assert texts(infer(drawn_as), "dicom") == [b"dicom 0", b"dicom 1"]


def test_a_file_that_no_option_asks_for_is_refused_as_an_output() -> None:
    wanted = request([b"volume"], "hippocampus")
    wanted.outputs.add(name="overlay_png")
    assert refusal(lambda: infer(wanted)) == "INVALID_REQUEST"


def test_several_numbers_come_as_one_text() -> None:
    engine = FakeEngine(answers)
    infer(request([b"volume"], "hippocampus", spacing_mm="1,1,2.5"), engine)
    params = json.loads(engine.requests[0].inputs["params"])
    assert params == {"spacing_mm": [1, 1, 2.5], "output": "json"}
    for wrong in ("1,1", "1,1,x", "1,1,-2"):
        volume = request([b"volume"], "hippocampus", spacing_mm=wrong)
        assert refusal(lambda volume=volume: infer(volume)) == "INVALID_REQUEST"  # type: ignore[misc]


def test_images_are_drawn_by_parameters_alone() -> None:
    engine = FakeEngine(answers)
    wanted = pb.ModelInferRequest(model_name="sampler")
    wanted.parameters["n"].int64_param = 2
    wanted.parameters["params"].string_param = '{"seed": 5}'
    response = infer(wanted, engine)
    assert texts(response, "images") == [b"image 0", b"image 1"]
    assert numbers(response, "seeds").tolist() == [5, 6]


def test_every_described_output_comes_with_its_type_and_shape() -> None:
    async def conversation(stub: Stub) -> None:
        for name, files in (("kinds", [b"dark"]), ("hippocampus", [b"volume"]), ("sampler", [])):
            described = await stub.ModelMetadata(pb.ModelMetadataRequest(name=name))
            wanted = request(files, name) if files else pb.ModelInferRequest(model_name=name)
            response = await stub.ModelInfer(wanted)
            assert [each.name for each in described.outputs] == [o.name for o in response.outputs]
            for each, output in zip(described.outputs, response.outputs, strict=True):
                assert each.datatype == output.datatype
                assert len(each.shape) == len(output.shape), each.name
                for stated, found in zip(each.shape, output.shape, strict=True):
                    assert stated in (-1, found), each.name
            assert [each.name for each in described.inputs] == (["data"] if files else [])

    talk(conversation)


def test_the_server_and_its_models_describe_themselves() -> None:
    async def conversation(stub: Stub) -> None:
        assert (await stub.ServerLive(pb.ServerLiveRequest())).live
        assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
        server = await stub.ServerMetadata(pb.ServerMetadataRequest())
        assert (server.name, server.version) == ("medserve", __version__)
        assert (await stub.ModelReady(pb.ModelReadyRequest(name="kinds", version="1.0"))).ready
        index = await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))
        assert [(each.name, each.version, each.state) for each in index.models] == [
            (each.name, "1.0", "READY") for each in _MODELS
        ]
        described = await stub.ModelMetadata(pb.ModelMetadataRequest(name="kinds"))
        assert list(described.versions) == ["1.0"]
        assert described.platform

    talk(conversation)


def test_the_configuration_is_the_metadata_in_the_words_of_triton() -> None:
    async def conversation(stub: Stub) -> None:
        for each in _MODELS:
            described = await stub.ModelMetadata(pb.ModelMetadataRequest(name=each.name))
            config = (await stub.ModelConfig(pb.ModelConfigRequest(name=each.name))).config
            assert (config.name, config.max_batch_size) == (each.name, 0)
            for ours, theirs in (
                (described.inputs, config.input),
                (described.outputs, config.output),
            ):
                assert [(one.name, list(one.shape)) for one in ours] == [
                    (one.name, list(one.dims)) for one in theirs
                ]
                for one, other in zip(ours, theirs, strict=True):
                    kind = pb.DataType.Name(other.data_type).removeprefix("TYPE_")
                    assert {"STRING": "BYTES"}.get(kind, kind) == one.datatype

    talk(conversation)


def test_statistics_count_what_was_answered_and_what_failed() -> None:
    def once_busy(asked: Request) -> bytes | Sequence[bytes]:
        if asked.inputs["data"] == b"busy":
            raise ServerBusyError("full")
        return answers(asked)

    async def conversation(stub: Stub) -> None:
        for content in (b"volume", b"busy", b"volume"):
            with contextlib.suppress(grpc.aio.AioRpcError):
                await stub.ModelInfer(request([content], "hippocampus"))
        named = await stub.ModelStatistics(pb.ModelStatisticsRequest(name="hippocampus"))
        [found] = named.model_stats
        stats = found.inference_stats
        assert (found.inference_count, found.execution_count) == (2, 3)
        assert (stats.success.count, stats.fail.count) == (2, 1)
        assert stats.success.ns >= stats.compute_infer.ns > 0
        every = await stub.ModelStatistics(pb.ModelStatisticsRequest())
        assert [each.name for each in every.model_stats] == [each.name for each in _MODELS]

    talk(conversation, FakeEngine(once_busy))


def stream(requests: Iterable[pb.ModelInferRequest]) -> list[pb.ModelStreamInferResponse]:
    async def conversation(stub: Stub) -> list[pb.ModelStreamInferResponse]:
        return [each async for each in stub.ModelStreamInfer(iter(requests))]

    found: list[pb.ModelStreamInferResponse] = talk(conversation)
    return found


def test_a_stream_answers_each_request_and_a_failed_one_costs_no_other() -> None:
    responses = stream([request(), request(name="nobody"), request([b"bright"])])
    assert [each.error_message.partition(":")[0] for each in responses] == ["", "UNKNOWN_MODEL", ""]
    assert responses[1].infer_response.id == "mark"
    assert texts(responses[2].infer_response, "label") == [b"bright"]


def test_a_stream_shows_pictures_while_they_form() -> None:
    responses = [
        each.infer_response for each in stream([pb.ModelInferRequest(model_name="sampler")])
    ]
    assert [each.parameters["triton_final_response"].bool_param for each in responses] == [
        False, False, True,
    ]  # fmt: skip
    assert texts(responses[0], "preview_png") == [b"preview"]
    assert responses[1].parameters["step"].int64_param == 2
    assert texts(responses[2], "images") == [b"image 0"]


def changed(change: Callable[[pb.ModelInferRequest], object]) -> pb.ModelInferRequest:
    message = request()
    change(message)
    return message


@pytest.mark.parametrize(
    "message",
    [
        request([]),
        pb.ModelInferRequest(model_name="kinds"),
        request([b"a", b"b"], "hippocampus"),
        request(name="sampler"),
        request(sequence_id=7),
        request(priority=1),
        request(params="no json"),
        request(params="[1]"),
        changed(lambda m: setattr(m.inputs[0], "datatype", "UINT8")),
        changed(lambda m: setattr(m.inputs[0], "name", "image")),
        changed(lambda m: m.inputs[0].shape.append(2)),
        changed(lambda m: m.inputs[0].shape.__setitem__(0, -1)),
        changed(lambda m: m.inputs.add().CopyFrom(m.inputs[0])),
        changed(lambda m: m.raw_input_contents.append(b"")),
        changed(lambda m: m.raw_input_contents.__setitem__(0, b"\xff\xff\xff\xffdark")),
        changed(lambda m: m.raw_input_contents.__setitem__(0, b"\x01")),
        changed(lambda m: m.outputs.add(name="logits")),
        changed(
            lambda m: setattr(
                m.inputs[0].parameters["shared_memory_region"], "string_param", "region"
            )
        ),
        changed(
            lambda m: setattr(
                m.outputs.add(name="label").parameters["classification"], "int64_param", 2
            )
        ),
    ],
)
def test_a_malformed_request_is_refused_as_such(message: pb.ModelInferRequest) -> None:
    assert refusal(lambda: infer(message)) == "INVALID_REQUEST"


@settings(deadline=None)  # machines differ
@given(st.binary(max_size=64), st.integers(-2, 5))
def test_bytes_of_any_kind_are_elements_or_refused(raw: bytes, size: int) -> None:
    message = pb.ModelInferRequest(raw_input_contents=[raw])
    message.inputs.add(name="data", datatype="BYTES", shape=[size])
    try:
        found = bytes_elements(message, "data")
    except InvalidRequestError:
        return
    assert found is not None
    assert b"".join(struct.pack("<I", len(each)) + each for each in found) == raw


def test_unknown_models_and_errors_of_the_engine_have_their_codes() -> None:
    def busy(_: Request) -> bytes:
        raise ServerBusyError("full")

    assert refusal(lambda: infer(request(name="nobody"))) == "UNKNOWN_MODEL"
    volume = request([b"volume"], "hippocampus")
    assert refusal(lambda: infer(volume, FakeEngine(busy))) == "BUSY"
    for call in (
        lambda stub: stub.ModelMetadata(pb.ModelMetadataRequest(name="nobody")),
        lambda stub: stub.ModelReady(pb.ModelReadyRequest(name="kinds", version="9")),
    ):
        assert refusal(lambda call=call: talk(call)) == "UNKNOWN_MODEL"  # type: ignore[misc]


def test_the_time_that_a_client_names_is_kept() -> None:
    slow = FakeEngine(answers, pause_s=2)
    late = request([b"volume"], "hippocampus", timeout=100_000)  # microseconds
    assert refusal(lambda: infer(late, slow)) == "DEADLINE_EXCEEDED"


def test_a_token_opens_its_model_and_no_other() -> None:
    async def conversation(stub: Stub) -> None:
        metadata = (("authorization", "Bearer secret"),)
        response = await stub.ModelInfer(request(), metadata=metadata)
        assert texts(response, "label") == [b"dark"]
        index = await stub.RepositoryIndex(pb.RepositoryIndexRequest(), metadata=metadata)
        assert [each.name for each in index.models] == ["kinds"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(request(name="hippocampus"), metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(request())
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED

    talk(conversation, tokens=OneToken())


def crowded(kind: str) -> pb.ModelInferRequest:
    """A request of a few hundred kilobytes with very many parts."""
    message = request()
    match kind:
        case "raw elements":
            message = request([b""] * 20_000)
        case "elements":
            message = request([b""] * 20_000, raw=False)
        case "axes":
            message.inputs[0].shape.extend([1] * 20_000)
        case "tensors":
            for _ in range(20_000):
                message.inputs.add()
        case "parameters":
            for number in range(20_000):
                message.parameters[str(number)].bool_param = True
    return message


def test_millions_of_fields_are_refused_before_they_are_parsed() -> None:
    kind = pb.ModelInferRequest.DESCRIPTOR
    tensor = b"\x2a\x80\x80\x04" + b"\x1a\x00" * 2**15  # an input of 2^15 shapes
    for message in (b"\x2a\x00" * 10**6, tensor, b"\x0b" + b"\x10\x00" * 10**5 + b"\x0c"):
        with pytest.raises(PayloadTooLargeError, match="20000 fields"):
            refuse_many_fields(message, kind)
    refuse_many_fields(request([bytes(2**20)] * 8).SerializeToString(), kind)
    refuse_many_fields(request([bytes(50)] * 9000, raw=False).SerializeToString(), kind)
    refuse_many_fields(b"\xff" * 2**17, kind)  # malformed: the parser's to refuse


@pytest.mark.parametrize("kind", ["raw elements", "elements", "axes", "tensors", "parameters"])
def test_a_request_of_very_many_parts_is_refused_before_they_are_walked(kind: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        infer(crowded(kind))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "few tensors" in (caught.value.details() or "")
