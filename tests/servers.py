"""One engine, and gateways before it, for all tests that talk to real servers.

- `backend`: the engine, TorchServe or the direct one (`pytest --engine direct`). It serves every
  model of `FIXTURE_ROOMS` (small ones, whose right answers are known) and every room of the
  checkout whose trained weights are committed;
- `torchserve`: the `medserve.engine.torchserve.Server` in it; its tests, and those that start one
  themselves and take `torchserve_alone`, skip on another engine;
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
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medserve.archive.build import room_names
from medserve.engine.torchserve.java import find_java
from medserve.engine.torchserve.lifecycle import Server
from medserve.errors import ArchiveError, ConfigError
from medserve.gateway.server import GatewayServer
from medserve.settings import EngineKind
from tests.archives import FIXTURE_ROOMS, packaged, packaged_fixture
from tests.backends import Backend, TorchServeBackend, running_backend
from tests.gateway.running import running_gateway
from tests.tiny_room import REPOSITORY

__all__ = ["Servers"]

_RUNNING = pytest.StashKey["Servers"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--engine`."""
    parser.addoption(
        "--engine",
        choices=tuple(EngineKind),
        default=os.environ.get("MEDSERVE_TEST_ENGINE", EngineKind.TORCHSERVE.value),
        help="what executes the archives in tests of real servers",
    )


@pytest.fixture(scope="session")
def engine_kind(pytestconfig: pytest.Config) -> EngineKind:
    """The engine that this run tests."""
    return EngineKind(pytestconfig.getoption("--engine"))


@pytest.fixture(scope="session")
def engine_installed(engine_kind: EngineKind) -> None:
    """Skip with the reason where the engine or Java is missing; who starts a server uses it."""
    torchserve = ("ts",) if engine_kind is EngineKind.TORCHSERVE else ()
    for module in (*torchserve, "model_archiver", "onnxruntime", "openvino"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed; pip install -e '.[serve]'")
    if not torchserve:
        return
    try:
        find_java()
    except ConfigError as error:
        pytest.skip(str(error))


class Servers:
    """The running engine and the gateways before it."""

    def __init__(self, store: Path, kind: EngineKind) -> None:
        self._running = contextlib.ExitStack()
        # a dozen workers start at once
        running = running_backend(kind, store, start_timeout_s=400)
        self.backend = self._running.enter_context(running)

    def gateway(self, **changes: Any) -> GatewayServer:
        """Start a gateway before the engine; it stops with it."""
        return self._running.enter_context(running_gateway(*self.backend.before(**changes)))

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
def servers(
    served_store: Path, engine_kind: EngineKind, pytestconfig: pytest.Config
) -> Iterator[Servers]:
    """The engine and its gateways."""
    running = Servers(served_store, engine_kind)
    pytestconfig.stash[_RUNNING] = running
    yield running
    running.stop()


@pytest.fixture(scope="session")
def backend(servers: Servers) -> Backend:
    """The engine behind the gateways."""
    return servers.backend


@pytest.fixture(scope="session")
def torchserve_alone(engine_installed: None, engine_kind: EngineKind) -> None:
    """Skip a test of TorchServe itself where the run has another engine."""
    if engine_kind is not EngineKind.TORCHSERVE:
        pytest.skip("a test of TorchServe itself; this run has another engine")


@pytest.fixture(scope="session")
def torchserve(torchserve_alone: None, servers: Servers) -> Server:
    """The server behind the gateways, for tests of TorchServe itself."""
    assert isinstance(servers.backend, TorchServeBackend)
    return servers.backend.server


@pytest.fixture(scope="session")
def served(servers: Servers) -> GatewayServer:
    """A gateway with its page, before every model."""
    return servers.gateway(
        page=True,
        canary_timeout_s=30.0,
        cancelled_dir=servers.backend.cancelled_dir,
        upload_dir=servers.backend.upload_dir,
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
