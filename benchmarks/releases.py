"""Exchange two versions of a model under load, and count what the callers notice: nothing.

    python -m benchmarks.releases swaps --swaps 20 --calls 10000

Each swap loads the other version beside, proves it, makes it the default, and removes the one
before when its calls have ended. Callers name no version; an answer is wrong when it fails, or
names a version that was not the default at any moment between the call and its answer.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc

from benchmarks.ratios import percentile
from medserve.client.management import Manager
from medserve.wire import inference_pb2, inference_pb2_grpc

__all__ = ["Callers", "SwapResult", "main", "swap_under_load"]

_TIMEOUT_S = 60.0  # for one call
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


def main() -> int:
    """Run one measurement against a gateway that runs, and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    swaps = commands.add_parser("swaps", help="exchange two versions under load")
    swaps.add_argument("--address", default="127.0.0.1:8001")
    swaps.add_argument("--model", required=True)
    swaps.add_argument("--versions", nargs=2, required=True, help="the default, and the other")
    swaps.add_argument("--file", type=Path, required=True, help="what the callers send")
    swaps.add_argument("--swaps", type=int, default=40)
    swaps.add_argument("--calls", type=int, default=10_000)
    swaps.add_argument("--threads", type=int, default=4)
    given = parser.parse_args()
    callers = Callers(given.address, given.model, given.file.read_bytes(), given.threads)
    found = swap_under_load(
        callers, Manager(given.address), tuple(given.versions), given.swaps, given.calls
    )
    print(json.dumps(asdict(found), indent=2))
    return 0 if found.failed == found.wrong_version == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
