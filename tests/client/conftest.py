from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from medserve.client import Client, connection
from tests.client.fake_gateway import FakeGateway, serving


@pytest.fixture
def fake() -> Iterator[FakeGateway]:
    with serving(FakeGateway()) as gateway:
        yield gateway


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Release the calls that a test holds, at its end if not before."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Note the seconds that a client waits before it tries again: they pass on its clock alone."""
    noted: list[float] = []

    async def sleep(seconds: float) -> None:
        noted.append(seconds)

    monkeypatch.setattr(connection, "asyncio", SimpleNamespace(sleep=sleep))
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + sum(noted))
    monkeypatch.setattr(connection, "time", clock)
    return noted


@pytest.fixture
def client(fake: FakeGateway) -> Iterator[Client]:
    with Client(fake.address, timeout_s=10) as client:
        yield client
