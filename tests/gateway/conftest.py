"""A gateway over two of the models of the shared engine (see `tests/servers.py`).

- `gateway`: a `GatewayServer` on free ports that serves `tiny` (batched, which of six tiles is the
  brightest) and `ticker` (streams; see `streaming_room`); `gateway.addresses.grpc` is where clients
  go;
- `edge`: an open channel to it.

Tests that need other settings start a gateway of their own with `running_gateway`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from medserve.gateway.server import GatewayServer
from tests.backends import Backend
from tests.gateway.running import running_gateway


@pytest.fixture(scope="module")
def gateway(backend: Backend, tiny_store: Path) -> Iterator[GatewayServer]:
    """The gateway, serving."""
    with running_gateway(*backend.before(store=tiny_store)) as running:
        yield running


@pytest.fixture
def edge(gateway: GatewayServer) -> Iterator[grpc.Channel]:
    """A channel to the gateway."""
    with grpc.insecure_channel(gateway.addresses.grpc) as channel:
        yield channel
