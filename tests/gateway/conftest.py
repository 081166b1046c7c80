"""A real TorchServe behind a real gateway, for the tests of this folder that are marked `serving`.

- `engine`: a `medserve.engine.torchserve.Server` of its own with `tiny` (batched, which of six
  tiles is the brightest) and `ticker` (streams; see `streaming_room`), proven ready;
- `gateway`: a `GatewayServer` in front of it on free ports, every model serving;
  `gateway.addresses.grpc` is where clients go;
- `edge`: an open channel to it.

Tests that need other settings start a gateway of their own with `running_gateway`; `engine` serves
them all.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from medserve.archive.build import build_archive
from medserve.engine.torchserve import Server, ServerConfig
from medserve.engine.torchserve.java import find_java
from medserve.errors import ConfigError
from medserve.gateway.server import GatewayServer
from tests.gateway.running import running_gateway, settings_for
from tests.gateway.streaming_room import make_streaming_checkout
from tests.tiny_room import make_checkout


@pytest.fixture(scope="package")
def engine_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with `tiny` and `ticker`; skips where TorchServe or Java is missing."""
    for module in ("ts", "model_archiver", "onnxruntime"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed; pip install -e '.[serve]'")
    try:
        find_java()
    except ConfigError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("behind") / "store"
    build_archive("tiny", folder, make_checkout(tmp_path_factory.mktemp("tiny") / "checkout"))
    checkout = make_streaming_checkout(tmp_path_factory.mktemp("ticker") / "checkout")
    build_archive("ticker", folder, checkout)
    return folder


@pytest.fixture(scope="package")
def engine(engine_store: Path) -> Iterator[Server]:
    """The TorchServe of this folder; stopped after its last test."""
    with Server(ServerConfig(store=engine_store)) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(engine: Server) -> Iterator[GatewayServer]:
    """A gateway in front of it."""
    with running_gateway(settings_for(engine)) as running:
        yield running


@pytest.fixture
def edge(gateway: GatewayServer) -> Iterator[grpc.Channel]:
    """A channel to the gateway."""
    with grpc.insecure_channel(gateway.addresses.grpc) as channel:
        yield channel
