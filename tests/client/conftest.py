from __future__ import annotations

from collections.abc import Iterator

import pytest

from medserve.client import Client
from tests.client.fake_server import FakeServer, serving


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with serving(FakeServer()) as server:
        yield server


@pytest.fixture
def client(fake: FakeServer) -> Iterator[Client]:
    with Client(fake.address, management_address=fake.address, timeout_s=10) as client:
        yield client
