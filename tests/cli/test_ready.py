"""The file that tells where a server is: whole, readable by all, gone with the server."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from medserve.cli.ready import announced_in


def test_the_file_is_there_while_the_server_is_ready(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    path.write_text("of a server that was killed", encoding="utf-8")
    with announced_in(path) as ready:
        assert not path.exists()
        ready({"grpc": "127.0.0.1:8000"})
        assert json.loads(path.read_text(encoding="utf-8")) == {"grpc": "127.0.0.1:8000"}
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert not os.listdir(tmp_path)


def test_no_reader_finds_a_part_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ready.json"
    seen = []
    replace = os.replace

    def observed(source: str, target: Path) -> None:
        seen.append((path.exists(), json.loads(Path(source).read_text(encoding="utf-8"))))
        replace(source, target)

    monkeypatch.setattr(os, "replace", observed)
    with announced_in(path) as ready:
        ready({"grpc": "127.0.0.1:8000"})
    assert seen == [(False, {"grpc": "127.0.0.1:8000"})]


def test_a_server_without_the_option_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with announced_in(None) as ready:
        ready({"grpc": "127.0.0.1:8000"})
    assert not os.listdir(tmp_path)
