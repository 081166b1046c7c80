"""What the gateway costs: the same calls to TorchServe and through the gateway, in turns.

A bare proxy takes its turn too: what it adds is gRPC's own, and no gateway in Python adds less.

    python -m benchmarks.gateway --rounds 7 --seconds 4
    python -m benchmarks.gateway --uploads 200          # memory under many large uploads

All ways lead to the same TorchServe and the same worker. Neighbours in a round meet the same
machine, so differences and ratios are formed round by round. Load, gateway and server share the
cores, as the report says.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.archives import build_or_take
from benchmarks.load import Measurement
from benchmarks.machine import describe_machine
from benchmarks.processes import end_family
from benchmarks.ratios import Spread
from benchmarks.serve import MeasurementError
from medserve.engine.torchserve.lifecycle import Server, ServerConfig
from medserve.wire import inference_pb2, inference_pb2_grpc

__all__ = ["PATIENT", "Options", "gateway_before", "main"]

# Flags of a gateway before a server that is held at times, and that gets large messages.
PATIENT = (
    *("--canary-every-s=3600", "--canary-timeout-s=3600"),
    *("--max-message-mb=256", "--memory-mb=1024"),
)

_ROOT = Path(__file__).parent.parent
_START_S = 120.0
_WARMUP_S = 1.0
_FIRST_WARMUP_S = 8.0
_MIB = 2**20
_MOST_ADDED_MS = 1.0
_LEAST_SHARE = 0.90


@dataclass(frozen=True)
class Options:
    """What the flags say."""

    rounds: int = 7
    seconds: float = 4.0
    calls: int = 4  # packed calls in flight
    images: int = 16  # in each of them
    workers: int = 1
    model: str = "mednist"
    archive: Path | None = None
    uploads: int = 0  # instead of the comparison
    upload_mb: int = 20
    memory_mb: int = 256  # the gateway's setting
    out: Path = Path("outputs/bench-gateway.json")


@dataclass(frozen=True)
class Round:
    """The same load on each way, one after the other."""

    direct: Measurement
    proxy: Measurement
    gateway: Measurement
    load1: float


def compare(options: Options, console: Console) -> dict[str, object]:
    """Lone calls and packed calls, in turns; the content of the JSON file."""
    lone: list[Round] = []
    packed: list[Round] = []
    payload = _ROOT / "models" / options.model / "examples"
    with _all_ways(options) as ways:
        for way in ways:  # Java compiles what runs often
            _load(way, payload, 4, 16, (0.5, _FIRST_WARMUP_S))
        for index in range(options.rounds):
            # The way that goes first changes: what drifts within a round favours neither.
            turn = 1 if index % 2 == 0 else -1
            for rounds, calls, images in ((lone, 1, 1), (packed, options.calls, options.images)):
                load1 = os.getloadavg()[0]
                times = (options.seconds, _WARMUP_S)
                try:
                    found = [_load(way, payload, calls, images, times) for way in ways[::turn]]
                except MeasurementError as error:  # one lost point is no reason to lose the rest
                    console.print(f"lost, round {index + 1}: {error}", highlight=False)
                    continue
                direct, proxy, gateway = found[::turn]
                rounds.append(Round(direct, proxy, gateway, load1))
            console.print(f"round {index + 1}: load {os.getloadavg()[0]:.1f}", highlight=False)
    added = Spread.of([each.gateway.p50_ms - each.direct.p50_ms for each in lone])
    by_proxy = Spread.of([each.proxy.p50_ms - each.direct.p50_ms for each in lone])
    share = Spread.of([each.gateway.images_per_s / each.direct.images_per_s for each in packed])
    cpu = {name: _over_proxy(rounds) for name, rounds in (("lone", lone), ("packed", packed))}
    _show(console, lone, packed)
    _judge(console, "added p50 at one in flight, ms", added, added.median <= _MOST_ADDED_MS)
    console.print(f"the same of a bare proxy, ms: {by_proxy.format()}", highlight=False)
    _judge(console, "share of direct throughput, packed", share, share.median >= _LEAST_SHARE)
    for name, ratio in cpu.items():
        console.print(f"CPU over the bare proxy's, {name}: {ratio.format()}", highlight=False)
    return {
        "machine": describe_machine(),
        "settings": {"rounds": options.rounds, "seconds": options.seconds}
        | {"calls": options.calls, "images": options.images, "workers": options.workers},
        "added_p50_ms": vars(added),
        "added_by_a_proxy_p50_ms": vars(by_proxy),
        "share_of_direct": vars(share),
        "cpu_over_proxy": {name: vars(found) for name, found in cpu.items()},
        "lone": [_row(each) for each in lone],
        "packed": [_row(each) for each in packed],
    }


def upload(options: Options, console: Console) -> dict[str, object]:
    """Send many large requests at once and watch the gateway's memory."""
    with _served(options) as server, gateway_before(server, _memory(options)) as (address, pid):
        gateway = psutil.Process(pid)
        before = gateway.memory_info().rss
        started = time.perf_counter()
        peak, outcomes = asyncio.run(_send_uploads(options, address, gateway))
        took_s = time.perf_counter() - started
    result: dict[str, object] = {
        "uploads": options.uploads,
        "upload_mib": options.upload_mb,
        "memory_setting_mib": options.memory_mb,
        "before_mib": round(before / _MIB),
        "peak_mib": round(peak / _MIB),
        "seconds": round(took_s, 1),
        "outcomes": outcomes,
    }
    for name, value in result.items():
        console.print(f"{name}: {value}", highlight=False)
    return {"machine": describe_machine(), "uploads": result}


