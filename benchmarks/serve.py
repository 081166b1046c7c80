"""Serve the same images by medserve and by what a user would take instead, side by side.

    python -m benchmarks.serve --workers 1,2 --concurrency 1,8,32 --rounds 5

Contenders take turns, A B C A B C, while the servers that are not being measured are stopped:
neighbours in a round meet the same machine, and ratios are formed round by round. The load comes
from another process over loopback and shares the cores with the server, as its report shows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console

from benchmarks.archives import build_or_take, unpack
from benchmarks.contenders import Contender, Running, Setting, Start, Unavailable
from benchmarks.lineup import CONTENDERS
from benchmarks.load import Measurement, read_payload
from benchmarks.machine import describe_machine
from benchmarks.processes import hold, release
from benchmarks.report import FORMAT, Row, compact, show, summarise
from benchmarks.targets import judge, show_verdicts
from medserve.archive.read import inspect_archive
from medserve.errors import MedserveError

__all__ = ["MeasurementError", "Options", "main", "run"]

_ROOT = Path(__file__).parent.parent
_SLACK_S = 150.0  # beyond the counted time: imports, warm-up, a slow machine
_WARMUP_S = 1.0
_FIRST_WARMUP_S = 12.0  # Java compiles what runs often; cold it needs up to twice the CPU
_PROCESS_BATCH = 16


@dataclass(frozen=True)
class Options:
    """What the flags say."""

    workers: tuple[int, ...] = (1, 2)
    concurrency: tuple[int, ...] = (1, 8, 32)
    rounds: int = 5
    seconds: float = 4.0
    engine: str = "openvino"
    only: tuple[str, ...] = ()
    payload: Path | None = None
    archive: Path | None = None
    model: str = "mednist"
    peers_python: str | None = None
    out: Path = Path("outputs/bench.json")


class MeasurementError(Exception):
    """One measurement gave no result; the message says whose and why."""


@dataclass
class _Part:
    """All contenders of one number of workers, up and held."""

    setting: Setting
    payload: Path
    running: dict[str, Running | None]  # None: needs no server
    skipped: dict[str, str]


def run(options: Options, console: Console) -> dict[str, object]:
    """Measure everything and return the content of the JSON file."""
    rows: list[Row] = []
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="medserve-bench-") as folder:
        scratch = Path(folder)
        archive = build_or_take(options.archive, options.model, scratch)
        unpacked = unpack(archive, scratch / "unpacked")
        for workers in options.workers:
            with _start_all(options, workers, archive, unpacked, scratch) as part:
                skipped |= part.skipped
                for name, reason in part.skipped.items():
                    console.print(f"skipped {name}: {reason}", highlight=False)
                rows += _rounds(options, part, console)
    summaries, verdicts = summarise(rows), judge(rows)
    show(console, summaries)
    show_verdicts(console, verdicts)
    return {
        "format": FORMAT,
        "machine": describe_machine(),
        "settings": _settings(options),
        "skipped": skipped,
        "targets": compact(verdicts),
        "summaries": compact(summaries),
        "rows": compact(rows),
    }


@contextlib.contextmanager
def _start_all(
    options: Options, workers: int, archive: Path, unpacked: Path, scratch: Path
) -> Iterator[_Part]:
    """Start one server after the other and hold each; on leaving, all are gone."""
    payload = options.payload or _default_payload(unpacked, options.model)
    folder = scratch / f"workers-{workers}"
    folder.mkdir()
    setting = Setting(
        model=inspect_archive(archive).name,
        archive=archive,
        archive_dir=unpacked,
        image=read_payload(payload)[0],
        workers=workers,
        engine=options.engine,
        scratch=folder,
        peers_python=options.peers_python,
    )
    part = _Part(setting, payload, {}, {})
    outcomes: dict[Start, Running | str] = {}  # several contenders may share one server
    with contextlib.ExitStack() as stack:
        for contender in _chosen(options):
            if contender.start is None:
                part.running[contender.name] = None
                continue
            if contender.start not in outcomes:
                outcomes[contender.start] = _start(contender.start, setting, stack)
            outcome = outcomes[contender.start]
            if isinstance(outcome, Running):
                part.running[contender.name] = outcome
            else:
                part.skipped[contender.name] = outcome
        yield part


def _start(start: Start, setting: Setting, stack: contextlib.ExitStack) -> Running | str:
    """A server that is up and held, or why there is none."""
    try:
        running = stack.enter_context(start(setting))
    except (Unavailable, MedserveError) as reason:
        return str(reason)
    stack.callback(release, running.pid)  # a stopped process hears no SIGTERM
    hold(running.pid)
    return running


def _rounds(options: Options, part: _Part, console: Console) -> Iterator[Row]:
    """A B C A B C; in every round each number in flight, and in it each contender."""
    contenders = [each for each in _chosen(options) if each.name in part.running]
    busiest = max(options.concurrency)
    for contender in {part.running[each.name]: each for each in contenders}.values():
        if contender.start is not None:
            _measure(options, part, contender, busiest, _FIRST_WARMUP_S)
    for index in range(options.rounds):
        for in_flight in options.concurrency:
            for contender in contenders:
                if contender.fixed_calls and in_flight != busiest:
                    continue  # it would be the same measurement again
                load1, workers = os.getloadavg()[0], part.setting.workers
                try:
                    measured = _measure(options, part, contender, in_flight, _WARMUP_S)
                except MeasurementError as error:  # one lost point is no reason to lose the rest
                    console.print(f"lost, round {index + 1}: {error}", highlight=False)
                else:
                    yield Row(contender.name, workers, in_flight, index, load1, measured)
        console.print(
            f"{part.setting.workers} workers: round {index + 1} of {options.rounds} done, "
            f"load {os.getloadavg()[0]:.1f}",
            highlight=False,
        )


def _measure(
    options: Options, part: _Part, contender: Contender, in_flight: int, warmup_s: float
) -> Measurement:
    """One closed loop in a process of its own; the server runs only meanwhile."""
    command = [sys.executable, "-m"]
    running = part.running[contender.name]
    if running is None:
        batch = 1 if in_flight == 1 else _PROCESS_BATCH
        command += ["benchmarks.inprocess", f"--archive-dir={part.setting.archive_dir}"]
        command += [f"--batch={batch}", f"--workers={part.setting.workers}"]
    else:
        command += ["benchmarks.load", f"--protocol={contender.protocol}"]
        command += [f"--address={running.address}", f"--model={part.setting.model}"]
        calls = contender.fixed_calls or in_flight
        command += [f"--calls={calls}", f"--server-pid={running.pid}"]
        command += [f"--images-per-call={contender.images_per_call}"]
    command += [f"--payload={part.payload}", f"--seconds={options.seconds}"]
    command += [f"--warmup-s={warmup_s}"]
    if running is not None:
        release(running.pid)
    try:
        environment = {**os.environ, **part.setting.environment()}
        answer = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=_ROOT,
            env=environment,
            timeout=options.seconds + warmup_s + _SLACK_S,
        )
    finally:
        if running is not None:
            hold(running.pid)
    if answer.returncode != 0:
        reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise MeasurementError(f"{contender.name}, {in_flight} in flight: {reason}")
    return Measurement(**json.loads(answer.stdout))


def _chosen(options: Options) -> list[Contender]:
    return [each for each in CONTENDERS if not options.only or each.name in options.only]


def _default_payload(unpacked: Path, model: str) -> Path:
    """The room's example images; an archive from elsewhere brings its golden input."""
    examples = _ROOT / "models" / model / "examples"
    if examples.is_dir():
        return examples
    return next(unpacked.glob("golden_input.*"))


