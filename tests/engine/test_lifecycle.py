"""What a server decides before it starts; nothing here needs Java."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medserve.engine.torchserve.lifecycle import Server, ServerConfig
from medserve.errors import ArchiveError, ConfigError
from tests.archives import packaged_fixture

pytest.importorskip("model_archiver", reason="needs the serve extra")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    packaged_fixture("tiny", folder)
    return folder


@pytest.mark.parametrize(
    ("host", "asked"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)]
)
def test_a_key_is_asked_for_wherever_others_can_reach(store: Path, host: str, asked: bool) -> None:
    assert Server(ServerConfig(store=store, host=host)).token_auth is asked


def test_the_operator_may_decide_about_the_key(store: Path) -> None:
    assert Server(ServerConfig(store=store, token_auth=True)).token_auth
    assert not Server(ServerConfig(store=store, host="0.0.0.0", token_auth=False)).token_auth


def test_threads_and_workers_share_the_cores(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medserve.engine.torchserve.lifecycle.available_cores", lambda: 8)
    threads = {
        workers: Server(ServerConfig(store=store, workers=workers)).engine_threads
        for workers in (1, 2, 3, 16)
    }
    assert threads == {1: 8, 2: 4, 3: 2, 16: 1}


def test_threads_can_be_given(store: Path) -> None:
    assert Server(ServerConfig(store=store, engine_threads=3)).engine_threads == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": 0},
        {"engine_threads": 0},
        {"max_message_bytes": 1000},
        {"max_message_bytes": 2**31},
        {"certificate": Path(__file__)},
        {"certificate": Path("none.pem"), "private_key": Path("none.pem")},
    ],
)
def test_a_configuration_that_cannot_work_is_refused_before_any_start(
    wrong: dict[str, Any],
) -> None:
    with pytest.raises(ConfigError, match=r"expected|needs"):
        ServerConfig(**wrong)


def test_an_altered_archive_is_refused_before_any_start(store: Path, tmp_path: Path) -> None:
    content = bytearray((store / "tiny-1.0.mar").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "tiny-1.0.mar").write_bytes(content)
    with pytest.raises(ArchiveError, match="was altered after packaging"):
        Server(ServerConfig(store=tmp_path))


def test_a_server_that_never_started_stops_without_complaint(store: Path) -> None:
    Server(ServerConfig(store=store)).stop()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "mednits"], "expected models out of tiny"),
        (["--default", "tiny"], "--default: expected NAME=VERSION"),
        (["--default", "tiny=2"], "expected one of 1.0 for tiny"),
        (["--log-level", "loud"], "--log-level: expected debug, info, warning or error"),
        (["--host", "256.1.1.1"], "expected an address of this machine"),
    ],
)
def test_a_wrong_option_ends_the_command_with_one_line(
    store: Path, options: list[str], message: str
) -> None:
    command = [sys.executable, "-m", "medserve.cli.main", "serve", "--store", str(store)]
    refused = subprocess.run([*command, *options], capture_output=True, text=True)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1
