"""`medserve serve --engine direct`: the gateway alone, with the models in workers of its own."""

from __future__ import annotations

import json
import os
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

from medserve.client import Client
from tests.archives import packaged_fixture
from tests.serving.conftest import TinyArchive
from tests.serving.test_serve import spoil_golden_output
from tests.tiny_room import LABELS, bright_tile

pytestmark = pytest.mark.process


def serve(store: Path, folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start the command as an operator does."""
    command = [sys.executable, "-m", "medserve.cli.main", "serve", "--engine", "direct"]
    command += ["--store", str(store), "--port", "0", "--metrics-port", "0"]
    return subprocess.Popen(
        [*command, "--ready-file", str(folder / "ready.json"), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TMPDIR": str(folder)},
    )


@pytest.fixture
def running(short_path: Path) -> Iterator[tuple[subprocess.Popen[str], Any, Path]]:
    """The process, its ready file and its folder for temporary files; killed if a test fails."""
    for name in ("tiny", "ticker"):
        packaged_fixture(name, short_path / "store")
    folder = short_path / "tmp"
    folder.mkdir()
    process = serve(short_path / "store", folder, "--workers", "2")
    try:
        while not (folder / "ready.json").exists() and process.poll() is None:
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()[0]
        yield process, json.loads((folder / "ready.json").read_text(encoding="utf-8")), folder
    finally:
        process.kill()
        process.communicate()


def test_it_answers_without_java_and_leaves_nothing_behind(
    running: tuple[subprocess.Popen[str], Any, Path],
) -> None:
    process, ready, folder = running
    with Client(ready["gateway"]["grpc"], timeout_s=60) as client:
        assert client.classify_one("tiny", bright_tile(2)).label == LABELS[2]
        assert {each.name for each in client.models() if each.ready} == {"tiny", "ticker"}
    family = [psutil.Process(process.pid)]
    family += family[0].children(recursive=True)
    assert len(family) == 1 + 4  # two workers a model
    assert not any("java" in each.name() for each in family)
    with urllib.request.urlopen(ready["gateway"]["metrics_url"], timeout=10) as page:
        lines = page.read().decode().splitlines()
    assert any(each.startswith("MedserveItems{") and '"tiny"' in each for each in lines)
    assert any(each.startswith("MedserveRequestSeconds_bucket") for each in lines)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    assert list(folder.iterdir()) == []


def test_a_model_that_cannot_be_proven_ends_it_with_the_reason_in_one_line(
    tiny_archive: TinyArchive, short_path: Path
) -> None:
    tiny_archive(short_path / "store", change=spoil_golden_output)
    process = serve(short_path / "store", short_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "tiny 1.0 cannot be loaded: expected logits within" in output.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--no-gateway"], "the direct engine is reached through the gateway alone"),
        (
            ["--tls-cert", "c.pem", "--token"],
            "--token, --tls-cert: expected options of the gateway",
        ),
    ],
)
def test_what_only_torchserve_could_do_is_refused(
    options: list[str], said: str, short_path: Path
) -> None:
    process = serve(short_path, short_path, *options)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said in output
