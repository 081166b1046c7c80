"""Both clients and models that make images, against a gateway whose engine answers as they do."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from medserve.client import (
    AsyncClient,
    Client,
    GenerationOptions,
    GenerationResult,
    Sample,
    SampleFormat,
    SampleProgress,
    SamplerKind,
)
from medserve.errors import (
    DeadlineError,
    InvalidRequestError,
    ServerBusyError,
    ServerFailedError,
)
from tests.client.drawing import painting, picture, progress, sample_answer
from tests.client.fake_gateway import DIGEST, WAITS, FakeGateway, serving

pytestmark = pytest.mark.loopback

PARTS = [progress(0, 1, picture(9)), progress(0, 2), sample_answer([5])]


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture
def server() -> Iterator[FakeGateway]:
    with serving(painting()) as running:
        yield running


@pytest.fixture
def client(server: FakeGateway) -> Iterator[Client]:
    with Client(server.address, timeout_s=20) as connected:
        yield connected


def test_progress_comes_while_images_form_and_all_images_at_the_end(
    server: FakeGateway, client: Client
) -> None:
    server.streams = [PARTS]
    first, second, last = client.sample("painter")
    assert first == SampleProgress(image=0, step=1, steps=2, preview_png=picture(9))
    assert second == SampleProgress(image=0, step=2, steps=2)
    assert isinstance(last, GenerationResult)
    [image] = last.images
    assert (image.seed, image.label, image.sampler) == (5, "left", "ddim")
    assert image.png == picture(5)
    assert last.withheld == 1
    sample = Sample.from_image(image, last.provenance)
    assert (sample.image == 5).all()
    assert sample.provenance == last.provenance
    assert last.provenance.archive_digest == DIGEST


def test_wishes_travel_as_params_and_what_is_not_wished_does_not(
    server: FakeGateway, client: Client
) -> None:
    server.streams = [PARTS, PARTS]
    list(client.sample("painter"))
    everything = GenerationOptions(
        count=3,
        label="left",
        seed=0,
        steps=7,
        sampler=SamplerKind.DDPM,
        size=16,
        guidance=0.0,
        format=SampleFormat.NPZ,
    )
    list(client.sample("painter", everything, version="2.0"))
    first, second = server.requests
    assert "params" not in first.inputs
    assert json.loads(second.inputs["params"]) == {
        "n": 3, "class": "left", "seed": 0, "steps": 7, "sampler": "ddpm", "size": 16,
        "guidance": 0.0, "format": "npz",
    }  # fmt: skip
    assert second.version == "2.0"
    assert first.stream
    assert second.stream
    assert "data" not in first.inputs


def test_images_have_the_time_of_the_client_and_not_that_of_the_model(server: FakeGateway) -> None:
    server.streams = [PARTS, PARTS]
    for timeout_s in (20, 320):  # the model's are 360
        with Client(server.address, timeout_s=timeout_s) as client:
            list(client.sample("painter"))
    first, second = (request.deadline for request in server.requests)
    assert first is not None
    assert second == pytest.approx(first + 300, abs=60)  # and what passed between the two


def test_files_that_were_asked_for_come_as_bytes(server: FakeGateway, client: Client) -> None:
    server.answers = [sample_answer([5], form) for form in ("npz", "nifti", "dicom")]
    npz, nifti, dicom = (client.sample_all("painter") for _ in range(3))
    assert (npz.npz, npz.nifti, npz.images[0].dicom) == (b"npz", None, None)
    assert (nifti.npz, nifti.nifti, nifti.images[0].dicom) == (None, b"nifti", None)
    assert (dicom.npz, dicom.nifti, dicom.images[0].dicom) == (None, None, b"dicom")
    assert not server.requests[0].stream


def test_an_error_at_the_end_of_a_stream_is_raised_as_what_it_is(
    server: FakeGateway, client: Client
) -> None:
    error = {"code": "DEADLINE_EXCEEDED", "message": "stopped between two steps"}
    last = json.dumps({"status": "error", "error": error}).encode()
    server.streams = [[progress(0, 1), last]]
    seen: list[object] = []
    with pytest.raises(DeadlineError, match="between two steps"):
        seen.extend(client.sample("painter"))
    assert len(server.requests) == 1


def test_a_refusal_by_status_is_raised_without_a_second_attempt(
    server: FakeGateway, client: Client
) -> None:
    refusal = "params: n: expected a whole number from 1 to 64, got more"
    server.streams = [[InvalidRequestError(refusal)]]
    with pytest.raises(InvalidRequestError, match="1 to 64"):
        list(client.sample("painter", GenerationOptions(count=10_000)))
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again_unless_images_have_begun_to_form(
    server: FakeGateway, client: Client, pauses: list[float]
) -> None:
    busy = ServerBusyError("the model's queue is full")
    server.streams = [[busy], PARTS]
    assert len(list(client.sample("painter"))) == 3
    server.streams = [[progress(0, 1), busy]]
    with pytest.raises(ServerBusyError):
        list(client.sample("painter"))
    assert len(server.requests) == 3


def test_a_stream_that_ends_without_images_is_an_error(server: FakeGateway, client: Client) -> None:
    server.streams = [[progress(0, 1)]]
    with pytest.raises(ServerFailedError, match="images at the end of the stream"):
        list(client.sample("painter"))


@pytest.mark.parametrize(
    "last",
    [
        b"\x89PNG",
        b"[]",
        b'{"event": "progress", "image": 0}',
        b'{"label": "Hand"}',
        sample_answer([5]).replace(b'"seed"', b'"sow"'),
        sample_answer([5]).replace(_text(picture(5)).encode(), b"%%%"),
    ],
)
def test_an_answer_that_holds_no_images_is_a_clear_error(
    server: FakeGateway, client: Client, last: bytes
) -> None:
    server.streams = [[last]]
    with pytest.raises(ServerFailedError, match="expected"):
        list(client.sample("painter"))


def test_an_image_that_is_no_picture_is_a_clear_error(server: FakeGateway, client: Client) -> None:
    spoilt = sample_answer([5]).replace(_text(picture(5)).encode(), _text(b"no picture").encode())
    server.answers = [spoilt]
    drawn = client.sample_all("painter")
    with pytest.raises(ServerFailedError, match="expected"):
        Sample.from_image(drawn.images[0], drawn.provenance)


def test_closing_the_generator_cancels_the_call(server: FakeGateway, client: Client) -> None:
    server.streams = [[progress(0, 1), WAITS]]
    drawing = client.sample("painter")
    assert isinstance(next(drawing), SampleProgress)
    drawing.close()
    assert server.cancelled.wait(20)


def test_the_client_for_asyncio_draws_the_same(server: FakeGateway) -> None:
    server.streams = [PARTS, [progress(0, 1), WAITS]]
    server.answers = [sample_answer([1, 2])]

    async def scenario() -> tuple[list[Any], GenerationResult]:
        async with AsyncClient(server.address, timeout_s=20) as client:
            parts = [part async for part in client.sample("painter")]
            drawing = client.sample("painter")
            await anext(drawing)
            await drawing.aclose()
            return parts, await client.sample_all("painter", GenerationOptions(count=2))

    parts, drawn = asyncio.run(scenario())
    assert [type(part) for part in parts] == [SampleProgress, SampleProgress, GenerationResult]
    assert [image.seed for image in drawn.images] == [1, 2]
    assert server.cancelled.wait(20)
