"""The process of a container and its health check, against the real TorchServe."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medserve.engine.torchserve import probe
from tests.serving.conftest import TinyArchive


def test_a_container_is_ready_while_it_serves_and_leaves_nothing_behind(
    torchserve_alone: None,
    tiny_archive: TinyArchive,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store, proof = tmp_path / "store", tmp_path / "proof.json"
    tiny_archive(store)
    command = [sys.executable, "-m", "medserve.engine.torchserve.container", "--store", str(store)]
    command += [f"--{name}=0" for name in ("port", "management-port", "metrics-port")]
    flags = ["--proof-file", str(proof)]
    with (tmp_path / "log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen([*command, *flags], stdout=log, stderr=subprocess.STDOUT)
        try:
            assert probe.main(flags) == 1  # it has only begun to start
            while not proof.exists() and process.poll() is None:
                time.sleep(0.2)
            assert probe.main([*flags, "--canary=all"]) == 0, (tmp_path / "log").read_text()
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait()
        assert code == 0
        assert not proof.exists()
        assert probe.main(flags) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[1:] == ["ready: tiny 1.0", said[0]]
    text = (tmp_path / "log").read_text(encoding="utf-8")
    assert "INFO medserve.container: ready: tiny 1.0, 1 workers" in text
    assert "INFO medserve.container: stopping: running requests may finish" in text
    assert all(line[:4].isdecimal() for line in text.splitlines())
