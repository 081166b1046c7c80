"""The asyncio client does what the ordinary one does."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from medserve.client import AsyncClient, Client, Limits
from medserve.errors import (
    DeadlineError,
    InvalidImageError,
    MedserveError,
    PayloadTooLargeError,
    ServerBusyError,
    ServerFailedError,
    ServerUnreachableError,
    UnknownModelError,
)
from tests.client.fake_gateway import (
    LABELS,
    FakeGateway,
    held,
    passing,
    refusing,
    together,
    waiting,
)
from tests.gateway.fake_engine import Request

T = TypeVar("T")


def with_client(
    fake: FakeGateway,
    use: Callable[[AsyncClient], Awaitable[T]],
    *,
    timeout_s: float = 10,
    limits: Limits | None = None,
) -> T:
    async def run() -> T:
        async with AsyncClient(fake.address, timeout_s=timeout_s, limits=limits) as client:
            return await use(client)

    return asyncio.run(run())


def numbered(n: int) -> list[bytes]:
    return [f"{LABELS[place % 6]} {place}".encode() for place in range(n)]


def test_both_clients_have_the_same_methods_and_arguments() -> None:
    for name, method in inspect.getmembers(Client, inspect.isfunction):
        if not name.startswith("_"):
            other = getattr(AsyncClient, name)
            assert inspect.signature(other).parameters == inspect.signature(method).parameters, name
    assert inspect.signature(AsyncClient).parameters == inspect.signature(Client).parameters


def test_results_equal_those_of_the_ordinary_client(fake: FakeGateway, client: Client) -> None:
    images = [*numbered(100), b"broken", b"Hand?", b"CXR!"]
    ours = with_client(fake, lambda client: client.classify("mednist", images))
    theirs = client.classify("mednist", images)
    assert [str(r.outcome) for r in ours] == [str(r.outcome) for r in theirs]
    assert [r.provenance for r in ours] == [r.provenance for r in theirs]


def test_no_more_calls_than_allowed_are_in_flight(fake: FakeGateway) -> None:
    fake.hooks = [*together(3), waiting(0.02)]
    limits = Limits(items_per_call=2, calls_in_flight=3)
    with_client(fake, lambda client: client.classify("mednist", numbered(40)), limits=limits)
    assert fake.most_in_flight == 3


def test_progress_counts_images_up_to_all_of_them(fake: FakeGateway) -> None:
    seen: list[tuple[int, int]] = []
    with_client(
        fake,
        lambda client: client.classify(
            "mednist", numbered(40), progress=lambda done, n: seen.append((done, n))
        ),
    )
    assert seen[-1] == (40, 40)


def test_files_are_read_from_their_paths(fake: FakeGateway, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"Hand")
    answer = with_client(fake, lambda client: client.classify_one("mednist", tmp_path / "a.png"))
    assert answer.label == "Hand"
    [missing] = with_client(fake, lambda client: client.classify("mednist", [tmp_path / "b.png"]))
    assert missing.error is not None


def test_call_that_the_server_finds_too_large_is_sent_in_smaller_ones(fake: FakeGateway) -> None:
    def at_most_four_images(request: Request) -> None:
        if len([key for key in request.inputs if key.startswith("data.")]) > 4:
            raise PayloadTooLargeError("the request is larger than the engine accepts")

    fake.hooks = [at_most_four_images]
    results = with_client(fake, lambda client: client.classify("mednist", numbered(20)))
    assert [r.unwrap().label for r in results] == [LABELS[place % 6] for place in range(20)]


def test_safe_failure_is_tried_again(fake: FakeGateway) -> None:
    fake.hooks = [refusing(ServerBusyError("the queue is full")), passing]
    answer = with_client(fake, lambda client: client.classify_one("mednist", b"Hand"))
    assert answer.label == "Hand"
    assert len(fake.requests) == 2


@pytest.mark.parametrize(
    "expected", [UnknownModelError, ServerFailedError, ServerBusyError, InvalidImageError]
)
def test_status_becomes_its_error(expected: type[MedserveError], fake: FakeGateway) -> None:
    fake.hooks = [refusing(expected("expected PNG"))]
    with pytest.raises(expected, match=r"^expected PNG$"):
        with_client(
            fake, lambda client: client.predict("mednist", b"Hand"), limits=Limits(attempts=1)
        )


def test_late_answer_is_a_deadline_error(fake: FakeGateway, release: threading.Event) -> None:
    fake.hooks = [held(release)]
    with pytest.raises(DeadlineError):
        with_client(fake, lambda client: client.classify_one("mednist", b"Hand"), timeout_s=0.3)


def test_models_ping_and_wait_work(fake: FakeGateway) -> None:
    async def use(client: AsyncClient) -> tuple[str, list[str]]:
        await client.wait_ready(["mednist"], timeout_s=5)
        return await client.ping(), [each.name for each in await client.models()]

    assert with_client(fake, use) == ("Healthy", ["mednist"])


@pytest.mark.loopback
def test_dead_server_is_told_with_its_address() -> None:
    async def use() -> None:
        async with AsyncClient("127.0.0.1:9", limits=Limits(attempts=1)) as client:
            await client.ping()

    with pytest.raises(ServerUnreachableError, match=r"127\.0\.0\.1:9\b"):
        asyncio.run(use())


def test_stream_that_is_left_early_cancels_its_calls(fake: FakeGateway) -> None:
    async def use(client: AsyncClient) -> str:
        stream = client.classify_each("mednist", numbered(500))
        async for result in stream:
            await stream.aclose()
            return result.unwrap().label
        raise AssertionError("no result came")

    assert with_client(fake, use) == "AbdomenCT"
    assert len(fake.requests) < 10
