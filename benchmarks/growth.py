"""How cost grows: calls in flight, models loaded, workers of a model; both engines in turns.

    python -m benchmarks.growth --rounds 3 --plot docs/assets/growth.svg

The gateway is in the way of every call. Models are versions of one archive, so each has its worker.
Time is that from nothing until all have proven themselves; memory that of all processes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.archives import build_or_take, with_version
from benchmarks.contenders import Running, Setting
from benchmarks.lineup import direct, torchserve
from benchmarks.load import LoadPlan, read_payload, run_load
from benchmarks.machine import describe_machine
from benchmarks.ratios import Spread

__all__ = ["Arrangement", "Point", "arrangements", "main"]

_ROOT = Path(__file__).parent.parent
_ENGINES = {"torchserve": torchserve, "direct": direct}
_BUSY = 64  # calls in flight where workers are compared
_ON_PAPER = 16  # workers
_COLUMNS = ("engine", "models", "workers", "in flight", "images/s", "p50 ms", "p99 ms",
            "MiB", "proven after s")  # fmt: skip


@dataclass(frozen=True)
class Arrangement:
    """One start of a server, and the loads on it."""

    models: int
    workers: int
    in_flight: tuple[int, ...]


@dataclass(frozen=True)
class Point:
    """One load on one arrangement; memory in MiB, pages that are shared counted by their share."""

    engine: str
    round: int
    models: int
    workers: int
    in_flight: int
    proven_s: float
    images_per_s: float
    p50_ms: float
    p99_ms: float
    memory_mib: float
    load1: float


def arrangements(
    in_flight: Sequence[int], models: Sequence[int], workers: Sequence[int]
) -> list[Arrangement]:
    """Return what is started: each axis by itself, from one model with one worker."""
    first = Arrangement(1, 1, tuple(sorted({1, *in_flight, _BUSY})))
    more_models = [Arrangement(count, 1, (1,)) for count in models if count > 1]
    return [
        first,
        *more_models,
        *(Arrangement(1, count, (_BUSY,)) for count in workers if count > 1),
    ]


def measure(
    archive: Path, payload: Path, planned: Sequence[Arrangement], rounds: int, seconds: float
) -> list[Point]:
    """Return one point for each load on each arrangement, engine and round."""
    turns = [
        (number, one, name) for number in range(rounds) for one in planned for name in _ENGINES
    ]
    points = []
    for number, arrangement, engine in track(turns, "Starting and asking"):
        began = time.perf_counter()
        with _running(engine, archive, payload, arrangement) as server:
            proven_s = time.perf_counter() - began
            for in_flight in arrangement.in_flight:
                plan = LoadPlan("predictions", server.address, _model_of(archive), payload,
                                in_flight, seconds=seconds, server_pid=server.pid)  # fmt: skip
                found = asyncio.run(run_load(plan))
                points.append(
                    Point(
                        engine, number, arrangement.models, arrangement.workers, in_flight,
                        round(proven_s, 2), round(found.images_per_s), round(found.p50_ms, 2),
                        round(found.p99_ms, 2), round(found.server_pss_mib or 0.0),
                        round(os.getloadavg()[0], 1),
                    )
                )  # fmt: skip
    return points


@contextlib.contextmanager
def _running(
    engine: str, archive: Path, payload: Path, arrangement: Arrangement
) -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="medserve-growth-") as folder:
        store = Path(folder, "store")
        store.mkdir()
        for number in range(1, arrangement.models):
            with_version(archive, store, f"0.{number}")
        setting = Setting(
            _model_of(archive), archive, Path(folder), read_payload(payload)[0],
            arrangement.workers, "openvino", Path(folder),
        )  # fmt: skip
        with _ENGINES[engine](setting) as server:
            yield server


def _model_of(archive: Path) -> str:
    return archive.name.rsplit("-", 1)[0]


def _select(points: Sequence[Point], engine: str, **wanted: int) -> list[Point]:
    return [
        each for each in points
        if each.engine == engine and all(getattr(each, k) == v for k, v in wanted.items())
    ]  # fmt: skip


def _median(points: Sequence[Point], name: str) -> float:
    return Spread.of([getattr(each, name) for each in points]).median


def table(points: Sequence[Point]) -> Table:
    """Return a line for each load: the median over the rounds."""
    found = Table(*_COLUMNS, box=None)
    keys = dict.fromkeys((each.models, each.workers, each.in_flight) for each in points)
    for models, workers, in_flight in keys:
        for engine in _ENGINES:
            rows = _select(points, engine, models=models, workers=workers, in_flight=in_flight)
            measured = ("images_per_s", "p50_ms", "p99_ms", "memory_mib", "proven_s")
            values = (f"{_median(rows, name):.4g}" for name in measured)
            found.add_row(engine, str(models), str(workers), str(in_flight), *values)
    return found


def per_worker(points: Sequence[Point], engine: str) -> tuple[float, float]:
    """Return the memory of the first worker with all else, and of each further one, in MiB."""
    rows = _select(points, engine, models=1, in_flight=_BUSY)
    most = max(each.workers for each in rows)
    first, last = (
        _median([each for each in rows if each.workers == count], "memory_mib")
        for count in (1, most)
    )
    return first, (last - first) / max(1, most - 1)


def plot(points: Sequence[Point]) -> Figure:
    """Return time by calls in flight, memory by models, memory by workers (dashed: on paper)."""
    figure = Figure(figsize=(9.6, 3.0), layout="constrained")
    calls, models, workers = figure.subplots(1, 3)
    for engine in _ENGINES:
        for axes, axis, value, fixed in (
            (calls, "in_flight", "p50_ms", {"models": 1, "workers": 1}),
            (models, "models", "memory_mib", {"workers": 1, "in_flight": 1}),
            (workers, "workers", "memory_mib", {"models": 1, "in_flight": _BUSY}),
        ):
            rows = _select(points, engine, **fixed)
            places = sorted({getattr(each, axis) for each in rows})
            values = [
                _median([each for each in rows if getattr(each, axis) == place], value)
                for place in places
            ]
            axes.plot(places, values, "o-", label=engine)
        first, each = per_worker(points, engine)
        workers.plot([1, _ON_PAPER], [first, first + (_ON_PAPER - 1) * each], "--", color="0.6")
    calls.set(xscale="log", yscale="log", xlabel="calls in flight", ylabel="p50, ms")
    models.set(xlabel="models, one worker each", ylabel="memory, MiB", ylim=(0, None))
    workers.set(xlabel="workers of one model", ylabel="memory, MiB", ylim=(0, None))
    calls.legend(frameon=False)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write a JSON file and the picture."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--archive", type=Path, help="a .mar; built from the room if none is given")
    parser.add_argument("--model", default="mednist", help="the room")
    parser.add_argument("--in-flight", default="1,8,64,512", help="numbers, commas between")
    parser.add_argument("--models", default="1,4,20", help="numbers, commas between")
    parser.add_argument("--workers", default="1,2,4", help="numbers, commas between")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="counted time of a load")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench-growth.json"))
    parser.add_argument("--plot", type=Path, help="SVG or PNG")
    options = parser.parse_args(arguments)
    axes = [_numbers(each) for each in (options.in_flight, options.models, options.workers)]
    with tempfile.TemporaryDirectory(prefix="medserve-growth-") as folder:
        archive = build_or_take(options.archive, options.model, Path(folder))
        payload = _ROOT / "models" / options.model / "examples"
        points = measure(archive, payload, arrangements(*axes), options.rounds, options.seconds)
    console = Console(highlight=False)
    console.print(table(points))
    for engine in _ENGINES:
        first, each = per_worker(points, engine)
        console.print(
            f"{engine}: {first:.0f} MiB with one worker, {each:.0f} for each further one; on paper "
            f"{first + (_ON_PAPER - 1) * each:.0f} with {_ON_PAPER}"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": describe_machine(), "points": [asdict(each) for each in points]}
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        plot(points).savefig(options.plot)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(","))


if __name__ == "__main__":
    main()
