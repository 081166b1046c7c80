"""The doctor names what is wrong and what to do about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medserve.engine.torchserve.ports import Ports, choose_ports
from tests.archives import packaged_fixture

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
