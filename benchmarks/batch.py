"""What a batch costs: listing a million rows, the rate against the same work in process, and kills.

    python -m benchmarks.batch listing
    python -m benchmarks.batch rates --model blood_cell --runner local --workers 2
    python -m benchmarks.batch kills --model segmentation_3d [--server]

Each prints one line of JSON. A rate is that of a run from its first study to its last receipt, with
reading, digests, answers and receipts on the disk; the reference is the same archive in as many
processes that ask again and again about inputs in memory. Both take turns within a round. Where
other work runs on the same cores, compare the processor times of a study (`cpu_ratio`) instead:
with all cores busy, they are what bounds a rate.

A run on Ray is measured from a fifth of its studies to four fifths, when every actor has started
and none has run out of work; `start_s` is the time to its first receipts, a cluster of this machine
included, and its processor time that of the driver, the actors and Ray's own processes together.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil

from benchmarks.archives import build_or_take, unpack
from benchmarks.endurance import serving
from benchmarks.processes import family, family_usage, free_port
from medserve.archive.read import golden_input, verify_archive
from medserve.batch import worker
from medserve.batch.local import LocalRun, of_shard
from medserve.batch.processes import ArchiveAsker, archive_target
from medserve.batch.receipts import BatchFolder, BatchHead
from medserve.batch.report import write_report
from medserve.batch.studies import Shard, list_studies
from medserve.batch.work import Answering, Became, Reading
from medserve.client import Limits
from medserve.cores import available_cores
from medserve.spec import Task

__all__ = ["Kills", "measure_kills", "measure_listing", "measure_rates"]

_START_S = 300.0


def measure_listing(folder: Path, rows: int = 1_000_000, shards: int = 16) -> dict[str, float]:
    """List the rows of a manifest and keep those of one shard; seconds and MiB of this process."""
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("path", "id"))
        table.writerows(
            (f"/archive/{n % 365:03d}/{n:07d}.nii.gz", f"s{n:07d}") for n in range(rows)
        )
    started = time.perf_counter()
    kept = sum(1 for _ in of_shard(list_studies(manifest, Task.VOLUMES), Shard(0, shards)))
    seconds = time.perf_counter() - started
    memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": rows, "kept": kept, "seconds": seconds, "memory_mib": memory_mib}


@dataclass(frozen=True)
class Plan:
    """What rates are measured of.

    Attributes:
        runner: `local` or `ray`.
        studies: In a run.
        seconds: Of the reference in each round.
        content: What every study is; by default the archive's golden input.
    """

    archive: Path
    runner: str = "local"
    workers: int = 2
    studies: int = 1000
    seconds: float = 8.0
    rounds: int = 3
    content: bytes = b""


@dataclass(frozen=True)
class Rate:
    """How fast studies were answered, the processor time of one, and how long the start took."""

    per_s: float
    cpu_ms: float
    start_s: float = 0.0


def measure_rates(plan: Plan, folder: Path) -> dict[str, Any]:
    """Compare runs with the same work in process: studies a second, and processor time of each."""
    info = verify_archive(plan.archive)
    content = plan.content or golden_input(plan.archive)
    per_call = Limits().items_per_call if info.spec.task is Task.CLASSIFICATION else 1
    studies = folder / "studies"
    studies.mkdir()
    suffix = "png" if per_call > 1 else "nii.gz"
    for number in range(plan.studies):
        (studies / f"{number}.{suffix}").write_bytes(content)
    unpacked = unpack(plan.archive, folder / "unpacked")
    runs, references = [], []
    for _ in range(plan.rounds):
        references.append(_in_process(unpacked, content, per_call, plan))
        runs.append(_run(studies, folder / "out", plan, per_call))
        shutil.rmtree(folder / "out")
    ratios = [run.per_s / reference.per_s for run, reference in zip(runs, references, strict=True)]
    found = {
        "model": info.name,
        "runner": plan.runner,
        "workers": plan.workers,
        "studies_per_s": [run.per_s for run in runs],
        "in_process_per_s": [reference.per_s for reference in references],
        "ratio": statistics.median(ratios),
    }
    return found | {
        "start_s": statistics.median(run.start_s for run in runs),
        "cpu_ms": statistics.median(run.cpu_ms for run in runs),
        "in_process_cpu_ms": statistics.median(each.cpu_ms for each in references),
        "cpu_ratio": statistics.median(
            reference.cpu_ms / run.cpu_ms for run, reference in zip(runs, references, strict=True)
        ),
    }


def _run(studies: Path, out: Path, plan: Plan, per_call: int) -> Rate:
    """Run a batch, from the first study that is listed to the last receipt."""
    folder = BatchFolder(out)
    if plan.runner == "ray":
        return _run_on_ray(studies, out, plan, per_call)
    asker = ArchiveAsker(plan.archive, plan.workers)
    try:
        target = asker.target
        folder.open(BatchHead(model=target.model, task=target.task))
        local = LocalRun(
            Reading(folder, target, _params(target.task)),
            Answering(folder, asker),
            threads=2 * plan.workers,
            per_call=per_call,
        )
        used, started = family_usage(os.getpid()).cpu_s, time.perf_counter()
        answered = sum(each[Became.ANSWERED] for each in local.run(
            of_shard(list_studies(studies, target.task), Shard())
        ))  # fmt: skip
        seconds = time.perf_counter() - started
        used = family_usage(os.getpid()).cpu_s - used
    finally:
        asker.close()
    assert answered == plan.studies
    return Rate(answered / seconds, used * 1e3 / answered)


def _run_on_ray(studies: Path, out: Path, plan: Plan, per_call: int) -> Rate:
    """Run a batch on a cluster of its own, which is begun and ended with it."""
    import ray

    from medserve.batch.cluster import ClusterRun

    target = archive_target(verify_archive(plan.archive))
    folder = BatchFolder(out)
    folder.open(BatchHead(model=target.model, task=target.task))
    run = ClusterRun(
        *(plan.archive, studies, out, target, _params(target.task)),
        actors=plan.workers,
        per_call=per_call,
    )
    ended, samples = threading.Event(), [(time.time(), 0.0)]

    def sample() -> None:
        while not ended.wait(0.5):
            samples.append((time.time(), sum(map(_cpu_s, family(os.getpid())))))

    sampler = threading.Thread(target=sample)
    sampler.start()
    answered = sum(each[Became.ANSWERED] for each in run.run())
    ended.set()
    sampler.join()
    ray.shutdown()
    assert answered == plan.studies
    written = sorted(path.stat().st_mtime for path in (out / "receipts").rglob("*.json"))
    few, many = plan.studies // 5, plan.studies * 4 // 5
    times, cpu_s = np.array(samples).T
    used_s = np.diff(np.interp(np.array([written[few], written[many]]), times, cpu_s))[0]
    return Rate(
        (many - few) / (written[many] - written[few]),
        float(used_s) * 1e3 / (many - few),
        written[0] - samples[0][0],
    )


def _cpu_s(process: psutil.Process) -> float:
    """Return the processor time of a process; none of one that has ended."""
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return times.user + times.system
    return 0.0


def _in_process(unpacked: Path, content: bytes, per_call: int, plan: Plan) -> Rate:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(plan.workers)
    results: Any = context.Queue()
    arguments = (str(unpacked), content, per_call, plan, barrier, results)
    workers = [context.Process(target=_ask, args=arguments) for _ in range(plan.workers)]
    for each in workers:
        each.start()
    rates: list[Rate] = [results.get(timeout=_START_S + plan.seconds) for _ in workers]
    for each in workers:
        each.join()
    return Rate(sum(each.per_s for each in rates), statistics.mean(each.cpu_ms for each in rates))


def _ask(
    unpacked: str, content: bytes, per_call: int, plan: Plan, barrier: Any, results: Any
) -> None:
    os.setsid()  # as the workers of a batch: Linux shares busy cores out by sessions
    os.environ["MEDSERVE_ENGINE_THREADS"] = str(max(1, available_cores() // plan.workers))
    os.environ["MEDSERVE_MAX_RESPONSE_BYTES"] = str(2**31 - 1)
    sys.path.append(unpacked)
    handler = worker.load(unpacked)
    context = SimpleNamespace(get_request_id=lambda index=0: None, metrics=None)
    inputs: dict[str, bytes] = {"data": content}
    if per_call > 1:
        inputs = {f"data.{place}": content for place in range(per_call)}
    inputs["params"] = json.dumps(_params(handler.spec.task)).encode()
    handler.handle([inputs], context)
    barrier.wait(_START_S)
    answered, used, started = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() < started + plan.seconds:
        handler.handle([inputs], context)
        answered += per_call
    used = time.process_time() - used
    results.put(Rate(answered / (time.perf_counter() - started), used * 1e3 / answered))


def _params(task: Task) -> dict[str, Any]:
    return {} if task is Task.CLASSIFICATION else {"output": "json"}


@dataclass(frozen=True)
class Kills:
    """What a batch has to survive.

    Attributes:
        count: How often something is killed; at least 1 s after the last time.
        studies: In the batch; every one is a copy of the archive's golden input.
        server: Whether a server answers, which is killed too; else the archive in processes of the
            runner, of which one is killed.
    """

    count: int = 20
    studies: int = 300
    server: bool = False


def measure_kills(archive: Path, folder: Path, plan: Kills) -> dict[str, Any]:
    """Kill the runner, or what answers, at chance moments; count what was repeated or lost."""
    source, out = folder / "studies", folder / "out"
    source.mkdir()
    info, content = verify_archive(archive), golden_input(archive)
    suffix = "png" if info.spec.task is Task.CLASSIFICATION else "nii.gz"
    for number in range(plan.studies):
        (source / f"{number}.{suffix}").write_bytes(content)
    undisturbed = ["--archive", str(archive), "--workers", "2"]
    with contextlib.ExitStack() as stack:
        victim: _Workers | _Server = _Workers(archive)
        if plan.server:
            victim = _Server(archive, info.name, folder)
            stack.callback(victim.end)
        killed, repeated, done = _kill(source, out, victim, plan)
    _command(source, undisturbed, folder / "undisturbed").wait()
    return {
        "model": info.name,
        "killed": killed,
        "repeated": repeated,
        "lost": plan.studies - done,
        "equal": _table(out) == _table(folder / "undisturbed"),
    }


def _kill(
    source: Path, out: Path, victim: _Workers | _Server, plan: Kills
) -> tuple[Counter[str], int, int]:
    """Return how often was killed what, how many studies were repeated, and how many are done."""
    chance, killed, repeated = random.Random(23), Counter[str](), 0
    done: dict[str, float] = {}
    running = _command(source, victim.flags, out)
    while True:
        kills = killed.total() < plan.count
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(1.0 + chance.random() * 2.0 if kills else None)
        if running.poll() is None:
            whom = chance.choice(("runner", victim.name))
            killed[whom] += 1
            if whom == "runner":
                running.kill()
                running.wait()
            else:
                victim.kill(running.pid, chance)
        found = {each.key: each.started_at for each in BatchFolder(out).receipts()}
        repeated += sum(found[key] != started for key, started in done.items())
        done = found
        if running.poll() is None:
            continue
        if len(done) == plan.studies and running.returncode == 0:
            return killed, repeated, len(done)
        if running.returncode not in (0, 2, -signal.SIGKILL):  # 2: the server was gone
            raise SystemExit(f"expected the run to answer every study, got {running.returncode}")
        running = _command(source, victim.flags, out)


class _Workers:
    """The processes of a runner that hold the archive."""

    name = "worker"

    def __init__(self, archive: Path) -> None:
        self.flags = ["--archive", str(archive), "--workers", "2"]

    def kill(self, runner: int, chance: random.Random) -> None:
        """End one of them."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if processes := psutil.Process(runner).children(recursive=True):
                chance.choice(processes).kill()


