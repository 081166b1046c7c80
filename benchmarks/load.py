"""Closed-loop load on one server, from a process of its own; prints one JSON object.

    python -m benchmarks.load --protocol predictions --address 127.0.0.1:7070 --model mednist \
        --payload DIR --calls 32 --seconds 4 [--images-per-call 16] [--server-pid PID]

Keeps exactly `--calls` calls in flight: a new one starts when one ends. Every message is encoded
before the clock starts and answers are only scanned for errors, so that the client takes little of
the cores that it shares with the server; what it takes is reported.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.processes import Usage, family_usage
from benchmarks.protocols import Call, connect, encode_calls, reason
from benchmarks.ratios import percentile

__all__ = ["LoadPlan", "Measurement", "read_payload", "run_load"]

_MAX_WARMUP_S = 120.0


@dataclass(frozen=True)
class LoadPlan:
    """What to send where, and for how long."""

    protocol: str  # predictions | oip | http
    address: str  # host:port
    model: str
    payload: Path  # one file, or a folder of files sent in turn
    calls: int = 1  # in flight
    images_per_call: int = 1
    seconds: float = 4.0
    warmup_s: float = 1.0
    server_pid: int | None = None


@dataclass(frozen=True)
class Measurement:
    """What one closed loop saw; rates and CPU times are per image, latencies per call."""

    images: int
    seconds: float
    images_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int
    client_cpu_ms: float
    server_cpu_ms: float | None = None
    server_pss_mib: float | None = None
    sample: str = ""


@dataclass
class _Window:
    """The counted part of a run, shared by all loops."""

    opens: float = float("inf")
    closes: float = float("inf")
    latencies_ms: list[float] = field(default_factory=list)
    errors: int = 0
    failure: str = ""
    sample: bytes = b""


def read_payload(path: Path) -> list[bytes]:
    """Bytes of one file, or of every file of a folder in order of name."""
    files = [path] if path.is_file() else sorted(each for each in path.glob("*") if each.is_file())
    if not files:
        raise SystemExit(f"expected at least one image in {path}")
    return [file.read_bytes() for file in files]


async def run_load(plan: LoadPlan) -> Measurement:
    """Warm up, keep the calls in flight for `plan.seconds`, and count what ended in that time."""
    messages = encode_calls(
        plan.protocol, plan.model, read_payload(plan.payload), plan.images_per_call
    )
    connections = await connect(plan.protocol, plan.address, plan.calls)
    window = _Window()
    gc.disable()  # a collection in the middle would be charged to the server
    loops = [
        asyncio.create_task(_loop(call, messages, first, window))
        for first, call in enumerate(connections.calls)
    ]
    try:
        await asyncio.sleep(min(plan.warmup_s, _MAX_WARMUP_S))
        before, client_before = _usage(plan), time.process_time()
        window.opens = time.perf_counter()
        window.closes = window.opens + plan.seconds
        await asyncio.sleep(plan.seconds)
        client_s = time.process_time() - client_before
        after = _usage(plan)
    finally:
        gc.enable()
        for task in loops:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await connections.close()
    return _measurement(plan, window, client_s, before, after)


async def _loop(call: Call, messages: Sequence[bytes], first: int, window: _Window) -> None:
    """One call after the other, until cancelled; the loops begin at different messages."""
    turn = first
    while True:
        started = time.perf_counter()
        failure = ""
        try:
            answer = await call(messages[turn % len(messages)])
        except asyncio.CancelledError:
            raise
        except Exception as error:  # whatever the peer's library raises is one failed call
            answer, failure = b"", reason(error)
        ended = time.perf_counter()
        turn += 1
        if failure or b'"error"' in answer or not answer:
            window.failure = failure or answer[:200].decode(errors="replace") or "empty answer"
            if window.opens <= ended <= window.closes:
                window.errors += 1
            await asyncio.sleep(0.01)  # a dead server must not turn this into a busy loop
        elif window.opens <= ended <= window.closes:
            window.latencies_ms.append((ended - started) * 1e3)
            window.sample = answer


def _usage(plan: LoadPlan) -> Usage | None:
    return None if plan.server_pid is None else family_usage(plan.server_pid)


def _measurement(
    plan: LoadPlan, window: _Window, client_s: float, before: Usage | None, after: Usage | None
) -> Measurement:
    if not window.latencies_ms:
        raise SystemExit(f"no call was answered in {plan.seconds} s: {window.failure or 'timeout'}")
    images = len(window.latencies_ms) * plan.images_per_call
    server_ms = None
    if before is not None and after is not None:
        server_ms = (after.cpu_s - before.cpu_s) * 1e3 / images
    return Measurement(
        images=images,
        seconds=plan.seconds,
        images_per_s=images / plan.seconds,
        p50_ms=percentile(window.latencies_ms, 0.50),
        p99_ms=percentile(window.latencies_ms, 0.99),
        errors=window.errors,
        client_cpu_ms=client_s * 1e3 / images,
        server_cpu_ms=server_ms,
        server_pss_mib=None if after is None else after.pss_mib,
        sample=window.sample[:160].decode(errors="replace"),
    )


def _plan(arguments: Sequence[str] | None) -> LoadPlan:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--protocol", choices=["predictions", "oip", "http"], required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--model", default="mednist")
    parser.add_argument("--payload", type=Path, required=True)
    parser.add_argument("--calls", type=int, default=1)
    parser.add_argument("--images-per-call", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--warmup-s", type=float, default=1.0)
    parser.add_argument("--server-pid", type=int)
    return LoadPlan(**vars(parser.parse_args(arguments)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one load and print its measurement."""
    measurement: dict[str, Any] = asdict(asyncio.run(run_load(_plan(arguments))))
    print(json.dumps(measurement))


if __name__ == "__main__":
    main()
