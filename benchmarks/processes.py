"""Processes under measurement: started, held, released and ended with all their children."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = [
    "Usage",
    "end_family",
    "family",
    "family_usage",
    "free_port",
    "hold",
    "release",
    "spawn",
    "workers_of",
]

_MIB = 2**20
_STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Usage:
    """What a process and all its descendants have used."""

    cpu_s: float  # user + system, since their start
    pss_mib: float  # memory, pages shared with others counted by their share


def family(pid: int) -> list[psutil.Process]:
    """The process and all its descendants that are alive."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def workers_of(pid: int, model: str = "") -> list[int]:
    """Return the workers below a process that serve a model, or any model; the oldest first.

    Each stands in the folder of its unpacked archive, whatever the engine.
    """
    found = []
    for process in family(pid):
        with contextlib.suppress(psutil.Error, OSError):  # it has ended, or is no worker
            manifest = json.loads(Path(process.cwd(), "MAR-INF", "MANIFEST.json").read_text())
            if model in ("", manifest["model"]["modelName"]):
                found.append((process.create_time(), process.pid))
    return [each for _, each in sorted(found)]


def family_usage(pid: int) -> Usage:
    """CPU time and memory of the process and all its descendants, now."""
    cpu_s = 0.0
    pss_bytes = 0
    for process in family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            cpu_s += times.user + times.system
            pss_bytes += getattr(process.memory_full_info(), "pss", 0)
    return Usage(cpu_s, pss_bytes / _MIB)


def hold(pid: int) -> None:
    """Stop the family from running, as if it were not there (its memory stays)."""
    _signal(family(pid), signal.SIGSTOP)


def release(pid: int) -> None:
    """Let a held family run again."""
    _signal(family(pid), signal.SIGCONT)


def end_family(pid: int) -> None:
    """Ask the family to end, then insist."""
    members = family(pid)
    _signal(members, signal.SIGCONT)
    _signal(members, signal.SIGTERM)  # launchers do not pass it on
    _, alive = psutil.wait_procs(members, timeout=_STOP_TIMEOUT_S)
    _signal(alive, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=_STOP_TIMEOUT_S)


@contextlib.contextmanager
def spawn(
    command: Sequence[str], log: Path, *, environment: Mapping[str, str], cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` with its output in `log`; on leaving, it and its children are gone.

    A session of its own keeps Ctrl-C from reaching it before we have finished with it.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            cwd=cwd,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end_family(process.pid)
        process.wait()


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _signal(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