class _Server:
    """`medserve serve`, with its engine and workers."""

    name = "server"

    def __init__(self, archive: Path, model: str, scratch: Path) -> None:
        self._archive, self._model, self._scratch = archive, model, scratch
        self._port = free_port()
        self.flags = ["--server", f"127.0.0.1:{self._port}", "--model", model, "--workers", "4"]
        self._begin()

    def _begin(self) -> None:
        self._running = contextlib.ExitStack()
        found = serving(self._archive.parent, self._model, self._scratch, gateway_port=self._port)
        self._pid = self._running.enter_context(found).pid

    def kill(self, runner: int, chance: random.Random) -> None:
        """End it as no signal can be heard, and start the next one a moment later."""
        assert self._pid is not None
        os.kill(self._pid, signal.SIGKILL)
        self.end()
        time.sleep(chance.random())
        self._begin()

    def end(self) -> None:
        """End it for good."""
        self._running.close()


def _command(source: Path, flags: Sequence[str], out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "medserve", "batch", str(source), *flags]
    return subprocess.Popen(
        [*command, "--out", str(out), "--progress", "none"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _table(out: Path) -> bytes:
    write_report(BatchFolder(out))
    return (out / "results.csv").read_bytes()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the first argument names and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("listing", "rates", "kills"))
    parser.add_argument("--model", default="blood_cell")
    parser.add_argument("--archive", type=Path)
    parser.add_argument("--runner", choices=("local", "ray"), default="local")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--studies", type=int, default=1000, help="of rates; kills have 300")
    parser.add_argument("--server", action="store_true", help="kill a server, not workers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--input", type=Path, help="of rates, in the place of the golden input")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="medserve-bench-") as name:
        folder = Path(name)
        if given.what == "listing":
            print(json.dumps(measure_listing(folder)))
            return
        archive = build_or_take(given.archive, given.model, folder)
        if given.what == "kills":
            print(json.dumps(measure_kills(archive, folder, Kills(server=given.server))))
            return
        plan = Plan(
            *(archive, given.runner, given.workers, given.studies),
            rounds=given.rounds,
            content=given.input.read_bytes() if given.input else b"",
        )
        print(json.dumps(measure_rates(plan, folder)))


if __name__ == "__main__":
    main()
