"""Run the commands of a page, as its reader would, in a copy of the checkout."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.pages import listens

__all__ = ["Walk", "skip_if_taken"]

_ROOT = Path(__file__).resolve().parents[1]
_PORTS = (7070, 7071, 8000, 8001, 8002, 8082)  # of `medserve serve`


class Walk:
    """The shell blocks of a page, run in a folder of their own."""

    def __init__(self, folder: Path, rooms: tuple[str, ...]) -> None:
        self.folder = folder
        for name in ("handlers", "medserve", "models", "training", *rooms):
            shutil.copytree(_ROOT / name, folder / name)
        here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = os.environ | {"PATH": here, "PYTHONPATH": str(folder)}

    def run(self, block: str) -> str:
        """Return what the block prints; it must succeed."""
        done = subprocess.run(
            ["bash", "-e", "-c", block], cwd=self.folder, env=self.environment,
            capture_output=True, text=True, timeout=1800, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    @contextmanager
    def serving(self, block: str) -> Iterator[None]:
        """Have the server run inside the block, which begins when it says that it is ready."""
        ready = self.folder / "ready.json"
        server = subprocess.Popen(
            ["bash", "-c", f"exec {block.strip()} --ready-file {ready}"],
            cwd=self.folder, env=self.environment, start_new_session=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 180
            while not ready.is_file():
                assert server.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server was not ready in time"
                time.sleep(0.5)
            yield
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=60)


def skip_if_taken() -> None:
    """Skip where a port that the page's server uses is not free."""
    for port in _PORTS:
        if listens(port):
            pytest.skip(f"port {port}, which the page's server uses, is taken")
