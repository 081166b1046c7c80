"""What callers notice of releases: versions that are exchanged, and calls that are copied to one.

    python -m benchmarks.releases swaps --archives tiny-1.0.mar tiny-2.0.mar --file image.png
    python -m benchmarks.releases shadow --archives tiny-1.0.mar tiny-2.0.mar --file image.png

Each swap loads the other version beside, proves it, makes it the default, and removes the one
before when its calls have ended. Callers name no version; an answer is wrong when it fails, or
names a version that was not the default at any moment between the call and its answer. The other
measurement calls without and with copies in turns, and forms the ratio round by round.
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
from pathlib import Path
from statistics import median
from typing import Any

import grpc

from benchmarks.ratios import percentile
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
    """What live calls took without and with copies of a share of them, round by round.

    Attributes:
        rounds: Pairs of measurements, taken in turns.
        calls: Of all of them.
        failed: Calls without a good answer.
        p99_ms: Median over the rounds, without and with copies.
        p50_ms: The same.
        p99_ratio: Median over the rounds of with / without.
        copies: Answers that were compared.
        dropped: Copies that found no idle moment.
    """

    rounds: int
    calls: int
    failed: int
    p99_ms: tuple[float, float]
    p50_ms: tuple[float, float]
    p99_ratio: float
    copies: int
    dropped: int


def shadow_beside(
    server: Serving, model: str, version: str, file: bytes, *, rounds: int, seconds: float,
    threads: int, pause_s: float, share: float,
) -> ShadowResult:  # fmt: skip
    """Measure live calls without and with copies to another version, in turns."""
    took: dict[bool, list[list[float]]] = {False: [], True: []}
    failed = 0
    server.manager.add(f"{model}-{version}.mar")
    for turn in range(2 * rounds + 1):  # the first one warms up
        copying = turn % 2 == 0
        if copying:
            server.manager.set_route(model, shadow=version, shadow_share=share)
        else:
            server.manager.set_route(model)
        callers = Callers(server.address, model, file, threads, pause_s)
        with callers:
            time.sleep(seconds)
        if turn:
            took[copying].append([done - start for start, done, _ in callers.answers])
            failed += len(callers.failures)
    found = server.manager.evidence(model)
    p50, p99 = (
        {copying: [1000 * percentile(each, share) for each in took[copying]] for copying in took}
        for share in (0.5, 0.99)
    )
    ratios = [beside / alone for alone, beside in zip(p99[False], p99[True], strict=True)]
    return ShadowResult(
        rounds,
        sum(map(len, [*took[False], *took[True]])),
        failed,
        (median(p99[False]), median(p99[True])),
        (median(p50[False]), median(p50[True])),
        median(ratios),
        found["pairs"],
        found["dropped"],
    )


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
    shadow.add_argument("--rounds", type=int, default=7)
    shadow.add_argument("--seconds", type=float, default=8.0, help="of each half of a round")
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
                server, first.name, second.version, file, rounds=given.rounds,
                seconds=given.seconds, threads=given.threads, pause_s=given.pause_ms / 1000,
                share=given.share,
            )  # fmt: skip
            good = found.failed == 0 and found.p99_ratio <= _MOST_RATIO
    print(json.dumps(asdict(found), indent=2))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
