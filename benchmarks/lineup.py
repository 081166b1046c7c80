"""The contenders by name, in the order in which they are measured and shown."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.archives import with_batch_size
from benchmarks.contenders import Contender, Running, Setting, Unavailable, await_answer
from benchmarks.peers.launch import bare_grpc, litserve, served, triton, triton_onnxruntime
from benchmarks.processes import spawn
from benchmarks.stock import stock_torchserve
from medserve.client import Limits

__all__ = ["CONTENDERS", "direct_process"]

_PACKED = 16  # images a call
_CLIENT = Limits()  # of medserve.client


@contextlib.contextmanager
def torchserve(setting: Setting) -> Iterator[Running]:
    """What `medserve serve` starts: TorchServe, and the gateway before it."""
    with served(setting, _store(setting)) as running:
        yield running


@contextlib.contextmanager
def torchserve_ungathered(setting: Setting) -> Iterator[Running]:
    """The same where each call goes to TorchServe by itself."""
    with served(setting, _store(setting), gather=1) as running:
        yield running


@contextlib.contextmanager
def torchserve_latency(setting: Setting) -> Iterator[Running]:
    """The same for single requests: TorchServe gathers nothing, so nothing waits there."""
    scratch = setting.scratch / "latency"
    scratch.mkdir()
    archive = with_batch_size(setting.archive, scratch / setting.archive.name, batch_size=1)
    with torchserve(replace(setting, archive=archive, scratch=scratch)) as running:
        yield running


@contextlib.contextmanager
def direct(setting: Setting) -> Iterator[Running]:
    """Start `medserve serve --engine direct`, and ask it once."""
    with direct_process(setting) as (process, address):
        log = setting.scratch / "direct" / "serve.log"
        yield await_answer("predictions", address, setting, process, log)


@contextlib.contextmanager
def direct_process(setting: Setting) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start the command; yield it with the address of its gateway once its model is proven."""
    scratch = setting.scratch / "direct"
    scratch.mkdir()
    ready = scratch / "ready.json"
    command = [sys.executable, "-m", "medserve.cli.main", "serve", "--engine=direct"]
    command += [f"--store={_store(setting)}", f"--workers={setting.workers}", "--port=0"]
    command += ["--metrics-port=0", f"--ready-file={ready}"]
    environment = setting.environment() | {
        "MEDSERVE_GATEWAY_ENGINE_THREADS": str(setting.threads),
        # It is held while others are measured, and is no less well for that.
        "MEDSERVE_GATEWAY_CANARY_EVERY_S": "3600",
        "MEDSERVE_GATEWAY_CANARY_TIMEOUT_S": "3600",
    }
    with spawn(command, scratch / "serve.log", environment=environment) as process:
        while not ready.exists():
            if process.poll() is not None:
                raise Unavailable((scratch / "serve.log").read_text(encoding="utf-8")[-300:])
            time.sleep(0.02)
        yield process, json.loads(ready.read_text(encoding="utf-8"))["gateway"]["grpc"]


CONTENDERS: tuple[Contender, ...] = (
    Contender("in-process"),
    Contender("torchserve", start=torchserve),
    Contender("torchserve-ungathered", start=torchserve_ungathered),
    Contender("torchserve-packed", start=torchserve, images_per_call=_PACKED),
    Contender(
        "torchserve-client",
        start=torchserve,
        images_per_call=_CLIENT.items_per_call,
        fixed_calls=_CLIENT.calls_in_flight,
    ),
    Contender("torchserve-latency", start=torchserve_latency),
    Contender("direct", start=direct),
    Contender("direct-packed", start=direct, images_per_call=_PACKED),
    Contender("torchserve-stock", start=stock_torchserve),
    Contender("grpc", start=bare_grpc),
    Contender("litserve", protocol="http", start=litserve),
    Contender("triton", protocol="oip", start=triton),
    Contender("triton-onnxruntime", protocol="oip", start=triton_onnxruntime),
)


def _store(setting: Setting) -> Path:
    """A store with this one archive."""
    store = setting.scratch / "store"
    store.mkdir(exist_ok=True)
    link = store / setting.archive.name
    link.unlink(missing_ok=True)
    link.symlink_to(setting.archive.resolve())
    return store
