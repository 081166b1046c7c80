"""What callers notice of releases: versions that are exchanged, and calls that are copied to one.

    python -m benchmarks.releases swaps --archives tiny-1.0.mar tiny-2.0.mar --file image.png
    python -m benchmarks.releases shadow --archives tiny-1.0.mar tiny-2.0.mar --file image.png

Each swap loads the other version beside, proves it, makes it the default, and removes the one
before when its calls have ended. Callers name no version; an answer is wrong when it fails, or
names a version that was not the default at any moment between the call and its answer. The other
measurement calls without and with copies in short turns, every second pair in the opposite order,
and divides the 99th percentile of all calls beside copies by that of all others; the interval is a
bootstrap over the pairs. It takes less than four minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from benchmarks.ratios import Ratio, percentile
from medserve.archive.read import inspect_archive
from medserve.client.management import Manager
from medserve.errors import ServerFailedError
from medserve.wire import inference_pb2, inference_pb2_grpc

__all__ = [
    "Callers",
    "Serving",
    "ShadowResult",
    "SwapResult",
    "main",
    "serving",
    "shadow_beside",
    "swap_under_load",
]

_TIMEOUT_S = 60.0  # for one call
_START_S = 300.0
_MOST_RATIO = 1.05  # of the p99 of live calls beside copies
_LONGEST_S = 600.0  # for the calls of one swap


@dataclass
class Callers:
    """Threads that call one model over and over, each over a connection of its own.

    Attributes:
        answers: When a call began, when it was answered, and the version that answered.
        failures: What went wrong with the others.
    """

    address: str
    model: str
    file: bytes
    threads: int = 4
    pause_s: float = 0.0  # between an answer and the next call of a thread
    answers: list[tuple[float, float, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._running = [threading.Thread(target=self._call) for _ in range(self.threads)]

    def __enter__(self) -> Callers:
        for thread in self._running:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._running:
            thread.join(2 * _TIMEOUT_S)

    @property
    def calls(self) -> int:
        """How many calls have ended."""
        return len(self.answers) + len(self.failures)

    def _call(self) -> None:
        request = inference_pb2.PredictionsRequest(model_name=self.model, input={"data": self.file})
        with grpc.insecure_channel(self.address) as channel:
            predict = inference_pb2_grpc.InferenceAPIsServiceStub(channel).Predictions
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    content = json.loads(predict(request, timeout=_TIMEOUT_S).prediction)
                except grpc.RpcError as error:
                    self.failures.append(f"{error.code().name}: {error.details()}")
                    continue
                if content.get("status") == "ok":
                    self.answers.append((began, time.monotonic(), str(content["version"])))
                else:
                    self.failures.append(json.dumps(content))
                self._stop.wait(self.pause_s)


@dataclass(frozen=True)
class SwapResult:
    """What the callers saw.

    Attributes:
        swaps: How often one version took the place of the other.
        calls: All that ended.
        failed: Those without a good answer.
        wrong_version: Answers of a version that was not the default while the call ran.
        p50_ms: Of good answers.
        p99_ms: The same.
        seconds: From the first swap to the last.
        reasons: Of the failures, each kind once.
    """

    swaps: int
    calls: int
    failed: int
    wrong_version: int
    p50_ms: float
    p99_ms: float
    seconds: float
    reasons: tuple[str, ...] = ()


def swap_under_load(
    callers: Callers, manager: Manager, versions: tuple[str, str], swaps: int, calls: int = 0
) -> SwapResult:
    """Exchange two versions `swaps` times, while at least `calls` calls are made.

    Args:
        callers: Who calls.
        manager: Who changes what is served.
        versions: The default version at the beginning, and the other one, which lies in the store.
        swaps: How often.
        calls: So many are waited for in all.
    """
    began = time.monotonic()
    spans = [[versions[0], began, float("inf")]]  # version, when it may answer first and last
    current, other = versions
    with callers:
        for swap in range(swaps):
            manager.add(f"{callers.model}-{other}.mar")
            spans.append([other, time.monotonic(), float("inf")])
            manager.set_default(callers.model, other)
            spans[-2][2] = time.monotonic()
            manager.remove(callers.model, current)
            current, other = other, current
            _await(callers, calls * (swap + 1) // swaps)
        _await(callers, calls)
    took_s = [done - start for start, done, _ in callers.answers]
    return SwapResult(
        swaps,
        callers.calls,
        len(callers.failures),
        sum(not _allowed(spans, *answer) for answer in callers.answers),
        1000 * percentile(took_s, 0.5),
        1000 * percentile(took_s, 0.99),
        time.monotonic() - began,
        tuple(sorted(set(callers.failures)))[:5],
    )


def _allowed(spans: list[list[Any]], began: float, done: float, version: str) -> bool:
    return any(each == version and start <= done and began <= end for each, start, end in spans)


def _await(callers: Callers, calls: int) -> None:
    end = time.monotonic() + _LONGEST_S
    while callers.calls < calls and time.monotonic() < end:
        time.sleep(0.02)


@dataclass(frozen=True)
class ShadowResult:
    """What live calls took without and with copies of a share of them.

    Attributes:
        pairs: Of turns without and with copies.
        calls: Of all of them.
        failed: Calls without a good answer.
        p50_ms: Without and with copies.
        p99_ms: The same.
        p50_ratio: With / without.
        p99_ratio: The same.
        copies: Answers that were compared.
        dropped: Copies that found no idle moment.
    """

    pairs: int
    calls: int
    failed: int
    p50_ms: tuple[float, float]
    p99_ms: tuple[float, float]
    p50_ratio: Ratio
    p99_ratio: Ratio
    copies: int
    dropped: int


def shadow_beside(
    server: Serving, model: str, version: str, file: bytes, *, pairs: int, seconds: float,
    threads: int, pause_s: float, share: float,
) -> ShadowResult:  # fmt: skip
    """Measure live calls without and with copies to another version, in turns."""
    took: list[tuple[list[float], list[float]]] = []
    failed = 0
    server.manager.add(f"{model}-{version}.mar")

    def turn(copying: bool) -> list[float]:
        nonlocal failed
        if copying:
            server.manager.set_route(model, shadow=version, shadow_share=share)
        else:
            server.manager.set_route(model)
        callers = Callers(server.address, model, file, threads, pause_s)
        with callers:
            time.sleep(seconds)
        failed += len(callers.failures)
        return [1000 * (done - start) for start, done, _ in callers.answers]

    turn(copying=True)  # to warm up
    failed = 0
    for pair in range(pairs):
        first = pair % 2 == 1
        one, other = turn(copying=first), turn(copying=not first)
        took.append((other, one) if first else (one, other))
    found = server.manager.evidence(model)
    ways = [[x for pair in took for x in pair[side]] for side in (0, 1)]
    p50_ms, p99_ms = (
        (percentile(ways[0], share), percentile(ways[1], share)) for share in (0.5, 0.99)
    )
    p50_ratio, p99_ratio = (
        Ratio.of_pairs(took, partial(percentile, share=share)) for share in (0.5, 0.99)
    )
    return ShadowResult(
        pairs, sum(map(len, ways)), failed, p50_ms, p99_ms, p50_ratio, p99_ratio,
        found["pairs"], found["dropped"],
    )  # fmt: skip


@dataclass(frozen=True)
class Serving:
    """A server with its gateway, and the store that it may load from."""

    address: str
    manager: Manager


@contextlib.contextmanager
def serving(archives: Sequence[Path], engine: str) -> Iterator[Serving]:
    """Serve the first archive; the others lie in its store, out of the way of the start."""
    with tempfile.TemporaryDirectory() as folder:
        store, ready = Path(folder) / "store", Path(folder) / "ready.json"
        store.mkdir()
        shutil.copy(archives[0], store)
        command = [sys.executable, "-m", "medserve.cli.main", "serve", "--store", str(store)]
        command += ["--engine", engine, "--port", "0", "--metrics-port", "0"]
        process = subprocess.Popen([*command, "--ready-file", str(ready)], stdout=sys.stderr)
        try:
            end = time.monotonic() + _START_S
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > end:
                    raise ServerFailedError("the server did not start; its output says why")
                time.sleep(0.1)
            for archive in archives[1:]:
                shutil.copy(archive, store)
            address = json.loads(ready.read_text(encoding="utf-8"))["gateway"]["grpc"]
            yield Serving(address, Manager(address))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def main() -> int:
    """Start a server, run one measurement against it, and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    swaps = commands.add_parser("swaps", help="exchange two versions under load")
    swaps.add_argument("--swaps", type=int, default=40, help="20 there and 20 back")
    swaps.add_argument("--calls", type=int, default=10_000)
    shadow = commands.add_parser("shadow", help="what copies to another version cost live calls")
    shadow.add_argument("--pairs", type=int, default=40, help="of turns without and with copies")
    shadow.add_argument("--seconds", type=float, default=2.5, help="of each turn")
    shadow.add_argument("--share", type=float, default=0.2)
    shadow.add_argument("--pause-ms", type=float, default=20.0, help="between calls of a thread")
    for command, threads in ((swaps, 4), (shadow, 2)):
        command.add_argument(
            "--archives", type=Path, nargs=2, required=True, help="the default, and the other"
        )
        command.add_argument("--file", type=Path, required=True, help="what the callers send")
        command.add_argument("--engine", default="torchserve", choices=("torchserve", "direct"))
        command.add_argument("--threads", type=int, default=threads)
    given = parser.parse_args()
    first, second = (inspect_archive(path) for path in given.archives)
    file = given.file.read_bytes()
    found: SwapResult | ShadowResult
    with serving(given.archives, given.engine) as server:
        if given.command == "swaps":
            callers = Callers(server.address, first.name, file, given.threads)
            versions = (first.version, second.version)
            found = swap_under_load(callers, server.manager, versions, given.swaps, given.calls)
            good = found.failed == found.wrong_version == 0
        else:
            found = shadow_beside(
                server, first.name, second.version, file, pairs=given.pairs,
                seconds=given.seconds, threads=given.threads, pause_s=given.pause_ms / 1000,
                share=given.share,
            )  # fmt: skip
            good = found.failed == 0 and found.p99_ratio.value <= _MOST_RATIO
    print(json.dumps(asdict(found), indent=2))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
