"""The typed calls: what a client of `medserve.v1` sends and gets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import Any

import grpc.aio
import pytest
from google.protobuf.json_format import MessageToDict
from google.rpc import status_pb2  # type: ignore[import-untyped]

from medserve.errors import (
    InvalidRequestError,
    MedserveError,
    PayloadTooLargeError,
    ServerBusyError,
    ServerFailedError,
)
from medserve.gateway.core.gateway import Caller, Gateway, Guards, Limits
from medserve.imaging.codecs import nifti
from medserve.spec import Task
from medserve.tasks import GenerationOptions, declared
from medserve.wire.v1 import imaging_pb2 as pb
from medserve.wire.v1 import imaging_pb2_grpc as pb_grpc
from tests.gateway.faces import (
    DIGEST,
    DOUBT,
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

_DETAILS = "grpc-status-details-bin"
_MODELS = (
    model("kinds", labels=LABELS),
    model("hippocampus", Task.VOLUMES, labels=LABELS),
    model("sampler", Task.GENERATION, labels=()),
)
Stub = Any  # serves both kinds of channel, and its type only one


class OneToken:
    """Knows a single token, for a single model."""

    def caller(self, token: str) -> Caller | None:
        """Whose it is."""
        return Caller("ward-7", frozenset({"kinds"})) if token == "secret" else None


def gateway(answers: Callable[[Request], Any] = classified, **guards: Any) -> Gateway:
    engine = FakeEngine(answers, known=tuple(each.name for each in _MODELS))
    return fake_gateway(engine, *_MODELS, guards=Guards(**guards))


def talk(
    to: Gateway, conversation: Callable[[Stub], Coroutine[Any, Any, Any]], idle_s: float = 30.0
) -> Any:
    """Run a client against the gateway on a real connection."""

    async def run() -> Any:
        async with served(to, idle_s) as address, grpc.aio.insecure_channel(address) as channel:
            return await conversation(pb_grpc.ImagingServiceStub(channel))

    return asyncio.run(run())


def ask(to: Gateway, method: str, requests: Iterable[Any], **call: Any) -> list[Any]:
    """Send all requests and read all responses by the ordinary client.

    The one for asyncio may report an error of its own where a call ends while it still sends.
    """

    async def run() -> list[Any]:
        async with served(to) as address:
            return await asyncio.to_thread(client, address)

    def client(address: str) -> list[Any]:
        with grpc.insecure_channel(address) as channel:
            stub: Stub = pb_grpc.ImagingServiceStub(channel)
            return list(getattr(stub, method)(iter(requests), **call))

    return asyncio.run(run())


def classify(to: Gateway, requests: Iterable[pb.ClassifyRequest], **call: Any) -> Any:
    return ask(to, "Classify", requests, **call)


def images(contents: Iterable[bytes], name: str = "kinds") -> Iterable[pb.ClassifyRequest]:
    yield pb.ClassifyRequest(settings=pb.ClassifySettings(model_name=name))
    for number, content in enumerate(contents):
        yield pb.ClassifyRequest(image=pb.ImageFile(id=f"image {number}", content=content))


def segment(
    to: Gateway, settings: pb.SegmentSettings, content: Sequence[bytes] = (b"volume",)
) -> list[pb.SegmentResponse]:
    requests = [pb.SegmentRequest(settings=settings)]
    requests += [pb.SegmentRequest(chunk=chunk) for chunk in content]

    return ask(to, "Segment", requests)


def file(responses: Sequence[pb.SegmentResponse], role: pb.FileRole.ValueType) -> bytes:
    chunks = [each.chunk for each in responses if each.WhichOneof("part") == "chunk"]
    return b"".join(chunk.content for chunk in chunks if chunk.role == role)


def status_of(error: Any) -> status_pb2.Status:
    return status_pb2.Status.FromString(dict(error.trailing_metadata())[_DETAILS])


def test_each_image_gets_its_own_answer_and_a_broken_one_costs_no_other() -> None:
    responses = classify(gateway(), images([b"bright", b"broken", b"dark"]))
    by_index = {each.index: each for each in responses}
    assert sorted(by_index) == [0, 1, 2]
    assert [by_index[n].id for n in range(3)] == ["image 0", "image 1", "image 2"]
    assert by_index[0].classification.label == "bright"
    assert by_index[2].classification.label == "dark"
    assert by_index[0].provenance.archive_digest == DIGEST
    assert reason(by_index[1].error) == "INVALID_IMAGE"
    assert by_index[1].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


def test_a_classification_carries_every_probability_in_the_order_of_the_labels() -> None:
    [response] = classify(gateway(), images([b"dark"]))
    assert MessageToDict(response.classification, preserving_proto_field_name=True) == {
        "label": "dark",
        "probability": 0.75,
        "probabilities": [
            {"label": "dark", "probability": 0.75},
            {"label": "bright", "probability": 0.25},
        ],
        "review": True,
        "novelty": 0.5,
    }


def test_many_images_travel_in_few_calls_of_the_engine() -> None:
    engine = FakeEngine(classified, known=("kinds",))
    responses = classify(fake_gateway(engine, _MODELS[0]), images([b"dark"] * 300))
    assert sorted(each.index for each in responses) == list(range(300))
    assert len(engine.requests) < 30


def test_a_client_that_waits_for_each_answer_gets_it() -> None:
    async def conversation(stub: Stub) -> list[str]:
        call = stub.Classify()
        found = []
        for request in images([b"dark", b"bright", b"dark"]):
            await call.write(request)
            if request.WhichOneof("part") == "image":
                found.append((await call.read()).classification.label)
        await call.done_writing()
        return found

    assert talk(gateway(), conversation) == ["dark", "bright", "dark"]


def test_a_stream_that_sends_faster_than_the_model_answers_is_held_back() -> None:
    engine = FakeEngine(classified, pause_s=0.3, known=("kinds",))
    sent = 0

    async def slowly_counted() -> AsyncIterator[pb.ClassifyRequest]:
        nonlocal sent
        for request in images([b"dark" + bytes(2**20)] * 100):
            yield request
            sent += 1

    async def conversation(stub: Stub) -> int:
        call = stub.Classify(slowly_counted())
        await call.read()  # the first answer: by then a client without limits had sent all
        held = sent
        call.cancel()
        return held

    to = fake_gateway(engine, _MODELS[0])
    assert talk(to, conversation) < 60
    assert to.budget.reserved == 0  # what a client that has gone held is free


def test_a_call_that_is_too_large_for_the_engine_is_asked_again_in_halves() -> None:
    def at_most_four(request: Request) -> bytes:
        if "data.4" in request.inputs:
            raise PayloadTooLargeError("expected at most 4 files")
        return classified(request)

    responses = classify(gateway(at_most_four), images([b"dark"] * 20))
    assert {each.classification.label for each in responses} == {"dark"}
    assert len(responses) == 20


def test_a_busy_engine_is_asked_again() -> None:
    refusals = iter([ServerBusyError("full"), ServerBusyError("full")])

    def busy_at_first(request: Request) -> bytes:
        if (error := next(refusals, None)) is not None:
            raise error
        return classified(request)

    [response] = classify(gateway(busy_at_first), images([b"dark"]))
    assert response.classification.label == "dark"


def test_a_failed_call_is_the_error_of_each_of_its_images() -> None:
    def failing(request: Request) -> bytes:
        raise ServerFailedError("a bug")

    responses = classify(gateway(failing), images([b"dark"] * 3))
    assert [reason(each.error) for each in responses] == ["INTERNAL"] * 3


@pytest.mark.parametrize(
    ("requests", "code"),
    [
        ([], "INVALID_REQUEST"),
        ([pb.ClassifyRequest(image=pb.ImageFile(content=b"dark"))], "INVALID_REQUEST"),
        ([*images([b"dark"]), *images([])], "INVALID_REQUEST"),
        (images([], name="nobody"), "UNKNOWN_MODEL"),
        (images([], name="hippocampus"), "INVALID_REQUEST"),
        (
            [*images([]), pb.ClassifyRequest(image=pb.ImageFile(id=300 * "x"))],
            "INVALID_REQUEST",
        ),
    ],
    ids=["nothing", "no settings", "settings twice", "unknown", "no classifier", "long id"],
)
def test_a_stream_that_is_no_request_ends_with_its_reason(requests: Any, code: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        classify(gateway(), requests)
    status = status_of(caught.value)
    assert reason(status) == code
    assert status.code == caught.value.code().value[0]
    assert caught.value.details() == status.message
    assert status.message.startswith(f"{code}: ")


@pytest.mark.parametrize("error", MedserveError.__subclasses__(), ids=lambda error: error.code)
def test_every_error_ends_a_call_with_its_own_code(error: type[MedserveError]) -> None:
    def failing(request: Request) -> bytes:
        raise error("expected, got, do")

    with pytest.raises(grpc.RpcError) as caught:
        segment(gateway(failing), pb.SegmentSettings(model_name="hippocampus"))
    assert caught.value.code().name == error.grpc_status
    assert reason(status_of(caught.value)) == error.code


def test_a_bug_in_the_answer_is_no_retryable_status_and_quotes_nothing() -> None:
    def nonsense(request: Request) -> bytes:
        return b"Mr Smith"

    with pytest.raises(grpc.RpcError) as caught:
        segment(gateway(nonsense), pb.SegmentSettings(model_name="hippocampus"))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "Smith" not in (caught.value.details() or "")


def test_a_call_needs_a_token_where_tokens_are_in_use() -> None:
    guarded = gateway(tokens=OneToken())
    with pytest.raises(grpc.RpcError) as caught:
        classify(guarded, images([b"dark"]))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.RpcError) as caught:
        classify(guarded, images([], "sampler"), metadata=(("authorization", "Bearer secret"),))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    [response] = classify(
        guarded, images([b"dark"]), metadata=(("authorization", "Bearer secret"),)
    )
    assert response.classification.label == "dark"


def test_the_request_id_goes_to_the_engine_and_back() -> None:
    engine = FakeEngine(classified, known=("kinds",))
    given = "01234567-89ab-cdef-0123-456789abcdef"

    async def conversation(stub: Stub) -> Any:
        call = stub.Classify(images([b"dark"]), metadata=(("x-request-id", given),))
        [_] = [each async for each in call]
        return dict(await call.initial_metadata())

    answered = talk(fake_gateway(engine, _MODELS[0]), conversation)
    assert answered["x-request-id"] == given
    assert engine.requests[0].request_id == given


def test_a_silent_client_is_sent_away() -> None:
    async def conversation(stub: Stub) -> None:
        call = stub.Classify()
        await call.write(next(iter(images([]))))
        await call.read()

    with pytest.raises(grpc.RpcError) as caught:
        talk(gateway(), conversation, idle_s=0.2)
    assert reason(status_of(caught.value)) == "DEADLINE_EXCEEDED"


def test_a_volume_goes_up_in_chunks_and_its_mask_comes_down_in_chunks() -> None:
    engine = FakeEngine(segmented, known=("hippocampus",))
    volume = bytes(range(256)) * 24 * 2**10  # 6 MiB, more than one message takes by default
    chunks = [volume[place : place + 2**18] for place in range(0, len(volume), 2**18)]
    responses = segment(
        fake_gateway(engine, _MODELS[1]), pb.SegmentSettings(model_name="hippocampus"), chunks
    )
    assert engine.requests[0].inputs["data"] == volume
    kinds = [each.WhichOneof("part") for each in responses]
    assert kinds == ["progress", "progress", "result", "chunk"]
    assert responses[1].progress.stage == pb.SEGMENT_STAGE_RUNNING
    assert responses[1].progress.received_bytes == len(volume)
    mask = nifti.decode(file(responses, pb.FILE_ROLE_MASK))
    assert (mask.array == SEGMENTATION.mask).all()


def test_a_large_mask_comes_in_chunks_that_every_client_takes() -> None:
    settings = pb.SegmentSettings(model_name="hippocampus", mask_format=pb.MASK_FORMAT_DICOM_SEG)
    responses = segment(gateway(segmented), settings)
    assert file(responses, pb.FILE_ROLE_MASK) == b"dicom" * 2**20
    [mask] = responses[2].result.files
    assert (mask.media_type, mask.size_bytes) == ("application/dicom", 5 * 2**20)
    assert responses[2].result.measures
    chunks = [each.chunk for each in responses if each.WhichOneof("part") == "chunk"]
    assert [chunk.offset_bytes for chunk in chunks] == [
        sum(len(before.content) for before in chunks[:place]) for place in range(len(chunks))
    ]
    assert max(each.ByteSize() for each in responses) < 4 * 2**20


def test_the_result_says_where_the_mask_lies_and_how_much_each_label_takes() -> None:
    [result] = [
        each.result
        for each in segment(gateway(segmented), pb.SegmentSettings(model_name="hippocampus"))
        if each.WhichOneof("part") == "result"
    ]
    assert tuple(result.shape) == SEGMENTATION.geometry.shape
    assert list(result.affine) == SEGMENTATION.geometry.affine.ravel().tolist()
    assert list(result.spacing_mm) == list(SEGMENTATION.geometry.spacing_mm)
    [measure] = result.measures
    assert measure.label == "bright"
    assert measure.volume_ml == SEGMENTATION.volumes_ml["bright"]
    assert list(measure.box_stop) == list(SEGMENTATION.measures[0].box_stop or ())


def test_the_result_says_what_is_unlike_the_training_data() -> None:
    [result] = [
        each.result
        for each in segment(gateway(segmented), pb.SegmentSettings(model_name="hippocampus"))
        if each.WhichOneof("part") == "result"
    ]
    assert result.review
    assert result.unlike_training
    assert [(each.reason, each.message) for each in result.doubts] == [
        (DOUBT.reason, DOUBT.message)
    ]


def test_options_of_a_segmentation_reach_the_model_and_what_is_not_set_does_not() -> None:
    engine = FakeEngine(segmented, known=("hippocampus",))
    settings = pb.SegmentSettings(
        model_name="hippocampus", overlay=True, uncertainty=True, flips=False, channel=0,
        spacing_mm=[1, 1, 2.5],
    )  # fmt: skip
    responses = segment(fake_gateway(engine, _MODELS[1]), settings)
    assert json.loads(engine.requests[0].inputs["params"]) == {
        "output": "json",
        "overlay": True,
        "uncertainty": True,
        "flips": False,
        "channel": 0,
        "spacing_mm": [1, 1, 2.5],
    }
    assert file(responses, pb.FILE_ROLE_OVERLAY) == b"overlay"
    assert file(responses, pb.FILE_ROLE_ENTROPY) == b"uncertainty"


@pytest.mark.parametrize(
    ("settings", "content", "code"),
    [
        (pb.SegmentSettings(content_bytes=3 * 2**20), (), "PAYLOAD_TOO_LARGE"),
        (pb.SegmentSettings(), (bytes(2**20),) * 3, "PAYLOAD_TOO_LARGE"),
        (pb.SegmentSettings(content_bytes=4), (b"more than announced",), "PAYLOAD_TOO_LARGE"),
        (pb.SegmentSettings(), (), "INVALID_REQUEST"),
        (pb.SegmentSettings(spacing_mm=[1.0]), (b"volume",), "INVALID_REQUEST"),
    ],
    ids=["announced", "arrived", "lied", "empty", "spacing"],
)
def test_a_file_that_cannot_be_segmented_is_refused_before_the_engine_sees_it(
    settings: pb.SegmentSettings, content: Sequence[bytes], code: str
) -> None:
    def never(request: Request) -> bytes:
        raise AssertionError("the engine was asked")

    settings.model_name = "hippocampus"
    with pytest.raises(grpc.RpcError) as caught:
        segment(gateway(never, limits=Limits(message_bytes=2 * 2**20)), settings, content)
    assert reason(status_of(caught.value)) == code


def test_memory_that_a_call_took_is_free_after_it_whatever_became_of_it() -> None:
    to = gateway(segmented)
    segment(to, pb.SegmentSettings(model_name="hippocampus"))
    with pytest.raises(grpc.RpcError):
        segment(to, pb.SegmentSettings(model_name="hippocampus"), [])
    assert to.budget.reserved == 0


def test_pictures_appear_while_they_form_and_the_images_follow() -> None:
    async def conversation(stub: Stub) -> list[pb.SampleResponse]:
        request = pb.SampleRequest(model_name="sampler", image_count=2, seed=41)
        return [each async for each in stub.Sample(request)]

    responses = talk(gateway(drawn), conversation)
    kinds = [each.WhichOneof("part") for each in responses]
    assert kinds == ["progress", "progress", "image", "image"]
    assert (responses[1].progress.step, responses[1].progress.steps) == (2, 2)
    assert responses[0].progress.preview_png == b"preview"
    assert [each.image.png for each in responses[2:]] == [b"image 0", b"image 1"]
    assert [each.image.seed for each in responses[2:]] == [41, 42]
    assert responses[2].image.details["class"] == "t1"
    assert responses[2].image.provenance.archive_digest == DIGEST


def test_a_sample_that_fails_half_way_ends_with_its_reason() -> None:
    def half(request: Request) -> Sequence[bytes]:
        return drawn(request)[:1]

    async def conversation(stub: Stub) -> None:
        async for _ in stub.Sample(pb.SampleRequest(model_name="sampler")):
            pass

    with pytest.raises(grpc.RpcError) as caught:
        talk(gateway(half), conversation)
    assert reason(status_of(caught.value)) == "INTERNAL"


def test_models_are_listed_with_their_cards_to_those_who_may_use_them() -> None:
    async def conversation(stub: Stub) -> Any:
        listed = await stub.ListModels(
            pb.ListModelsRequest(), metadata=(("authorization", "Bearer secret"),)
        )
        return listed.models

    [found] = talk(gateway(tokens=OneToken()), conversation)
    assert (found.name, found.version, found.default_version) == ("kinds", "1.0", True)
    assert (found.task, found.ready) == (pb.TASK_CLASSIFICATION, True)
    assert (list(found.labels), list(found.input_kinds)) == (list(LABELS), ["raster"])
    assert found.card_markdown.startswith("# kinds")
    assert found.metrics["accuracy"] == 1
    assert found.archive_digest == DIGEST


def test_invalid_parameters_concern_the_whole_stream() -> None:
    def refusing(request: Request) -> bytes:
        raise InvalidRequestError("params: unknown key")

    with pytest.raises(grpc.RpcError) as caught:
        classify(gateway(refusing), images([b"dark"] * 3))
    assert reason(status_of(caught.value)) == "INVALID_REQUEST"


@pytest.mark.parametrize(
    ("wanted", "role", "contents"),
    [
        ("npz", pb.FILE_ROLE_IMAGES_NPZ, {0: b"npz"}),
        ("nifti", pb.FILE_ROLE_IMAGES_NIFTI, {0: b"nifti"}),
        ("dicom", pb.FILE_ROLE_IMAGE_DICOM, {0: b"dicom 0", 1: b"dicom 1"}),
        ("", pb.FILE_ROLE_UNSPECIFIED, {}),
    ],
)
def test_files_that_the_format_asks_for_follow_the_images(
    wanted: str, role: pb.FileRole.ValueType, contents: dict[int, bytes]
) -> None:
    async def conversation(stub: Stub) -> list[pb.SampleResponse]:
        request = pb.SampleRequest(model_name="sampler", image_count=2, format=wanted)
        return [each async for each in stub.Sample(request)]

    responses = talk(gateway(drawn), conversation)
    kinds = [each.WhichOneof("part") for each in responses]
    assert kinds == ["progress"] * 2 + ["image"] * 2 + ["chunk"] * len(contents)
    chunks = [each.chunk for each in responses if each.WhichOneof("part") == "chunk"]
    assert {chunk.image_index: chunk.content for chunk in chunks} == contents
    assert all(chunk.role == role for chunk in chunks)


def test_a_classifier_lists_as_many_classes_as_it_is_asked_for() -> None:
    settings = pb.ClassifySettings(model_name="kinds", top_k=1)
    requests = [pb.ClassifyRequest(settings=settings), *list(images([b"dark"]))[1:]]
    [response] = classify(gateway(), requests)
    assert [(each.label, each.probability) for each in response.classification.top] == [
        ("dark", 0.75)
    ]


def test_a_model_lists_its_options_with_their_bounds() -> None:
    async def conversation(stub: Stub) -> Any:
        return (await stub.ListModels(pb.ListModelsRequest(model_name="sampler"))).models

    [found] = talk(gateway(), conversation)
    assert found.task == pb.TASK_GENERATION
    options = {option.name: option for option in found.options}
    assert set(options) == {option.key for option in declared(GenerationOptions)}
    guidance, wanted = options["guidance"], options["format"]
    assert (guidance.type, guidance.least, guidance.most) == (pb.OPTION_TYPE_FLOAT, 0, 8)
    assert list(wanted.choices) == ["png", "npz", "nifti", "dicom"]
    assert json.loads(wanted.default_json) == "png"
    assert guidance.default_json == ""
    assert guidance.help


def test_a_field_of_another_task_is_refused_by_the_name_of_its_option() -> None:
    with pytest.raises(grpc.RpcError) as caught:
        segment(gateway(segmented), pb.SegmentSettings(model_name="hippocampus", view="axial"))
    assert reason(status_of(caught.value)) == "INVALID_REQUEST"
    assert "view is no option of hippocampus" in (caught.value.details() or "")
