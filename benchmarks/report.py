"""From measured rows to a summary per arrangement, the JSON file and the tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.load import Measurement
from benchmarks.ratios import Spread, ratio_by_round

__all__ = [
    "FORMAT",
    "REFERENCE",
    "Row",
    "Summary",
    "compact",
    "ratio",
    "select",
    "show",
    "summarise",
]

FORMAT = 1  # of the JSON file
REFERENCE = "in-process"


@dataclass(frozen=True)
class Row:
    """One contender measured once."""

    contender: str
    workers: int
    in_flight: int  # calls sent and not answered yet
    round: int
    load1: float  # the machine's load average just before
    measured: Measurement


@dataclass(frozen=True)
class Summary:
    """One contender over all rounds of one arrangement; medians unless it says otherwise."""

    contender: str
    workers: int
    in_flight: int
    images_per_s: Spread
    ratio: Spread | None  # images/s over in-process, round by round
    p50_ms: float
    p99_ms: float
    server_cpu_ms: float | None
    client_cpu_ms: float
    pss_mib: float | None
    errors: int  # sum of the rounds


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """One summary per arrangement, in the order in which they were first measured."""
    keys = dict.fromkeys((row.workers, row.in_flight, row.contender) for row in rows)
    return [_summary(rows, *key) for key in keys]


def select(rows: Sequence[Row], contender: str, workers: int, in_flight: int) -> list[Row]:
    """The rounds of one contender in one arrangement."""
    wanted = (contender, workers, in_flight)
    return [row for row in rows if (row.contender, row.workers, row.in_flight) == wanted]


def ratio(
    rows: Sequence[Row], reference: Sequence[Row], value: Callable[[Measurement], float | None]
) -> Spread | None:
    """Spread of rows / reference over the rounds that both have; None if there is none."""
    sides = []
    for chosen in (rows, reference):
        values = {row.round: value(row.measured) for row in chosen}
        sides.append({index: each for index, each in values.items() if each is not None})
    ratios = ratio_by_round(*sides)
    return Spread.of(list(ratios.values())) if ratios else None


def show(console: Console, summaries: Sequence[Summary]) -> None:
    """One table per number of workers and images in flight."""
    for workers, in_flight in dict.fromkeys((each.workers, each.in_flight) for each in summaries):
        title = f"{workers} worker{'s' if workers > 1 else ''}, {in_flight} in flight"
        table = Table(title=title, title_justify="left")
        table.add_column("contender", no_wrap=True)
        for name in ("images/s", "of in-process", "p50 ms", "p99 ms"):
            table.add_column(name, justify="right", no_wrap=True)
        for name in ("server CPU ms/image", "client CPU ms/image", "PSS MiB", "errors"):
            table.add_column(name, justify="right")
        for each in summaries:
            if (each.workers, each.in_flight) == (workers, in_flight):
                table.add_row(*_cells(each))
        console.print(table)


def _cells(summary: Summary) -> list[str]:
    return [
        summary.contender,
        summary.images_per_s.format(0),
        summary.ratio.format() if summary.ratio else "-",
        f"{summary.p50_ms:.2f}",
        f"{summary.p99_ms:.2f}",
        _number(summary.server_cpu_ms, 3),
        f"{summary.client_cpu_ms:.3f}",
        _number(summary.pss_mib, 0),
        str(summary.errors),
    ]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _summary(rows: Sequence[Row], workers: int, in_flight: int, contender: str) -> Summary:
    chosen = select(rows, contender, workers, in_flight)
    reference = select(rows, REFERENCE, workers, in_flight)
    measured = [row.measured for row in chosen]
    return Summary(
        contender=contender,
        workers=workers,
        in_flight=in_flight,
        images_per_s=Spread.of([each.images_per_s for each in measured]),
        ratio=ratio(chosen, reference, lambda each: each.images_per_s),
        p50_ms=Spread.of([each.p50_ms for each in measured]).median,
        p99_ms=Spread.of([each.p99_ms for each in measured]).median,
        server_cpu_ms=_median([each.server_cpu_ms for each in measured]),
        client_cpu_ms=Spread.of([each.client_cpu_ms for each in measured]).median,
        pss_mib=_median([each.server_pss_mib for each in measured]),
        errors=sum(each.errors for each in measured),
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return Spread.of(known).median if known else None


def compact(value: Any) -> Any:
    """Dataclasses as JSON holds them: numbers to 4 decimals, no answers of the servers."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: compact(each) for key, each in value.items() if key != "sample"}
    if isinstance(value, list | tuple):
        return [compact(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value
