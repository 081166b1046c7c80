from __future__ import annotations

from collections.abc import Iterator

import pytest

from medserve.client import Client
from tests.client.fake_gateway import FakeGateway, serving


@pytest.fixture
def fake() -> Iterator[FakeGateway]:
    with serving(FakeGateway()) as gateway:
        yield gateway


@pytest.fixture
def client(fake: FakeGateway) -> Iterator[Client]:
    with Client(fake.address, timeout_s=10) as client:
        yield client
