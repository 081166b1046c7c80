"""Who is measured, and how each server is started.

| contender | what it is |
|---|---|
| `in-process` | the handler's own verbs called directly in perfect batches: the limit |
| `torchserve` | `medserve serve`: the gateway and TorchServe, one image a call |
| `torchserve-ungathered` | the same with `--gather 1`: TorchServe alone gathers, batches of 16 |
| `torchserve-packed` | the same server, 16 images a call |
| `torchserve-client` | the same server, called as `medserve.client` calls it by default |
| `torchserve-latency` | the same archive with batchSize 1 |
| `direct` | `medserve serve --engine direct`: its gateway is in the way of every call |
| `direct-packed` | the same server, 16 images a call |
| `torchserve-stock` | a stock-style handler on a stock TorchServe |
| `grpc` | a bare grpc.aio server with a small dynamic batcher |
| `litserve`, `triton` | peers from PyPI, the same work inside |
| `triton-onnxruntime` | Triton on ONNX Runtime, whatever engine the others run |
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.protocols import connect, encode_calls, reason

__all__ = ["Contender", "Running", "Setting", "Start", "Unavailable", "await_answer"]

_START_TIMEOUT_S = 120.0
_POLL_S = 0.25


class Unavailable(Exception):
    """A contender cannot run here; the message says why."""


@dataclass(frozen=True)
class Setting:
    """What every contender of one part of a run is given."""

    model: str
    archive: Path  # the .mar
    archive_dir: Path  # the same, unpacked
    image: bytes  # for the first call
    workers: int
    engine: str
    scratch: Path
    threads: int = 1  # of the engine, in each worker
    peers_python: str | None = None

    def with_engine(self, engine: str) -> Setting:
        """The same with another engine, in a scratch folder of its own."""
        scratch = self.scratch / engine
        scratch.mkdir(exist_ok=True)
        return replace(self, engine=engine, scratch=scratch)

    def environment(self) -> dict[str, str]:
        """What settles engine and threads in any process that runs the handler's code."""
        threads = str(self.threads)
        return {
            "MEDSERVE_ENGINE": self.engine,
            "MEDSERVE_ENGINE_THREADS": threads,
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
        }


@dataclass(frozen=True)
class Running:
    """A server that has answered its first call."""

    address: str
    pid: int


Start = Callable[[Setting], AbstractContextManager[Running]]


@dataclass(frozen=True)
class Contender:
    """One line of the table."""

    name: str
    protocol: str = "predictions"
    start: Start | None = None  # None: runs without a server
    images_per_call: int = 1
    fixed_calls: int | None = None  # in flight, whatever the run asks for


def await_answer(
    protocol: str, address: str, setting: Setting, process: subprocess.Popen[bytes], log: Path
) -> Running:
    """Wait until the server answers one image; Unavailable, with a reason, if it never does."""
    message = encode_calls(protocol, setting.model, [setting.image], 1)[0]
    give_up = time.monotonic() + _START_TIMEOUT_S
    failure = "no call was made"
    while time.monotonic() < give_up and process.poll() is None:
        try:
            answer = asyncio.run(_ask(protocol, address, message))
        except Exception as error:  # refused, reset, not loaded yet: whatever the library raises
            failure = reason(error)
            time.sleep(_POLL_S)
        else:
            if b'"error"' in answer:
                raise Unavailable(f"answers {answer[:300].decode(errors='replace')}")
            return Running(address, process.pid)
    state = "ended" if process.poll() is not None else "gave no answer"
    raise Unavailable(f"{state}: {_last_line(log) or failure}")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""


async def _ask(protocol: str, address: str, message: bytes) -> bytes:
    connections = await connect(protocol, address, calls=1)
    try:
        async with asyncio.timeout(_START_TIMEOUT_S / 4):
            return await connections.calls[0](message)
    finally:
        await connections.close()
