"""The contenders by name, in the order in which they are measured and shown."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks.archives import with_batch_size
from benchmarks.contenders import Contender, Running, Setting
from benchmarks.peers.launch import bare_grpc, litserve, triton, triton_onnxruntime
from benchmarks.stock import stock_torchserve
from medserve.client import Limits
from medserve.engine.torchserve.lifecycle import Server, ServerConfig

__all__ = ["CONTENDERS"]

_PACKED = 16  # images a call
_CLIENT = Limits()  # of medserve.client


@contextlib.contextmanager
def torchserve(setting: Setting) -> Iterator[Running]:
    """What `medserve serve` starts."""
    store = _store(setting)
    config = ServerConfig(store=store, workers=setting.workers, engine_threads=setting.threads)
    with _environment(setting.environment()):
        server = Server(config)
        server.start()
    try:
        server.wait_ready()
        yield Running(server.inference_address, server.pid or 0)
    finally:
        server.stop()


@contextlib.contextmanager
def torchserve_latency(setting: Setting) -> Iterator[Running]:
    """The same for single requests: nothing is gathered, so nothing waits."""
    scratch = setting.scratch / "latency"
    scratch.mkdir()
    archive = with_batch_size(setting.archive, scratch / setting.archive.name, batch_size=1)
    with torchserve(replace(setting, archive=archive, scratch=scratch)) as running:
        yield running


CONTENDERS: tuple[Contender, ...] = (
    Contender("in-process"),
    Contender("torchserve", start=torchserve),
    Contender("torchserve-packed", start=torchserve, images_per_call=_PACKED),
    Contender(
        "torchserve-client",
        start=torchserve,
        images_per_call=_CLIENT.items_per_call,
        fixed_calls=_CLIENT.calls_in_flight,
    ),
    Contender("torchserve-latency", start=torchserve_latency),
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
    (store / setting.archive.name).symlink_to(setting.archive.resolve())
    return store


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables that a child started meanwhile inherits."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