async def _send_uploads(
    options: Options, address: str, gateway: psutil.Process
) -> tuple[int, dict[str, int]]:
    """Peak memory of the gateway, and how often each status came."""
    message = inference_pb2.PredictionsRequest(
        model_name=options.model, input={"data": bytes(options.upload_mb * _MIB)}
    )
    outcomes: dict[str, int] = {}
    peak = 0
    async with grpc.aio.insecure_channel(address) as channel:
        predict = inference_pb2_grpc.InferenceAPIsServiceStub(channel).Predictions

        async def one() -> None:
            try:
                await predict(message, timeout=600)
                status = "OK"
            except grpc.aio.AioRpcError as error:
                status = error.code().name
            outcomes[status] = outcomes.get(status, 0) + 1

        tasks = [asyncio.create_task(one()) for _ in range(options.uploads)]
        while not all(task.done() for task in tasks):
            peak = max(peak, gateway.memory_info().rss)
            await asyncio.sleep(0.02)
    return peak, outcomes


@contextlib.contextmanager
def _all_ways(options: Options) -> Iterator[list[tuple[str, int | None]]]:
    """The address and process of TorchServe, of the bare proxy and of the gateway."""
    with (
        _served(options) as server,
        _proxy_before(server) as proxy,
        gateway_before(server, _memory(options)) as gateway,
    ):
        yield [(server.inference_address, server.pid), proxy, gateway]


@contextlib.contextmanager
def _served(options: Options) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="medserve-bench-") as folder:
        archive = build_or_take(options.archive, options.model, Path(folder))
        config = ServerConfig(
            store=archive.parent, models=(options.model,), workers=options.workers
        )
        with Server(config) as server:
            yield server


def _memory(options: Options) -> str:
    return f"--memory-mb={options.memory_mb}"


@contextlib.contextmanager
def gateway_before(server: Server, *flags: str) -> Iterator[tuple[str, int]]:
    """A gateway in a process of its own: its address and process id."""
    config = server.config
    command = ["medserve.cli.main", "gateway", "--no-page"]
    command += ["--grpc-port=0", "--metrics-port=0", f"--store={config.store}"]
    command += [f"--models={','.join(config.models)}", f"--engine={server.inference_address}"]
    command += [f"--engine-management={server.management_address}"]
    command += ["--log-level=warning", "--upload-timeout-s=600", *flags]
    with _running(command) as found:
        yield found


@contextlib.contextmanager
def _proxy_before(server: Server) -> Iterator[tuple[str, int]]:
    """The same of a bare proxy."""
    command = ["benchmarks.peers.grpc_proxy", f"--engine={server.inference_address}"]
    with _running(command) as found:
        yield found


