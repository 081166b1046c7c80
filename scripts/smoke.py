"""The smoke test of the images: every model answers, and nothing that runs is lost at the stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import grpc

from medserve.archive.read import ArchiveInfo, golden_input, inspect_archive
from medserve.errors import ServerFailedError
from medserve.spec import Task
from scripts.images import ROOT
from scripts.stack import Stack

__all__ = ["drain", "inputs", "predict_all", "slowest", "smoke"]

Report = Callable[[str], None]
_PACKED = 250  # images in one call
# At one time. More than one long call may wait in the gateway, and find no engine when it stops.
_CALLS = {"gateway": 3, "torchserve": 1}
_TRIES = 10  # to send the signal while they run


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
        longest = slowest(stack, archives)
        for service in ("gateway", "torchserve"):
            drain(stack, service, longest, report)
    report("removed")


def predict_all(stack: Stack, archives: list[ArchiveInfo], report: Report) -> None:
    """One Predictions call for every input of every model."""
    for archive in archives:
        for title, named in inputs(archive):
            started = time.perf_counter()
            try:
                answer = stack.ask(archive.name, named)
            except grpc.RpcError as error:
                raise ServerFailedError(f"{archive.name}, {title}: {_details(error)}") from error
            took_ms = 1000 * (time.perf_counter() - started)
            shown = answer[:60] if answer.startswith(b"{") else b"%d bytes" % len(answer)
            report(f"{archive.name}: {title}: {shown.decode()} in {took_ms:.0f} ms")


def inputs(archive: ArchiveInfo) -> list[tuple[str, dict[str, bytes]]]:
    """The golden input and, in a checkout, the files among the room's examples."""
    if archive.spec.task is Task.GENERATION:  # asked by parameters; its examples are answers
        return [("golden params", _golden(archive))]
    folder = ROOT / "models" / archive.name / "examples"
    examples = sorted(path for path in folder.glob("*") if path.is_file())
    found = [("golden input", _golden(archive))]
    return found + [(path.name, {"data": path.read_bytes()}) for path in examples]


def _golden(archive: ArchiveInfo) -> dict[str, bytes]:
    key = "params" if archive.spec.task is Task.GENERATION else "data"
    return {key: golden_input(archive.path)}


def drain(stack: Stack, service: str, archive: ArchiveInfo, report: Report) -> None:
    """SIGTERM to one service while calls are under way: all are answered, the exit code is 0.

    Raises:
        ServerFailedError: a call was cut off, or none was running when the signal came.
    """
    container = stack.container(service)
    running, number = 0, _CALLS[service]
    with ThreadPoolExecutor(number) as pool:
        for _ in range(_TRIES):
            took_s = _timed(stack, archive)
            calls = [pool.submit(_call, stack, archive) for _ in range(number)]
            time.sleep(took_s / 2)  # by now they are with the model
            if not any(call.done() for call in calls):
                container.kill(signal="SIGTERM")
                running = sum(not call.done() for call in calls)
                break
        lost = [_outcome(call) for call in calls]
    if not running:
        raise ServerFailedError(f"{service}: {archive.name} answers too fast to be interrupted")
    if failures := [each for each in lost if each]:
        raise ServerFailedError(f"{service}: a call was cut off: {failures[0]}")
    stack.wait(f"{service} has ended", lambda: not stack.state(service)["Running"])
    code = stack.state(service)["ExitCode"]
    if code:
        raise ServerFailedError(f"{service}: expected exit code 0 after SIGTERM, got {code}")
    report(f"{service}: running calls answered after SIGTERM: {running}, exit code 0")
    container.start()
    stack.wait(f"{service} is back", lambda: stack.health(service) == "healthy")


def slowest(stack: Stack, archives: list[ArchiveInfo]) -> ArchiveInfo:
    """The archive whose call takes longest, which a signal can meet at work."""
    return max(archives, key=lambda archive: _timed(stack, archive))


def _timed(stack: Stack, archive: ArchiveInfo) -> float:
    started = time.monotonic()
    _call(stack, archive)
    return time.monotonic() - started


def _call(stack: Stack, archive: ArchiveInfo) -> bytes:
    """The longest call that one model takes: many images, one volume, one drawing."""
    if archive.spec.task is Task.CLASSIFICATION:
        return stack.predict(archive.name, *[golden_input(archive.path)] * _PACKED)
    return stack.ask(archive.name, _golden(archive))


def _outcome(call: Future[bytes]) -> str:
    """What went wrong with a call, "" if nothing."""
    error = call.exception()
    return _details(error) if error is not None else ""


def _details(error: BaseException) -> str:
    if isinstance(error, grpc.Call):
        return f"{error.code().name} {error.details()}"
    return str(error)
