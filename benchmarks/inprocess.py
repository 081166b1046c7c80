"""The limit that servers are held against: the same work called directly, with nothing around it.

    python -m benchmarks.inprocess --archive-dir DIR --payload DIR --batch 16 --workers 2

Every worker is a process of its own and gets perfect batches; prints what `benchmarks.load` prints.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.load import Measurement, read_payload
from benchmarks.processes import family_usage
from benchmarks.ratios import percentile
from benchmarks.work import load_work

__all__ = ["InProcessPlan", "run_in_process"]

_READY_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class InProcessPlan:
    """What to run, in how many processes, and for how long."""

    archive_dir: Path  # an unpacked archive
    payload: Path
    batch: int = 16
    workers: int = 1
    seconds: float = 4.0
    warmup_s: float = 1.0


@dataclass(frozen=True)
class _Share:
    """What one worker did in the counted time."""

    images: int
    seconds: float
    cpu_s: float
    latencies_ms: list[float]
    sample: bytes
    pss_mib: float


def run_in_process(plan: InProcessPlan) -> Measurement:
    """Start the workers together, let them run, and add up what they did."""
    context = multiprocessing.get_context("spawn")  # a forked engine would share its thread pool
    barrier = context.Barrier(plan.workers)
    results: Any = context.Queue()
    workers = [
        context.Process(target=_work, args=(plan, barrier, results), daemon=True)
        for _ in range(plan.workers)
    ]
    for worker in workers:
        worker.start()
    try:
        timeout_s = _READY_TIMEOUT_S + plan.warmup_s + plan.seconds
        shares: list[_Share] = [results.get(timeout=timeout_s) for _ in workers]
    finally:
        for worker in workers:
            worker.join(timeout=10)
            worker.kill()
    return _measurement(shares)


def _measurement(shares: Sequence[_Share]) -> Measurement:
    images = sum(share.images for share in shares)
    latencies_ms = [value for share in shares for value in share.latencies_ms]
    return Measurement(
        images=images,
        seconds=max(share.seconds for share in shares),
        images_per_s=sum(share.images / share.seconds for share in shares),
        p50_ms=percentile(latencies_ms, 0.50),
        p99_ms=percentile(latencies_ms, 0.99),
        errors=0,
        client_cpu_ms=0.0,
        server_cpu_ms=sum(share.cpu_s for share in shares) * 1e3 / images,
        server_pss_mib=sum(share.pss_mib for share in shares),
        sample=shares[0].sample[:160].decode(errors="replace"),
    )


def _work(plan: InProcessPlan, barrier: Any, results: Any) -> None:
    work = load_work(plan.archive_dir)
    images = read_payload(plan.payload)
    repeats = -(-plan.batch // len(images)) + 1
    ring = images * repeats  # long enough to cut a batch at any place of the payload
    gc.disable()  # as in the load generator
    barrier.wait(_READY_TIMEOUT_S)
    _run(work, ring, len(images), plan.batch, plan.warmup_s)
    results.put(_run(work, ring, len(images), plan.batch, plan.seconds))


def _run(work: Any, ring: Sequence[bytes], period: int, batch: int, seconds: float) -> _Share:
    latencies_ms: list[float] = []
    answers: list[bytes] = [b""]
    first = 0
    cpu_before, started = time.process_time(), time.perf_counter()
    now = started
    while now < started + seconds:
        answers = work(ring[first : first + batch])
        first = (first + batch) % period
        before, now = now, time.perf_counter()
        latencies_ms.append((now - before) * 1e3)
    cpu_s = time.process_time() - cpu_before
    usage = family_usage(multiprocessing.current_process().pid or 0)
    return _Share(
        images=batch * len(latencies_ms),
        seconds=now - started,
        cpu_s=cpu_s,
        latencies_ms=latencies_ms,
        sample=answers[0],
        pss_mib=usage.pss_mib,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the plan given by the flags and print its measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--archive-dir", type=Path, required=True)
    parser.add_argument("--payload", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--warmup-s", type=float, default=1.0)
    plan = InProcessPlan(**vars(parser.parse_args(arguments)))
    print(json.dumps(asdict(run_in_process(plan))))


if __name__ == "__main__":
    main()
