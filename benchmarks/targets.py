"""The promises about serving speed and memory, each held against the measured rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.load import Measurement
from benchmarks.ratios import Spread, ratio_by_round
from benchmarks.report import REFERENCE, Row, ratio, select

__all__ = ["TARGETS", "Target", "Verdict", "judge", "show_verdicts"]

_BUSY, _LONE = 32, 1  # calls in flight


@dataclass(frozen=True)
class Target:
    """A value that the rows give, and its bound."""

    what: str
    bound: float
    value: Callable[[Sequence[Row]], Spread | None]
    at_most: bool = False

    @property
    def promise(self) -> str:
        """`>= 0.7`."""
        return f"{'<=' if self.at_most else '>='} {self.bound:g}"


@dataclass(frozen=True)
class Verdict:
    """A target and what came out; the median decides."""

    what: str
    promise: str
    measured: Spread | None  # None: not part of this run
    word: str  # pass | short | not measured


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """Every target against the rows."""
    return [_verdict(target, target.value(rows)) for target in TARGETS]


def show_verdicts(console: Console, verdicts: Sequence[Verdict]) -> None:
    """A table of targets."""
    table = Table(title="Targets", title_justify="left")
    table.add_column("what")
    for name in ("target", "measured", ""):
        table.add_column(name, justify="right", no_wrap=True)
    colours = {"pass": "green", "short": "red", "not measured": "dim"}
    for each in verdicts:
        measured = each.measured.format() if each.measured else "-"
        word = f"[{colours[each.word]}]{each.word}[/]"
        table.add_row(each.what, each.promise, measured, word)
    console.print(table)


def _verdict(target: Target, measured: Spread | None) -> Verdict:
    word = "not measured"
    if measured is not None:
        kept = (
            measured.median <= target.bound if target.at_most else measured.median >= target.bound
        )
        word = "pass" if kept else "short"
    return Verdict(target.what, target.promise, measured, word)


def _speed(measured: Measurement) -> float | None:
    return measured.images_per_s


def _p50(measured: Measurement) -> float | None:
    return measured.p50_ms


def _server_cpu(measured: Measurement) -> float | None:
    return measured.server_cpu_ms


def _against(
    contender: str,
    reference: str,
    value: Callable[[Measurement], float | None] = _speed,
    workers: int = 1,
    in_flight: int = _BUSY,
) -> Callable[[Sequence[Row]], Spread | None]:
    """Contender / reference, round by round."""

    def compute(rows: Sequence[Row]) -> Spread | None:
        sides = [select(rows, name, workers, in_flight) for name in (contender, reference)]
        return ratio(sides[0], sides[1], value)

    return compute


def _memory(rows: Sequence[Row], contender: str, workers: int) -> dict[int, float]:
    """Round -> PSS in MiB of the server under its heaviest load."""
    chosen = select(rows, contender, workers, _BUSY)
    return {row.round: row.measured.server_pss_mib or 0.0 for row in chosen}


def _first_worker(contender: str) -> Callable[[Sequence[Row]], Spread | None]:
    def compute(rows: Sequence[Row]) -> Spread | None:
        values = list(_memory(rows, contender, workers=1).values())
        return Spread.of(values) if values else None

    return compute


def _further_worker(contender: str) -> Callable[[Sequence[Row]], Spread | None]:
    def compute(rows: Sequence[Row]) -> Spread | None:
        one, two = (_memory(rows, contender, workers) for workers in (1, 2))
        more = [two[index] - one[index] for index in ratio_by_round(two, one)]
        return Spread.of(more) if more else None

    return compute


TARGETS: tuple[Target, ...] = (
    Target("1 worker, 32 in flight: of in-process", 0.70, _against("torchserve", REFERENCE)),
    Target(
        "1 worker, 32 in flight: of Triton, same engine", 0.90, _against("torchserve", "triton")
    ),
    Target(
        "2 workers, 32 in flight: of Triton, same engine",
        1.0,
        _against("torchserve", "triton", workers=2),
    ),
    Target(
        "1 worker, 32 in flight: of Triton on ONNX Runtime",
        2.0,
        _against("torchserve", "triton-onnxruntime"),
    ),
    Target(
        "1 worker, 32 in flight: of a stock-style handler",
        6.0,
        _against("torchserve", "torchserve-stock"),
    ),
    Target(
        "1 worker, 32 packed calls in flight: of in-process",
        0.92,
        _against("torchserve-packed", REFERENCE),
    ),
    Target(
        "2 workers, 32 packed calls in flight: of in-process",
        0.85,
        _against("torchserve-packed", REFERENCE, workers=2),
    ),
    Target(
        "1 worker, 32 packed calls: CPU per image over in-process",
        1.2,
        _against("torchserve-packed", REFERENCE, _server_cpu),
        at_most=True,
    ),
    Target(
        "1 worker, 1 in flight: p50 over Triton's",
        2.2,
        _against("torchserve", "triton", _p50, in_flight=_LONE),
        at_most=True,
    ),
    Target("memory with 1 worker, MiB", 500, _first_worker("torchserve"), at_most=True),
    Target("memory of a second worker, MiB", 200, _further_worker("torchserve"), at_most=True),
    Target("direct, 1 worker, 32 in flight: of Triton", 1.0, _against("direct", "triton")),
    Target(
        "direct, 2 workers, 32 in flight: of Triton",
        1.0,
        _against("direct", "triton", workers=2),
    ),
    Target(
        "direct, 1 worker, 1 in flight: p50 over Triton's",
        1.3,
        _against("direct", "triton", _p50, in_flight=_LONE),
        at_most=True,
    ),
    Target(
        "direct, 1 worker, 32 packed calls in flight: of in-process",
        0.92,
        _against("direct-packed", REFERENCE),
    ),
    Target(
        "direct, 2 workers, 32 packed calls in flight: of in-process",
        0.85,
        _against("direct-packed", REFERENCE, workers=2),
    ),
    Target("direct: memory of all with 1 worker, MiB", 250, _first_worker("direct"), at_most=True),
    Target("direct: memory of a second worker, MiB", 110, _further_worker("direct"), at_most=True),
)
