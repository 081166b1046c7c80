"""What the rules say of the files in a folder, without a node."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from medserve.dicom.completeness import Count, StudySeries, judge
from medserve.dicom.headers import read_facts
from medserve.dicom.peers import Destination
from medserve.dicom.rules import Rules
from medserve.dicom.spool import Image
from medserve.errors import InvalidImageError

__all__ = ["DryRun", "Row", "dry_run"]


@dataclass(frozen=True)
class Row:
    """One series and one rule that is for it; `rule` is "" where none is."""

    series: int
    images: int
    rule: str
    model: str
    verdict: str


@dataclass(frozen=True)
class DryRun:
    """What a node would do.

    Attributes:
        rows: In the order in which the series were found.
        skipped: Files that are no DICOM, or results that are not worked on.
    """

    rows: tuple[Row, ...]
    skipped: int


def dry_run(rules: Rules, folder: Path, calling: str) -> DryRun:
    """Judge every series in a folder and below as if all of it had been sent."""
    series: dict[str, dict[str, Image]] = {}
    skipped = 0
    for path in _files(folder):
        try:
            facts = read_facts(path)
        except (InvalidImageError, OSError):
            skipped += 1
            continue
        if facts.is_result:
            skipped += 1
            continue
        series.setdefault(facts.series_uid, {}).setdefault(facts.sop_uid, Image(facts, path))
    everything = [
        StudySeries(number, calling, list(images.values()))
        for number, images in enumerate(series.values(), start=1)
    ]
    rows = []
    for each in everything:
        number, images = each.number, each.images
        study = [other for other in everything if _study(other) == _study(each)]
        verdicts = judge(rules, images, calling, _count_of(len(images)), study)
        rows += [
            Row(number, len(each.images), each.rule, rules.by_name[each.rule].model,
                f"not complete: {each.reason}" if each.reason else "complete")
            for each in verdicts
            if not each.series or each.series[0] == number  # once for all series of its inputs
        ]  # fmt: skip
        if not verdicts:
            rows.append(Row(number, len(images), "", "", "no rule is for it"))
    return DryRun(tuple(rows), skipped)


def _study(series: StudySeries) -> str:
    return series.images[0].facts.study_uid


def _files(folder: Path) -> list[Path]:
    return sorted(Path(top) / name for top, _, names in os.walk(folder) for name in names)


def _count_of(number: int) -> Count:
    """Return a stand-in for an archive, which a dry run does not ask."""

    def count(archive: Destination, study: str, series: str) -> int:
        return number

    return count
