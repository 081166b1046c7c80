"""The README's commands and code do what it says, against the server that it starts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pages import blocks, listens

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# `make test` would start this test again; the others install or keep running, and are tested below.
_NOT_HERE = ("make test", "make serve", "make demo")


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run a line as a user of the checkout would, in this test's virtual environment."""
    here = command.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    return subprocess.run(here, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def served() -> Iterator[None]:
    """`make serve` on its own ports, until it says that the models are ready."""
    for port in (7070, 7071, 8000, 8001, 8002, 8080, 8081, 8082):
        if listens(port):
            pytest.skip(f"port {port}, which `make serve` uses, is taken on this machine")
    log = ROOT / "outputs" / "readme-serve.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as output:
        server = subprocess.Popen(
            ["make", "serve"], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 180
        while "medserve predict" not in log.read_text():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield
    finally:
        # not SIGINT: whoever starts the tests in the background makes their children ignore it
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)
    deadline = time.monotonic() + 60  # make ends at once, the server when it has drained
    while listens(7070):
        assert time.monotonic() < deadline, "make serve left its server behind"
        time.sleep(0.2)


@pytest.mark.walk
def test_every_shell_line_of_the_readme_succeeds(served: None, tmp_path: Path) -> None:
    lines = [line for block in blocks(ROOT / "README.md", "bash") for line in block.splitlines()]
    commands = [line for line in lines if line.strip() and line not in _NOT_HERE]
    assert len(commands) >= 4
    for command in commands:
        # What lies in `outputs` from the last time is not replaced.
        run = shell(command.replace("--out outputs/", f"--out {tmp_path}/"))
        assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"


@pytest.mark.walk
def test_the_python_example_of_the_readme_prints_a_class_per_image(served: None) -> None:
    (example,) = blocks(ROOT / "README.md", "python")
    run = subprocess.run(
        [sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    printed = run.stdout.splitlines()
    images = list((ROOT / "models" / "mednist" / "examples").iterdir())
    assert len(printed) == len(images)
    assert any("Hand" in line for line in printed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_make_target_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", page.read_text("utf-8"), re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert named <= targets


@pytest.mark.process
def test_make_alone_prints_the_targets() -> None:
    run = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0
    for target in ("demo", "test", "serve", "lint"):
        assert f"make {target} " in run.stdout
