"""The process of a container, as far as it goes without TorchServe."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from medserve.log_line import LogLine

pytestmark = pytest.mark.process


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medserve.engine.torchserve.container", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_store_without_archives_ends_it_with_one_line(tmp_path: Path) -> None:
    run = _run("--store", str(tmp_path), "--proof-file", str(tmp_path / "proof"))
    assert run.returncode == 2
    [line] = run.stdout.splitlines()
    assert f"ERROR medserve.container: expected model archives (*.mar) in {tmp_path}" in line
    assert run.stderr == ""


def test_a_line_may_be_json(tmp_path: Path) -> None:
    run = _run("--store", str(tmp_path), "--log-format=json", f"--proof-file={tmp_path / 'p'}")
    line = json.loads(run.stdout)
    assert (line["level"], line["logger"]) == ("ERROR", "medserve.container")
    assert line["time"].endswith("Z")
    assert "expected model archives" in line["message"]


def test_the_proof_of_a_killed_server_does_not_outlive_it(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    proof.write_text("{}", encoding="utf-8")
    _run("--store", str(tmp_path), "--proof-file", str(proof))
    assert not proof.exists()


def test_a_missing_certificate_is_named(tmp_path: Path) -> None:
    absent = tmp_path / "tls.crt"
    flags = ["--tls-cert", str(absent), "--tls-key", str(absent)]
    run = _run("--store", str(tmp_path), *flags, "--proof-file", str(tmp_path / "proof"))
    assert run.returncode == 2
    assert f"TLS: expected an existing file, got {absent}" in run.stdout


@pytest.mark.parametrize("text", ["mednist", "mednist=", "=1.0"])
def test_a_default_needs_name_and_version(text: str, tmp_path: Path) -> None:
    run = _run("--store", str(tmp_path), "--default", text, "--proof-file", str(tmp_path / "p"))
    assert run.returncode == 2
    assert "--default: expected NAME=VERSION" in run.stdout


def test_an_event_with_a_traceback_is_still_one_line() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        record = logging.LogRecord("name", logging.ERROR, "", 0, "it broke", (), sys.exc_info())
    line = LogLine().format(record)
    assert "\n" not in line
    assert "it broke" in line
    assert "ValueError" in line
