from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from benchmarks.load import Measurement
from benchmarks.report import Row, compact, show, summarise
from benchmarks.targets import TARGETS, judge, show_verdicts

MEASURED = Measurement(
    images=4000,
    seconds=4.0,
    images_per_s=1000.0,
    p50_ms=10.0,
    p99_ms=20.0,
    errors=0,
    client_cpu_ms=0.1,
    server_cpu_ms=0.5,
    server_pss_mib=400.0,
)


def row(contender: str, index: int, images_per_s: float, workers: int = 1, **more: float) -> Row:
    measured = replace(MEASURED, images_per_s=images_per_s, **more)  # type: ignore[arg-type]
    return Row(contender, workers, 32, index, 0.5, measured)


def rows() -> list[Row]:
    """Two rounds; the machine was half as fast in the second."""
    return [
        row("in-process", 0, 2000.0),
        row("torchserve", 0, 1500.0),
        row("in-process", 1, 1000.0),
        row("torchserve", 1, 700.0, p50_ms=30.0, errors=2),
    ]


def test_summary_takes_ratios_within_rounds_and_adds_errors() -> None:
    limit, served = summarise(rows())

    assert (limit.contender, served.contender) == ("in-process", "torchserve")
    assert served.ratio is not None
    assert (served.ratio.low, served.ratio.high) == (0.7, 0.75)
    assert served.images_per_s.median == 1100.0
    assert (served.p50_ms, served.errors) == (20.0, 2)


def test_summary_without_the_reference_has_no_ratio() -> None:
    (served,) = summarise([row("torchserve", 0, 1500.0)])

    assert served.ratio is None


def test_arrangements_are_not_mixed() -> None:
    summaries = summarise([*rows(), row("torchserve", 0, 3000.0, workers=2)])

    assert [(each.workers, each.contender) for each in summaries] == [
        (1, "in-process"),
        (1, "torchserve"),
        (2, "torchserve"),
    ]
    assert summaries[2].images_per_s.median == 3000.0


@pytest.mark.parametrize(("images_per_s", "word"), [(1400.0, "pass"), (1380.0, "short")])
def test_a_target_is_judged_by_its_bound(images_per_s: float, word: str) -> None:
    verdicts = judge([row("in-process", 0, 2000.0), row("torchserve", 0, images_per_s)])

    assert verdicts[0].what == "1 worker, 32 in flight: of in-process"
    assert (verdicts[0].promise, verdicts[0].word) == (">= 0.7", word)


def test_memory_of_a_second_worker_is_a_difference() -> None:
    both = [
        row("torchserve", 0, 1500.0, server_pss_mib=400.0),
        row("torchserve", 0, 2500.0, workers=2, server_pss_mib=520.0),
    ]
    verdict = next(each for each in judge(both) if "second worker" in each.what)

    assert verdict.measured is not None
    assert (verdict.measured.median, verdict.word) == (120.0, "pass")


def test_a_target_that_the_run_did_not_cover_is_not_measured() -> None:
    verdicts = judge([])

    assert len(verdicts) == len(TARGETS)
    assert {each.word for each in verdicts} == {"not measured"}


def test_tables_name_every_contender_and_every_target() -> None:
    console = Console(file=io.StringIO(), width=160)
    show(console, summarise(rows()))
    show_verdicts(console, judge(rows()))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()

    for word in ("1 worker, 32 in flight", "in-process", "torchserve", "0.72 [0.70 0.75]", "pass"):
        assert word in text
    assert all(target.promise in text for target in TARGETS)


def test_rows_and_summaries_survive_json() -> None:
    first = json.loads(json.dumps(compact(rows()[0])))
    served = json.loads(json.dumps(compact(summarise(rows())[1])))

    assert Measurement(**first["measured"]) == rows()[0].measured
    assert served["ratio"] == pytest.approx({"median": 0.725, "low": 0.7, "high": 0.75})


def test_json_holds_neither_answers_nor_meaningless_digits() -> None:
    measured = replace(MEASURED, images_per_s=1 / 3, sample="answer of a server")

    assert compact(measured)["images_per_s"] == 0.3333
    assert "sample" not in compact([measured])[0]
