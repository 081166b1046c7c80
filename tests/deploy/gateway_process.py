"""`medserve gateway` as a process of its own, in front of a server that runs already."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medserve.engine.torchserve.lifecycle import Server

__all__ = ["RunningGateway", "running_gateway"]


@dataclass(frozen=True)
class RunningGateway:
    """Where it listens."""

    grpc: str
    metrics_url: str
    page_url: str | None


@contextlib.contextmanager
def running_gateway(
    server: Server, store: Path, folder: Path, *flags: str, within_s: float = 120.0
) -> Iterator[RunningGateway]:
    """A gateway on free ports of loopback whose models all serve; `folder` is for its files."""
    ready = folder / "gateway.json"
    command = [sys.executable, "-m", "medserve.cli.main", "gateway", "--ready-file", str(ready)]
    command += ["--engine", server.inference_address, "--store", str(store)]
    command += ["--engine-management", server.management_address]
    command += [f"--{name}-port=0" for name in ("grpc", "http", "metrics")]
    with (folder / "gateway.log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen([*command, *flags], stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + within_s
            while (running := _serving(ready)) is None:
                if process.poll() is not None or time.monotonic() > end:
                    raise AssertionError((folder / "gateway.log").read_text(encoding="utf-8"))
                time.sleep(0.1)
            yield running
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _serving(ready: Path) -> RunningGateway | None:
    """The gateway, once every model has answered its canary."""
    if not ready.exists():
        return None
    running = RunningGateway(**json.loads(ready.read_text(encoding="utf-8")))
    with urllib.request.urlopen(running.metrics_url, timeout=10) as answer:
        states = re.findall(
            r"^medserve_gateway_model_ready\{.*\} (\S+)$", answer.read().decode(), re.M
        )
    return running if states and all(float(state) == 1 for state in states) else None
