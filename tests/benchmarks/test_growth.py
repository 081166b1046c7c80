"""What a measurement of growth starts, and what it concludes; nothing is started here."""

from __future__ import annotations

import json
import zipfile
from itertools import product
from pathlib import Path

import pytest

from benchmarks.archives import with_version
from benchmarks.growth import Arrangement, Point, arrangements, per_worker, plot, table
from medserve.archive.read import MANIFEST, inspect_archive


def a_point(engine: str, models: int, workers: int, in_flight: int, memory_mib: float) -> Point:
    return Point(engine, 0, models, workers, in_flight, 2.0, 100.0, 1.5, 3.0, memory_mib, 1.0)


def points() -> list[Point]:
    found = []
    for engine, (first, further) in product(("torchserve", "direct"), [(190.0, 86.0)]):
        found += [a_point(engine, 1, 1, calls, first) for calls in (1, 8, 64)]
        found += [a_point(engine, 20, 1, 1, first + 19 * further)]
        found += [a_point(engine, 1, count, 64, first + (count - 1) * further) for count in (2, 4)]
    return found


def test_each_axis_grows_by_itself_from_one_model_with_one_worker() -> None:
    assert arrangements((1, 512), (1, 4), (1, 2)) == [
        Arrangement(1, 1, (1, 64, 512)),
        Arrangement(4, 1, (1,)),
        Arrangement(1, 2, (64,)),
    ]


def test_memory_of_a_worker_is_the_slope() -> None:
    assert per_worker(points(), "direct") == pytest.approx((190.0, 86.0))


def test_every_load_has_a_line_and_every_axis_a_curve() -> None:
    assert table(points()).row_count == 2 * 6
    curves = [len(axes.lines) for axes in plot(points()).axes]
    assert curves == [2, 2, 4]  # both engines, and dashed what is only on paper


def test_another_version_of_an_archive_is_a_whole_archive(tiny_store: Path, tmp_path: Path) -> None:
    copy = with_version(tiny_store / "tiny-1.0.mar", tmp_path, "0.7")
    assert copy.name == "tiny-0.7.mar"
    assert inspect_archive(copy).version == "0.7"
    with zipfile.ZipFile(copy) as opened:
        assert json.loads(opened.read("MAR-INF/MANIFEST.json"))["model"]["modelVersion"] == "0.7"
        assert MANIFEST in opened.namelist()
