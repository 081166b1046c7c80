"""The doctor names what is wrong and what to do about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medserve.cli import doctor as cli_doctor
from medserve.engine.torchserve.ports import Ports, choose_ports
from tests.archives import packaged_fixture
from tests.cli.conftest import Medserve, Run
from tests.cli.conftest import fake as fake
from tests.cli.conftest import medserve as medserve
from tests.client.fake_gateway import FakeGateway, served_model, serving

pytest.importorskip("ts", reason="needs the serve extra")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    packaged_fixture("tiny", folder)
    return folder


def doctor(store: Path) -> subprocess.CompletedProcess[str]:
    """`medserve doctor`, where no server runs."""
    address = f"127.0.0.1:{choose_ports('127.0.0.1', Ports()).grpc}"
    return subprocess.run(
        [sys.executable, "-m", "medserve.cli.main", "doctor", "--store", str(store)],
        env=os.environ | {"MEDSERVE_ADDRESS": address, "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )


def test_a_machine_that_can_serve_has_nothing_to_fix(store: Path) -> None:
    found = doctor(store)
    assert found.returncode == 0, found.stdout
    assert "tiny 1.0, " in found.stdout
    assert "start one: medserve serve" in found.stdout


def test_the_direct_engine_asks_for_neither_java_nor_torchserve(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSERVE_ENGINE_KIND", "direct")
    found = doctor(store)
    assert found.returncode == 0, found.stdout
    assert "direct: neither Java nor TorchServe is needed" in found.stdout
    assert "torch-model-archiver" not in found.stdout
    assert "tiny 1.0, " in found.stdout


@pytest.mark.process
def test_an_empty_store_is_to_be_filled(tmp_path: Path) -> None:
    found = doctor(tmp_path)
    assert found.returncode == 1
    assert "medserve package --all" in found.stdout


def test_a_damaged_archive_is_named_beside_a_good_one(store: Path, tmp_path: Path) -> None:
    shutil.copy(store / "tiny-1.0.mar", tmp_path)
    (tmp_path / "tiny-0.9.mar").write_bytes(b"no zip")
    found = doctor(tmp_path)
    assert found.returncode == 1
    assert "tiny 1.0, " in found.stdout
    assert "damaged or altered" in found.stdout


def of_the_gateway(run: Run) -> tuple[str, str]:
    """The level and the text of the last line of the table."""
    line = run.out.splitlines()[-1]
    return line.split()[0], line


@pytest.mark.loopback
def test_a_healthy_gateway_is_never_called_broken(
    medserve: Medserve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with serving(FakeGateway()) as fake:
        level, line = of_the_gateway(medserve("doctor", "--address", fake.address))
        assert (level, "ready: mednist 1.0" in line) == ("ok", True)
        monkeypatch.setenv("MEDSERVE_ADDRESS", fake.address)
        assert of_the_gateway(medserve("doctor")) == (level, line)
    with serving(FakeGateway(token="s3cret")) as guarded:
        level, line = of_the_gateway(medserve("doctor", "--address", guarded.address))
        assert (level, "asks for a token" in line) == ("note", True)


@pytest.mark.loopback
def test_a_model_that_does_not_serve_is_named(
    medserve: Medserve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with serving(FakeGateway((served_model(ready=False),))) as fake:
        run = medserve("doctor", "--address", fake.address)
    level, line = of_the_gateway(run)
    assert (run.code, level, "not ready: mednist" in line) == (1, "fix", True)


@pytest.mark.loopback
def test_a_client_alone_is_not_asked_for_what_serving_needs(
    medserve: Medserve, fake: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(cli_doctor, "_installed", lambda package: None)
    run = medserve("doctor", "--address", fake.address)
    assert run.code == 0
    assert "a client alone" in run.out
    assert "Java" not in run.out
