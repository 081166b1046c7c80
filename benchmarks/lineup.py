"""The contenders by name, in the order in which they are measured and shown."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.archives import with_batch_size
from benchmarks.contenders import Contender, Running, Setting
from benchmarks.peers.launch import bare_grpc, litserve, served, triton, triton_onnxruntime
from benchmarks.stock import stock_torchserve
from medserve.client import Limits

__all__ = ["CONTENDERS"]

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
    archive = store / setting.archive.name
    if not archive.exists():  # several contenders share it
        archive.symlink_to(setting.archive.resolve())
    return store
