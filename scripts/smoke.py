"""The smoke test of the images: every model answers, and nothing that runs is lost at the stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import grpc

from medserve.archive import ArchiveInfo, golden_input, inspect_archive
from medserve.errors import ServerFailedError
from scripts.images import ROOT
from scripts.stack import Stack

__all__ = ["drain", "inputs", "predict_all", "smoke"]

Report = Callable[[str], None]
_PACKED = 200  # files in one call: long enough to be under way when the signal arrives
_CALLS = 2  # of them at one time: what the gateway gives the engine at once


def smoke(store: Path, report: Report) -> None:
    """Start the project, ask every model, stop both servers while they work.

    Raises:
        ServerFailedError: something did not come up, did not answer or was cut off.
    """
    archives = [inspect_archive(path) for path in sorted(store.glob("*.mar"))]
    with Stack(store) as stack:
        report("docker compose up --wait")
        started = time.monotonic()
        stack.up()
        report(f"healthy after {time.monotonic() - started:.1f} s")
        predict_all(stack, archives, report)
        for service in ("gateway", "torchserve"):
            drain(stack, service, archives[0], report)
    report("removed")


def predict_all(stack: Stack, archives: list[ArchiveInfo], report: Report) -> None:
    """One Predictions call for every input of every model."""
    for archive in archives:
        for title, data in inputs(archive):
            started = time.perf_counter()
            try:
                answer = stack.predict(archive.name, data)
            except grpc.RpcError as error:
                raise ServerFailedError(f"{archive.name}, {title}: {_details(error)}") from error
            took_ms = 1000 * (time.perf_counter() - started)
            shown = answer[:60] if answer.startswith(b"{") else b"%d bytes" % len(answer)
            report(f"{archive.name}: {title}: {shown.decode()} in {took_ms:.0f} ms")


def inputs(archive: ArchiveInfo) -> list[tuple[str, bytes]]:
    """The golden input and, in a checkout, the room's examples."""
    folder = ROOT / "models" / archive.name / "examples"
    examples = sorted(path for path in folder.glob("*") if path.is_file())
    found = [("golden input", golden_input(archive.path))]
    return found + [(path.name, path.read_bytes()) for path in examples]


def drain(stack: Stack, service: str, archive: ArchiveInfo, report: Report) -> None:
    """SIGTERM to one service while calls are under way: all are answered, the exit code is 0.

    Raises:
        ServerFailedError: a call was cut off, or none was running when the signal came.
    """
    container = stack.container(service)
    items = [golden_input(archive.path)] * _PACKED
    with ThreadPoolExecutor(_CALLS) as pool:
        calls = [pool.submit(stack.predict, archive.name, *items) for _ in range(_CALLS)]
        stack.wait("the engine has taken the calls", lambda: _in_flight(stack) == _CALLS)
        container.kill(signal="SIGTERM")
        running = sum(not call.done() for call in calls)
        lost = [_outcome(call) for call in calls]
    if not running:
        raise ServerFailedError(f"{service}: the calls had ended before the signal came")
    if failures := [each for each in lost if each]:
        raise ServerFailedError(f"{service}: a call was cut off: {failures[0]}")
    stack.wait(f"{service} has ended", lambda: not stack.state(service)["Running"])
    code = stack.state(service)["ExitCode"]
    if code:
        raise ServerFailedError(f"{service}: expected exit code 0 after SIGTERM, got {code}")
    report(f"{service}: {running} running calls were answered after SIGTERM, exit code 0")
    container.start()
    stack.wait(f"{service} is back", lambda: stack.health(service) == "healthy")


def _in_flight(stack: Stack) -> int:
    """Calls in the engine, as the gateway counts them."""
    script = (
        "import re, urllib.request as r; "
        "t = r.urlopen('http://127.0.0.1:8002/metrics').read().decode(); "
        r"print(sum(map(float, re.findall(r'^medserve_gateway_in_flight\S* (\S+)', t, re.M))))"
    )
    code, output = stack.run_inside("pod", "python", "-c", script)
    return int(float(output)) if code == 0 else -1


def _outcome(call: Future[bytes]) -> str:
    """What went wrong with a call, "" if nothing."""
    error = call.exception()
    return _details(error) if error is not None else ""


def _details(error: BaseException) -> str:
    if isinstance(error, grpc.Call):
        return f"{error.code().name} {error.details()}"
    return str(error)
