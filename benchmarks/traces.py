"""What traces cost: processor time of a call with traces off, for 1 % of the calls, and for all.

    python -m benchmarks.traces [--engine direct] [--seconds 170] [--calls 250]

Three servers take turns, and those that wait are held, so that they take no time from the one that
is measured. The turns are short, and every second round is in the opposite order, so that what
disturbs the machine meets all alike; the ratio is one of sums, its interval a bootstrap over
rounds. The collector is part of the load, not of a server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.archives import build_or_take
from benchmarks.load import read_payload
from benchmarks.machine import describe_machine
from benchmarks.processes import end_family, family, hold, release
from benchmarks.protocols import encode_calls
from benchmarks.ratios import Ratio

__all__ = ["main"]

_ROOT = Path(__file__).parent.parent
_START_S = 120.0
_PREDICTIONS = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
_WAYS: Mapping[str, Mapping[str, str]] = {
    "off": {},
    "1 %": {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
    "100 %": {"OTEL_TRACES_SAMPLER": "parentbased_always_on"},
}


class _Sink(BaseHTTPRequestHandler):
    """A collector that takes everything and keeps nothing."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def handle(self) -> None:
        """As its base; a held server that ends may cut its connection."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextlib.contextmanager
def _collector() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Sink) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def _server(
    store: Path, engine: str, environment: Mapping[str, str]
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Yield the address of a server, and its process."""
    with tempfile.TemporaryDirectory(prefix="medserve-bench-") as folder:
        ready = Path(folder, "ready.json")
        ports = ["gateway-port", "page-port", "gateway-metrics-port"]
        ports += [] if engine == "direct" else ["port", "metrics-port"]
        command = [sys.executable, "-m", "medserve", "serve", f"--engine={engine}"]
        command += [f"--store={store}", f"--ready-file={ready}", "--log-level=warning"]
        command += [f"--{port}=0" for port in ports]
        process = subprocess.Popen(
            command, cwd=_ROOT, env={**os.environ, **environment}, stdout=subprocess.DEVNULL
        )
        try:
            yield _await_address(ready, process), process
        finally:
            release(process.pid)
            end_family(process.pid)
            process.wait()


def _await_address(ready: Path, process: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        if ready.exists() and (text := ready.read_text(encoding="utf-8")):
            content = json.loads(text)
            return str(content.get("gateway", content)["grpc"])
        time.sleep(0.05)
    raise SystemExit("the server did not start")


async def _ask(address: str, messages: Sequence[bytes], calls: int) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        predict = channel.unary_unary(
            _PREDICTIONS, request_serializer=None, response_deserializer=None
        )
        for number in range(calls):
            await predict(messages[number % len(messages)], timeout=30)


def _cpu_ms(address: str, pid: int, messages: Sequence[bytes], calls: int) -> float:
    """Return the processor time that the server takes for one call of a lone caller."""
    before = _cpu_s(pid)
    asyncio.run(_ask(address, messages, calls))
    spent = sum(cpu_s - before.get(each, 0.0) for each, cpu_s in _cpu_s(pid).items())
    return 1000 * spent / calls


def _cpu_s(pid: int) -> dict[int, float]:
    """Processor time of each process of a server; what one had used goes when it ends."""
    found = {}
    for process in family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


def measure(options: argparse.Namespace, scratch: Path) -> list[dict[str, float]]:
    """Return processor time of a call in milliseconds, by round and way."""
    store = scratch / "served"
    store.mkdir()
    shutil.copy(build_or_take(options.archive, options.model, scratch), store)  # it alone is served
    images = read_payload(_ROOT / "models" / options.model / "examples")
    messages = encode_calls("predictions", options.model, images, 1)
    rounds: list[dict[str, float]] = []
    with _collector() as endpoint, contextlib.ExitStack() as stack:
        servers = {}
        for way, environment in _WAYS.items():
            told = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint} if environment else {}
            found = _server(store, options.engine, {**environment, **told})
            address, process = stack.enter_context(found)
            _cpu_ms(address, process.pid, messages, options.calls)
            servers[way] = address, process.pid
            hold(process.pid)
        end = time.monotonic() + options.seconds
        while time.monotonic() < end or not rounds:
            row = {}
            for way in list(servers)[:: -1 if len(rounds) % 2 else 1]:
                address, pid = servers[way]
                release(pid)
                row[way] = _cpu_ms(address, pid, messages, options.calls)
                hold(pid)
            rounds.append(row)
    return rounds


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and write a JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", choices=("direct", "torchserve"), default="direct")
    parser.add_argument("--model", default="mednist", help="a room of classes")
    parser.add_argument("--archive", type=Path, help="a .mar; built from the room if none is given")
    parser.add_argument("--seconds", type=float, default=170.0, help="for all rounds together")
    parser.add_argument("--calls", type=int, default=250, help="of each way and round")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench-traces.json"))
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    with tempfile.TemporaryDirectory(prefix="medserve-bench-") as scratch:
        rounds = measure(options, Path(scratch))
    ratios = {}
    table = Table("traces", "CPU ms a call", "ratio to off", box=None)
    for way in _WAYS:
        ratio = Ratio.of_pairs([([each["off"]], [each[way]]) for each in rounds], sum)
        ratios[way] = asdict(ratio)
        spent = sum(each[way] for each in rounds) / len(rounds)
        table.add_row(way, f"{spent:.3f}", ratio.format())
    console.print(table)
    console.print(f"{len(rounds)} rounds of {options.calls} calls a way")
    content = {
        "machine": describe_machine(), "engine": options.engine, "calls": options.calls,
        "ratios": ratios, "rounds": rounds,
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