@contextlib.contextmanager
def _running(command: Sequence[str]) -> Iterator[tuple[str, int]]:
    """A module with its flags, as a process that writes its address to a ready file."""
    with tempfile.TemporaryDirectory(prefix="medserve-bench-") as folder:
        ready = Path(folder, "ready.json")
        process = subprocess.Popen(
            [sys.executable, "-m", *command, f"--ready-file={ready}"],
            cwd=_ROOT,
            stdout=subprocess.DEVNULL,
        )
        try:
            yield _await_address(ready, process, command[0]), process.pid
        finally:
            end_family(process.pid)
            process.wait()


def _await_address(ready: Path, process: subprocess.Popen[bytes], name: str) -> str:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        if ready.exists() and (text := ready.read_text(encoding="utf-8")):
            return str(json.loads(text)["grpc"])
        time.sleep(0.05)
    raise SystemExit(f"{name} did not start")


def _load(
    way: tuple[str, int | None], payload: Path, calls: int, images: int, times: tuple[float, float]
) -> Measurement:
    """One closed loop in a process of its own."""
    address, pid = way
    seconds, warmup_s = times
    command = [sys.executable, "-m", "benchmarks.load", "--protocol=predictions"]
    command += [f"--address={address}", f"--payload={payload}", f"--calls={calls}"]
    command += [f"--images-per-call={images}", f"--seconds={seconds}", f"--warmup-s={warmup_s}"]
    command += [f"--server-pid={pid}"] if pid else []
    answer = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT)
    if answer.returncode != 0:
        reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise MeasurementError(f"{address}, {calls} in flight: {reason}")
    return Measurement(**json.loads(answer.stdout))


def _show(console: Console, lone: Sequence[Round], packed: Sequence[Round]) -> None:
    table = Table("load", "way", "images/s", "p50 ms", "p99 ms", "CPU ms an image", box=None)
    for name, rounds in (("lone", lone), ("packed", packed)):
        for way in ("direct", "proxy", "gateway"):
            found = [getattr(each, way) for each in rounds]
            table.add_row(
                name,
                way,
                Spread.of([each.images_per_s for each in found]).format(0),
                Spread.of([each.p50_ms for each in found]).format(),
                Spread.of([each.p99_ms for each in found]).format(1),
                Spread.of([each.server_cpu_ms or 0.0 for each in found]).format(3),
            )
    console.print(table)


def _over_proxy(rounds: Sequence[Round]) -> Spread:
    """The gateway's CPU time over the proxy's: it depends least on what else the machine does."""
    return Spread.of(
        [(each.gateway.server_cpu_ms or 0.0) / (each.proxy.server_cpu_ms or 1.0) for each in rounds]
    )


def _judge(console: Console, what: str, found: Spread, met: bool) -> None:
    console.print(f"{what}: {found.format()}, target {'met' if met else 'missed'}", highlight=False)


def _row(measured: Round) -> dict[str, object]:
    return {
        "direct": _rounded(measured.direct),
        "proxy": _rounded(measured.proxy),
        "gateway": _rounded(measured.gateway),
        "load1": round(measured.load1, 1),
    }


def _rounded(measurement: Measurement) -> dict[str, object]:
    kept = {name: value for name, value in vars(measurement).items() if name != "sample"}
    return {
        name: round(value, 3) if isinstance(value, float) else value for name, value in kept.items()
    }


def _parse(arguments: Sequence[str] | None) -> Options:
    default = Options()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gateway",
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for name in ("rounds", "calls", "images", "workers", "uploads", "upload_mb", "memory_mb"):
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=getattr(default, name), help="number"
        )
    parser.add_argument("--seconds", type=float, default=default.seconds, help="counted time")
    parser.add_argument("--model", default=default.model, help="the room")
    parser.add_argument("--archive", type=Path, help="a .mar; built from the room if none is given")
    parser.add_argument("--out", type=Path, default=default.out, help="JSON file")
    return Options(**vars(parser.parse_args(arguments)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write the JSON file."""
    options = _parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    result = (upload if options.uploads else compare)(options, console)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    console.print(f"written to {options.out}", highlight=False)


if __name__ == "__main__":
    main()