def _settings(options: Options) -> dict[str, object]:
    """The options without paths, which say nothing on another machine."""
    keep = ("workers", "concurrency", "rounds", "seconds", "engine", "only", "model")
    return {
        **{name: getattr(options, name) for name in keep},
        "started": time.strftime("%Y-%m-%d", time.gmtime()),
        "payload": "given" if options.payload else "examples",
        "engine_threads": 1,
    }


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(","))
    if any(number < 1 for number in numbers):
        raise argparse.ArgumentTypeError(f"expected numbers of at least 1, got {text!r}")
    return numbers


def _names(text: str) -> tuple[str, ...]:
    known = [each.name for each in CONTENDERS]
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"unknown {unknown[0]!r}; known: {', '.join(known)}")
    return names


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serve",
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = Options()
    add = parser.add_argument
    add("--workers", type=_numbers, default=default.workers, help="numbers of workers, as 1,2")
    add(
        "--concurrency",
        type=_numbers,
        default=default.concurrency,
        help="calls in flight, as 1,8,32",
    )
    add("--rounds", type=int, default=default.rounds)
    add("--seconds", type=float, default=default.seconds, help="counted time of one measurement")
    add("--engine", choices=["openvino", "onnxruntime"], default=default.engine)
    add("--only", type=_names, default=default.only, help="contenders, as in-process,torchserve")
    add("--payload", type=Path, help="an image or a folder of images; the room's examples if none")
    add("--archive", type=Path, help="a .mar; built from the room if none is given")
    add("--model", default=default.model, help="the room")
    add(
        "--peers-python",
        default=os.environ.get("MEDSERVE_BENCH_PEERS"),
        help="Python of the environment with litserve and nvidia-pytriton",
    )
    add("--out", type=Path, default=default.out, help="JSON file")
    return Options(**vars(parser.parse_args(arguments)))


def _lines(result: dict[str, object]) -> str:
    """JSON with one summary and one row a line: short, and good to compare."""
    parts = []
    for key, value in result.items():
        text = json.dumps(value)
        if isinstance(value, list):
            text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables and write the JSON file."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, _interrupt)  # the same clean way out as Ctrl-C
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        result = run(options, console)
    except KeyboardInterrupt:
        raise SystemExit("interrupted; every server is stopped") from None
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(_lines(result), encoding="utf-8")
    console.print(f"written to {options.out}", highlight=False)


if __name__ == "__main__":
    main()
