"""Packing, order, concurrency and results of the ordinary client."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import medserve.client
from medserve.client import Client, Limits
from medserve.errors import (
    ConfigError,
    InvalidImageError,
    InvalidRequestError,
    PayloadTooLargeError,
    ServerFailedError,
    UnknownModelError,
)
from tests.client.fake_gateway import (
    DIGEST,
    LABELS,
    FakeGateway,
    by_content,
    classification,
    failure,
    held,
    passing,
    refusing,
    together,
    waiting,
)
from tests.gateway.fake_engine import Request


def numbered(n: int) -> list[bytes]:
    return [f"{LABELS[place % 6]} {place}".encode() for place in range(n)]


def test_one_image_gives_its_classification(client: Client) -> None:
    answer = client.classify_one("mednist", b"Hand")
    assert (answer.label, answer.label_id, answer.probability) == ("Hand", 4, 0.98)


def test_result_names_the_archive_that_answered(client: Client) -> None:
    [result] = client.classify("mednist", [b"CXR"], version="1.0")
    provenance = result.provenance
    assert (provenance.model, provenance.version) == ("mednist", "1.0")
    assert provenance.archive_digest == DIGEST


def test_three_broken_files_cost_none_of_the_other_297(client: Client, fake: FakeGateway) -> None:
    images = numbered(300)
    for place in (0, 149, 299):
        images[place] = b"broken"
    results = client.classify("mednist", images)
    assert [place for place, result in enumerate(results) if result.error] == [0, 149, 299]
    assert all(isinstance(results[place].error, InvalidImageError) for place in (0, 149, 299))
    labels = [result.unwrap().label for result in results if result.result]
    assert labels == [LABELS[place % 6] for place in range(300) if place not in (0, 149, 299)]
    assert len(fake.requests) == 10  # 32 a call


def test_broken_image_raises_its_error_when_unwrapped(client: Client) -> None:
    [result] = client.classify("mednist", [b"broken"])
    with pytest.raises(InvalidImageError, match="expected PNG"):
        result.unwrap()


def test_order_is_kept_when_later_calls_end_first(
    client: Client, fake: FakeGateway, release: threading.Event
) -> None:
    def last(request: Request) -> None:
        release.set()

    fake.hooks = [held(release), passing, last]
    results = client.classify("mednist", numbered(90))
    assert len(fake.requests) == 3
    assert [r.unwrap().label for r in results] == [LABELS[place % 6] for place in range(90)]


def test_no_more_calls_than_allowed_are_in_flight(fake: FakeGateway) -> None:
    fake.hooks = [*together(3), waiting(0.02)]
    limits = Limits(items_per_call=2, calls_in_flight=3)
    with Client(fake.address, limits=limits) as client:
        client.classify("mednist", numbered(40))
    assert fake.most_in_flight == 3


def test_calls_stay_below_the_limit_of_bytes(fake: FakeGateway) -> None:
    images = [b"Hand" + bytes(400)] * 10
    with Client(fake.address, limits=Limits(bytes_per_call=1000)) as client:
        assert all(result.result for result in client.classify("mednist", images))
    assert [
        sum(key.startswith("data.") for key in request.inputs) for request in fake.requests
    ] == [2] * 5


def test_progress_counts_images_up_to_all_of_them(client: Client) -> None:
    seen: list[tuple[int, int]] = []
    client.classify("mednist", numbered(70), progress=lambda done, n: seen.append((done, n)))
    assert seen == [(done, 70) for done in range(1, 71)]


def test_each_result_comes_before_all_images_are_taken(client: Client) -> None:
    taken = 0

    def images() -> Iterator[bytes]:
        nonlocal taken
        for image in numbered(1000):
            taken += 1
            yield image

    stream = client.classify_each("mednist", images())
    assert next(stream).unwrap().label == "AbdomenCT"
    assert taken < 200
    stream.close()


def test_files_are_read_from_their_paths(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"Hand")
    good, missing = client.classify("mednist", [tmp_path / "a.png", tmp_path / "b.png"])
    assert good.unwrap().label == "Hand"
    with pytest.raises(InvalidRequestError, match="expected a readable file"):
        missing.unwrap()


def test_files_that_all_fail_to_open_are_never_sent(
    client: Client, fake: FakeGateway, tmp_path: Path
) -> None:
    results = client.classify("mednist", [tmp_path / "a.png", tmp_path / "b.png"])
    assert all(isinstance(result.error, InvalidRequestError) for result in results)
    assert not fake.requests


def test_too_large_file_is_refused_before_it_is_sent(fake: FakeGateway) -> None:
    with Client(fake.address, limits=Limits(message_bytes=100_000)) as client:
        small, large = client.classify("mednist", [b"Hand", b"Hand" + bytes(100_000)])
    assert small.unwrap().label == "Hand"
    assert isinstance(large.error, PayloadTooLargeError)
    assert [len(request.inputs["data.0"]) for request in fake.requests] == [4]


def test_call_that_the_server_finds_too_large_is_sent_in_smaller_ones(
    client: Client, fake: FakeGateway
) -> None:
    def at_most_four_images(request: Request) -> None:
        if len([key for key in request.inputs if key.startswith("data.")]) > 4:
            raise PayloadTooLargeError("the request is larger than the engine accepts")

    fake.hooks = [at_most_four_images]
    results = client.classify("mednist", numbered(20))
    assert [r.unwrap().label for r in results] == [LABELS[place % 6] for place in range(20)]


def test_request_carries_the_time_that_is_left(fake: FakeGateway) -> None:
    for timeout_s in (100, 1000):
        with Client(fake.address, timeout_s=timeout_s) as client:
            client.classify_one("mednist", b"Hand")
    first, second = (request.deadline for request in fake.requests)
    assert first is not None
    assert second == pytest.approx(first + 900, abs=60)  # and what passed between the two


def test_call_that_fails_costs_only_its_own_images(client: Client, fake: FakeGateway) -> None:
    fake.hooks = [passing, refusing(ServerFailedError("the model failed")), passing]
    results = client.classify("mednist", numbered(96))
    failed = [place for place, result in enumerate(results) if result.error]
    assert len(failed) == 32
    assert failed == list(range(failed[0], failed[0] + 32))
    assert all(isinstance(results[place].error, ServerFailedError) for place in failed)


def test_one_refused_call_among_answers_costs_no_other(fake: FakeGateway) -> None:
    def answer(payload: bytes) -> dict[str, Any]:
        return failure("INVALID_REQUEST", "no") if payload == b"no" else by_content(payload)

    fake.answer = answer
    images = [b"Hand", b"Hand", b"no", b"Hand", b"Hand", b"no", b"Hand"]
    one_by_one = Limits(items_per_call=1, calls_in_flight=1)
    with Client(fake.address, limits=one_by_one) as client:
        results = client.classify("mednist", images)
    assert [each.error is None for each in results] == [each == b"Hand" for each in images]


def test_unknown_model_is_told_once_for_all_images(client: Client) -> None:
    with pytest.raises(UnknownModelError, match="list of models"):
        client.classify("nosuch", numbered(3))


def test_error_of_the_whole_request_is_raised(client: Client, fake: FakeGateway) -> None:
    fake.hooks = [refusing(InvalidRequestError("unknown key 'x'"))]
    with pytest.raises(InvalidRequestError, match="unknown key"):
        client.classify("mednist", numbered(3))


def test_answer_that_leaves_an_image_out_is_a_server_failure(
    client: Client, fake: FakeGateway
) -> None:
    fake.answer = lambda payload: {"index": 0, **classification("Hand")}
    first, second = client.classify("mednist", [b"a", b"b"])
    assert first.unwrap().label == "Hand"
    assert isinstance(second.error, ServerFailedError)


def test_answer_of_another_task_is_a_server_failure(client: Client, fake: FakeGateway) -> None:
    fake.answer = lambda payload: {"status": "ok", "mask": "…"}
    [result] = client.classify("mednist", [b"a"])
    assert isinstance(result.error, ServerFailedError)


def test_raw_prediction_comes_as_the_model_wrote_it(client: Client, fake: FakeGateway) -> None:
    answer = client.predict("mednist", b"Hand", {"top_k": 2})
    assert b'"label": "Hand"' in answer
    assert fake.requests[0].inputs["params"] == b'{"top_k": 2}'
    assert fake.requests[0].inputs["data"] == b"Hand"


def test_raw_prediction_that_is_an_error_raises_it(client: Client) -> None:
    with pytest.raises(InvalidImageError):
        client.predict("mednist", b"broken")


@pytest.mark.parametrize(
    "answer", [b"\x89PNG", b"{not json", b"", b"[]", b'["error"]', b'{"error" no json']
)
def test_raw_prediction_that_is_no_json_object_is_left_alone(
    client: Client, fake: FakeGateway, answer: bytes
) -> None:
    fake.answers = [answer]
    assert client.predict("mednist", b"Hand") == answer


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1:", "127.0.0.1:99999", ":8001"])
def test_address_without_a_usable_port_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="host:port"):
        Client(address)


def test_limits_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="attempts"):
        Limits(attempts=0)


@pytest.mark.process
def test_import_loads_no_engine_and_no_codec() -> None:
    heavy = ["torch", "openvino", "onnxruntime", "PIL", "pydicom", "nibabel", "yaml"]
    heavy += ["rich", "typer"]
    check = f"import sys, medserve.client; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_public_names_are_these() -> None:
    assert medserve.client.__all__ == [
        "AsyncClient",
        "Case",
        "Classification",
        "ClassificationOptions",
        "Client",
        "Estimate",
        "Explanation",
        "FileResult",
        "FrameFormat",
        "FrameOptions",
        "FrameResult",
        "FrameSegmentation",
        "GenerationOptions",
        "GenerationResult",
        "Limits",
        "ModelStatus",
        "Provenance",
        "Regression",
        "Sample",
        "SampleFormat",
        "SampleImage",
        "SampleProgress",
        "SamplerKind",
        "Segmentation",
        "SegmentedFile",
        "Source",
        "TlsConfig",
        "View",
        "VolumeFormat",
        "VolumeOptions",
        "VolumeResult",
    ]
