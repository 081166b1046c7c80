"""One TorchServe, and gateways before it, for all tests that talk to real servers.

- `torchserve`: a `medserve.engine.torchserve.Server`, proven ready, on free ports of loopback. It
  serves every model of `FIXTURE_ROOMS` (small ones, whose right answers are known) and every room
  of the checkout whose trained weights are committed;
- `served`: a gateway with its page before it, every model serving; clients go to
  `served.addresses.grpc`, or take the fixture `address`;
- `servers.gateway(...)`: one more gateway, with settings of its own.

All are started with the first test that uses them and stopped after the last; those tests run one
after the other in one process. Whoever kills a worker kills that of `ticker`, and waits until it is
back. A test whose subject is the start or the end of a server starts its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medserve.archive.build import room_names
from medserve.engine.torchserve.java import find_java
from medserve.engine.torchserve.lifecycle import Server, ServerConfig
from medserve.errors import ArchiveError, ConfigError
from medserve.gateway.server import GatewayServer
from tests.archives import FIXTURE_ROOMS, packaged, packaged_fixture
from tests.gateway.running import running_gateway, settings_for
from tests.tiny_room import REPOSITORY

__all__ = ["Servers"]

_RUNNING = pytest.StashKey["Servers"]()


@pytest.fixture(scope="session")
def engine_installed() -> None:
    """Skip with the reason where TorchServe or Java is missing; who starts a server uses it."""
    for module in ("ts", "model_archiver", "onnxruntime", "openvino"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed; pip install -e '.[serve]'")
    try:
        find_java()
    except ConfigError as error:
        pytest.skip(str(error))


class Servers:
    """The running server and the gateways before it."""

    def __init__(self, store: Path) -> None:
        self._running = contextlib.ExitStack()
        # a dozen workers start at once
        config = ServerConfig(store=store, start_timeout_s=400)
        self.torchserve = self._running.enter_context(Server(config))

    def gateway(self, **changes: Any) -> GatewayServer:
        """Start a gateway before the server; it stops with it."""
        settings = settings_for(self.torchserve, **changes)
        return self._running.enter_context(running_gateway(settings))

    def stop(self) -> None:
        """Stop all of it; a second time does nothing."""
        self._running.close()


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `tiny` and `ticker`."""
    pytest.importorskip("model_archiver", reason="needs the serve extra")
    folder = tmp_path_factory.mktemp("tiny") / "store"
    for name in ("tiny", "ticker"):
        packaged_fixture(name, folder)
    return folder


@pytest.fixture(scope="session")
def served_store(engine_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with all that the shared server serves."""
    folder = tmp_path_factory.mktemp("served") / "store"
    for name in FIXTURE_ROOMS:
        packaged_fixture(name, folder)
    for name in room_names(REPOSITORY):
        with contextlib.suppress(ArchiveError):  # not trained in this checkout
            packaged(name, folder)
    return folder


@pytest.fixture(scope="session")
def servers(served_store: Path, pytestconfig: pytest.Config) -> Iterator[Servers]:
    """The server and its gateways."""
    running = Servers(served_store)
    pytestconfig.stash[_RUNNING] = running
    yield running
    running.stop()


@pytest.fixture(scope="session")
def torchserve(servers: Servers) -> Server:
    """The server behind the gateways, for tests of TorchServe itself."""
    return servers.torchserve


@pytest.fixture(scope="session")
def served(servers: Servers) -> GatewayServer:
    """A gateway with its page, before every model."""
    return servers.gateway(
        page=True,
        canary_timeout_s=30.0,
        cancelled_dir=servers.torchserve.cancelled_dir,
        upload_dir=servers.torchserve.upload_dir,
    )


@pytest.fixture(scope="session")
def address(served: GatewayServer) -> str:
    """Where clients find the gateway: `host:port` for gRPC."""
    return served.addresses.grpc


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Stop the servers after the last test that uses them: others need the memory and the cores."""
    result = yield
    running = item.config.stash.get(_RUNNING, None)
    if running is not None and item is _last_user(item.session):
        running.stop()
    return result


def _last_user(session: pytest.Session) -> pytest.Item | None:
    """Return the last test that uses the servers; tests without them may stand in between."""
    users = (each for each in reversed(session.items) if "servers" in _fixtures(each))
    return next(users, None)


def _fixtures(item: pytest.Item) -> list[str]:
    return getattr(item, "fixturenames", [])
