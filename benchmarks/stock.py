"""A stock TorchServe with a stock-style handler: its own launcher, logs and defaults."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.contenders import Running, Setting, await_answer
from benchmarks.processes import free_port, spawn
from medserve.engine.torchserve.java import find_java

__all__ = ["stock_torchserve"]

_HANDLER = Path(__file__).parent / "peers" / "stock_handler.py"


@contextlib.contextmanager
def stock_torchserve(setting: Setting) -> Iterator[Running]:
    """`torchserve --start` on a TorchScript archive; only ports and workers are set."""
    folder = setting.scratch / "stock"
    folder.mkdir()
    _archive(setting, folder)
    port = free_port()
    (folder / "config.properties").write_text(_config(port, setting.workers), encoding="ascii")
    java_home = find_java().path.parent.parent
    environment = setting.environment() | {
        "JAVA_HOME": str(java_home),
        "PATH": os.pathsep.join([str(java_home / "bin"), os.environ.get("PATH", "")]),
        "TEMP": str(folder),
        "TMPDIR": str(folder),
        "PYTHONPATH": str(_HANDLER.parent.parent.parent),
        "MEDSERVE_BENCH_ARCHIVE_DIR": str(setting.archive_dir),
    }
    command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs"]
    command += ["--disable-token-auth", "--ts-config", "config.properties"]
    command += ["--model-store", ".", "--models", f"{setting.model}={setting.model}.mar"]
    log = folder / "output.log"
    with spawn(command, log, environment=environment, cwd=folder) as process:
        yield await_answer("predictions", f"127.0.0.1:{port}", setting, process, log)


def _archive(setting: Setting, folder: Path) -> None:
    command = [sys.executable, "-m", "model_archiver.model_packaging"]
    command += ["--model-name", setting.model, "--version", "1.0", "--handler", str(_HANDLER)]
    command += ["--serialized-file", str(setting.archive_dir / "model.pt")]
    command += ["--export-path", str(folder)]
    environment = {**os.environ, "TMPDIR": str(folder)}
    subprocess.run(command, check=True, capture_output=True, env=environment)


def _config(grpc_port: int, workers: int) -> str:
    """What two servers on one machine cannot share, and the number of workers."""
    http = {
        name: f"http://127.0.0.1:{free_port()}"
        for name in ("inference_address", "management_address", "metrics_address")
    }
    own = {
        "grpc_inference_port": grpc_port,
        "grpc_management_port": free_port(),
        "default_workers_per_model": workers,
        "initial_worker_port": free_port(),
    }
    return "".join(f"{key}={value}\n" for key, value in (http | own).items())
