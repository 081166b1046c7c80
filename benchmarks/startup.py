"""How long the client takes to import, and a server to be proven ready; and what its parts hold.

    python -m benchmarks.startup [--archive FILE.mar] [--rounds 5] [--out outputs/startup.json]

Import times are those of fresh interpreters, less the time of one that imports nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.archives import build_or_take
from benchmarks.contenders import Setting
from benchmarks.lineup import direct_process
from benchmarks.machine import describe_machine
from benchmarks.processes import family
from benchmarks.ratios import Spread
from medserve.engine.torchserve.lifecycle import Server, ServerConfig

__all__ = ["Start", "import_seconds", "start_direct", "start_once"]

_MODULES = ("medserve", "medserve.client", "medserve.cli.main")
_WORKER = "model_service_worker"  # in the command line of TorchServe's worker processes
_MIB = 2**20


@dataclass(frozen=True)
class Start:
    """One cold start of a server with one worker."""

    ready_s: float  # from nothing to a proven answer
    java_rss_mib: float
    worker_rss_mib: float


def import_seconds(module: str, rounds: int) -> Spread:
    """Seconds that `import module` adds to the start of an interpreter."""
    _run(f"import {module}")  # the first one writes the byte code
    return Spread.of([_run(f"import {module}") - _run("pass") for _ in range(rounds)])


def start_once(archive: Path, scratch: Path) -> Start:
    """Start a server over this archive alone, and stop it."""
    store = scratch / "one"
    store.mkdir(exist_ok=True)
    link = store / archive.name
    link.unlink(missing_ok=True)
    link.symlink_to(archive.resolve())
    started = time.perf_counter()
    with Server(ServerConfig(store=store, workers=1)) as server:
        ready_s = time.perf_counter() - started
        java, *others = family(server.pid or 0)
        workers = [each for each in others if _WORKER in " ".join(each.cmdline())]
        return Start(ready_s, _rss_mib(java), max(map(_rss_mib, workers)))


def start_direct(archive: Path, folder: Path) -> tuple[float, float, float]:
    """Start `medserve serve --engine direct` once.

    Returns:
        Seconds from nothing to a proven answer, and MiB in the gateway and in the worker.
    """
    started = time.perf_counter()
    setting = Setting("", archive, folder, b"", 1, "openvino", Path(tempfile.mkdtemp(dir=folder)))
    with direct_process(setting) as (process, _):
        ready_s = time.perf_counter() - started
        gateway, worker = family(process.pid)
        return ready_s, _rss_mib(gateway), _rss_mib(worker)


def _run(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


def _rss_mib(process: psutil.Process) -> float:
    return process.memory_info().rss / _MIB


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and write a JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--archive", type=Path, help="a .mar; built from the room if none is given")
    parser.add_argument("--model", default="mednist", help="the room")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("outputs/startup.json"))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="medserve-startup-") as folder:
        archive = build_or_take(options.archive, options.model, Path(folder))
        imports = {name: import_seconds(name, options.rounds) for name in _MODULES}
        starts, direct = [], []
        for _ in range(options.rounds):
            starts.append(start_once(archive, Path(folder)))
            direct.append(start_direct(archive, Path(folder)))
    results = {f"import {name}, s": spread for name, spread in imports.items()} | {
        "server from nothing to proven, s": Spread.of([each.ready_s for each in starts]),
        "resident memory of Java, MiB": Spread.of([each.java_rss_mib for each in starts]),
        "resident memory of a worker, MiB": Spread.of([each.worker_rss_mib for each in starts]),
        "direct: gateway and model from nothing to proven, s": Spread.of([s for s, _, _ in direct]),
        "direct: resident memory of the gateway, MiB": Spread.of([mib for _, mib, _ in direct]),
        "direct: resident memory of a worker, MiB": Spread.of([mib for _, _, mib in direct]),
    }
    table = Table("what", "median [least most]")
    for what, spread in results.items():
        table.add_row(what, spread.format())
    Console().print(table)
    content = {
        "format": 1,
        "machine": describe_machine(),
        "rounds": options.rounds,
        "results": {what: asdict(spread) for what, spread in results.items()},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
