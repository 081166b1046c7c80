"""Versions that are exchanged on both real engines: under load, by hand, by a watched store."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.releases import Callers, swap_under_load
from medserve.archive.build import build_archive
from medserve.client import Client
from medserve.client.management import Manager
from medserve.engine.torchserve.calls import TorchServeEngine
from medserve.engine.torchserve.lifecycle import Server, ServerConfig
from medserve.errors import InvalidRequestError, ModelNotReadyError
from medserve.gateway.server import GatewayServer
from medserve.settings import EngineKind
from tests.archives import packaged, packaged_fixture
from tests.gateway.running import (
    quick_settings,
    running_gateway,
    running_gateway_of,
    settings_for,
)
from tests.tiny_room import bright_tile, make_checkout

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def later(engine_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny` 2.0, and 3.0, whose handler cannot be imported."""
    folder = tmp_path_factory.mktemp("later")
    packaged("tiny", folder, make_checkout(folder / "newer", version="2.0"))
    checkout = make_checkout(folder / "broken", version="3.0")
    handler = checkout / "handlers" / "tiny.py"
    text = handler.read_text(encoding="utf-8")
    handler.write_text(f"raise RuntimeError('no such sensor')\n{text}", encoding="utf-8")
    build_archive("tiny", folder, checkout)
    return folder


@pytest.fixture(scope="module", params=list(EngineKind), ids=str)
def gateway(
    request: pytest.FixtureRequest, later: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayServer]:
    """A gateway that may change what its engine serves: `tiny` 1.0 and `ticker`."""
    store = tmp_path_factory.mktemp("live") / "store"
    for name in ("tiny", "ticker"):
        packaged_fixture(name, store)
    if request.param is EngineKind.DIRECT:
        kind = request.param.value
        settings = quick_settings(store, page=True, canary_timeout_s=30.0, engine_kind=kind)
        with running_gateway(settings) as front:
            yield front
        return
    with Server(ServerConfig(store=store, allow_loading=True)) as server:
        settings = settings_for(server, page=True, canary_timeout_s=30.0)
        front = GatewayServer(
            settings, lambda: TorchServeEngine(server.access), server.archives, server.defaults
        )
        with running_gateway_of(front):
            yield front


@pytest.fixture
def store(gateway: GatewayServer) -> Path:
    assert gateway.settings.store is not None
    return gateway.settings.store


@pytest.fixture
def manager(gateway: GatewayServer) -> Manager:
    return Manager(gateway.addresses.grpc)


def versions(gateway: GatewayServer) -> dict[str, bool]:
    """Return the versions of `tiny`, and whether each is the default."""
    with Client(gateway.addresses.grpc) as client:
        return {each.version: each.default for each in client.models() if each.name == "tiny"}


def get(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=30) as answer:
        content: bytes = answer.read()
        return content


def test_no_call_fails_while_two_versions_are_exchanged(
    gateway: GatewayServer, manager: Manager, store: Path, later: Path
) -> None:
    """The whole count is `python -m benchmarks.releases swaps`."""
    shutil.copy(later / "tiny-2.0.mar", store)
    callers = Callers(gateway.addresses.grpc, "tiny", bright_tile(2), threads=2, pause_s=0.005)
    found = swap_under_load(callers, manager, ("1.0", "2.0"), swaps=2, calls=200)
    assert (found.failed, found.reasons, found.wrong_version) == (0, (), 0)
    assert {version for _, _, version in callers.answers} == {"1.0", "2.0"}
    assert versions(gateway) == {"1.0": True}


def test_a_version_that_does_not_start_changes_nothing_and_says_why(
    gateway: GatewayServer, manager: Manager, store: Path, later: Path
) -> None:
    shutil.copy(later / "tiny-3.0.mar", store)
    with pytest.raises(ModelNotReadyError, match=r"tiny 3\.0 cannot be loaded: .*no such sensor"):
        manager.add("tiny-3.0.mar", default=True)
    whole = (later / "tiny-2.0.mar").read_bytes()
    (store / "tiny-4.0.mar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidRequestError, match=r"tiny-4\.0\.mar"):
        manager.add("tiny-4.0.mar", default=True)
    assert versions(gateway) == {"1.0": True}


def test_every_face_follows_at_once(
    gateway: GatewayServer, manager: Manager, store: Path, later: Path
) -> None:
    shutil.copy(later / "tiny-2.0.mar", store)
    page = gateway.addresses.page_url
    try:
        manager.add("tiny-2.0.mar", default=True)
        assert versions(gateway) == {"1.0": False, "2.0": True}
        listed = json.loads(get(f"{page}v1/models"))["models"]
        assert {
            (each["version"], each["default"]) for each in listed if each["name"] == "tiny"
        } == {
            ("1.0", False),
            ("2.0", True),
        }
        assert json.loads(get(f"{page}v2/models/tiny"))["versions"] == ["1.0", "2.0"]
        assert b"2.0" in get(f"{page}models/tiny")
        shown = get(gateway.addresses.metrics_url).decode()
        assert 'medserve_gateway_model_ready{model="tiny",version="2.0"} 1.0' in shown
        request = urllib.request.Request(
            f"{page}predictions/tiny",
            data=bright_tile(1),
            headers={"content-type": "image/png"},
            method="PUT",
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.loads(answer.read())["version"] == "2.0"
        assert manager.roll_back("tiny") == "1.0"
        assert versions(gateway) == {"1.0": True, "2.0": False}
    finally:
        manager.remove("tiny", "2.0")
    shown = get(gateway.addresses.metrics_url).decode()
    assert 'medserve_gateway_model_ready{model="tiny",version="2.0"}' not in shown


def started(store: Path, ready: Path) -> subprocess.Popen[bytes]:
    """Start `medserve serve --watch`, without Java as it is quicker so; wait until it serves."""
    command = [sys.executable, "-m", "medserve.cli.main", "serve", "--store", str(store)]
    command += ["--engine", "direct", "--watch", "--port", "0", "--ready-file", str(ready)]
    process = subprocess.Popen(command, env=os.environ)
    wait(lambda: ready.exists() or process.poll() is not None)
    assert process.poll() is None
    return process


def wait(done: Any, within_s: float = 200.0) -> None:
    end = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a server and all that it has started, as a crash of the machine would."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(signal.SIGKILL)
    process.wait(30)


def test_a_server_that_is_killed_while_a_version_comes_starts_with_the_one_of_before(
    later: Path, tmp_path: Path
) -> None:
    store, ready = tmp_path / "store", tmp_path / "ready.json"
    packaged_fixture("tiny", store)
    process = started(store, ready)
    assert json.loads((store / "serving.json").read_text())["models"]["tiny"]["default"] == "1.0"
    try:
        children = len(psutil.Process(process.pid).children())
        shutil.copy(later / "tiny-2.0.mar", tmp_path)
        os.rename(tmp_path / "tiny-2.0.mar", store / "tiny-2.0.mar")
        # The worker of the new version has begun to start.
        wait(lambda: len(psutil.Process(process.pid).children()) > children)
    finally:
        end(process)
    ready.unlink()
    again = started(store, ready)
    try:
        content = json.loads(ready.read_text())
        assert [(each["version"], each["default"]) for each in content["models"]] == [("1.0", True)]
        with Client(content["gateway"]["grpc"]) as client:
            wait(lambda: [each.version for each in client.models()] == ["2.0"])  # it comes anew
            assert client.classify_one("tiny", bright_tile(0)).label == "top-left"
    finally:
        end(again)
