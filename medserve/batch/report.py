"""The report of a batch in HTML: counts, failures, distributions, doubts and throughput."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from medserve.batch.receipts import BatchFolder, Receipt
from medserve.batch.tables import columns_of, doubts_of, measures_of, write_tables

__all__ = ["Summary", "summarise", "write_report"]

_MOST_DOUBTFUL = 50
_MOST_REASONS = 50
_BINS = 24
_HOUR_S = 3600


@dataclass
class Summary:
    """What the receipts of a batch say together.

    Attributes:
        counts: Studies by status.
        failures: Studies by code and message of the error.
        labels: Images by class.
        flags: Studies by flag, `review` and `unlike_training`.
        measures: Values of each measure.
        seconds: Of each answered study.
        hours: Answered studies by the hour in which they were begun, in seconds since 1970.
        size_bytes: Of all inputs together.
        columns: Of the measures in the tables.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    measures: dict[str, array[float]] = field(default_factory=lambda: defaultdict(_numbers))
    seconds: array[float] = field(default_factory=lambda: array("d"))
    hours: Counter[int] = field(default_factory=Counter)
    size_bytes: int = 0
    columns: dict[str, None] = field(default_factory=dict)
    _doubtful: list[tuple[float, str, str]] = field(default_factory=list)

    def add(self, receipt: Receipt) -> None:
        """Count one study."""
        self.counts[receipt.status] += 1
        self.size_bytes += receipt.size_bytes
        if receipt.status == "error":
            self.failures[receipt.code, receipt.message] += 1
            return
        self.seconds.append(receipt.seconds)
        self.hours[int(receipt.started_at) // _HOUR_S * _HOUR_S] += 1
        for name, value in measures_of(receipt.answer).items():
            self.columns[name] = None
            if name == "label":
                self.labels[value] += 1
            elif name == "present":
                self.labels.update(receipt.answer["present"] or [value])
            elif value is not None and not name.startswith("p_"):
                self.measures[name].append(float(value))
        for flag in ("review", "unlike_training"):
            self.flags[flag] += bool(receipt.answer.get(flag))
        self._keep_doubtful(receipt)

    @property
    def doubtful(self) -> list[tuple[str, str]]:
        """The studies that a person should look at first, each with the reason."""
        return [(study, reason) for _, study, reason in sorted(self._doubtful, reverse=True)]

    def _keep_doubtful(self, receipt: Receipt) -> None:
        answer = receipt.answer
        unlike, review = bool(answer.get("unlike_training")), bool(answer.get("review"))
        if not (unlike or review):
            return
        found = _found(answer)
        doubt = 2.0 * unlike + (1.0 - min((share for _, share in found), default=0.0))
        reasons = ["unlike the training data"] if unlike else []
        reasons += [f"{label} with {share:.3f}" for label, share in found]
        reasons += doubts_of(answer)
        item = (doubt, receipt.id, "; ".join(reasons))
        if len(self._doubtful) < _MOST_DOUBTFUL:
            heapq.heappush(self._doubtful, item)
        else:
            heapq.heappushpop(self._doubtful, item)


def _found(answer: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the class, or the labels that are present, with their probabilities."""
    if "present" in answer:
        return [(label, float(answer["probabilities"][label])) for label in answer["present"]]
    if "probability" in answer:
        return [(answer["label"], float(answer["probability"]))]
    return []


def summarise(receipts: Iterable[Receipt]) -> Summary:
    """Return what receipts say together, in memory that a million of them do not fill."""
    summary = Summary()
    for receipt in receipts:
        summary.add(receipt)
    return summary


def write_report(folder: BatchFolder) -> tuple[Summary, tuple[Path, ...]]:
    """Write the tables and report.html; returns what they say, and their paths.

    Raises:
        ConfigError: the folder is none of a batch.
        OSError: the disk is full or read-only.
    """
    head = folder.head()
    summary = summarise(folder.receipts())
    tables = write_tables(folder, columns_of(summary.columns))
    folder.publish("report.html", _page(head.model, summary).encode())
    return summary, (*tables, folder.path / "report.html")


def _numbers() -> array[float]:
    return array("d")


def _page(model: str, summary: Summary) -> str:
    sections = [
        _table("Studies", ("status", "studies"), sorted(summary.counts.items())),
        _table(
            "Failures by reason",
            ("code", "message", "studies"),
            [(*reason, n) for reason, n in summary.failures.most_common(_MOST_REASONS)],
        ),
        _table("Classes", ("class", "images"), summary.labels.most_common()),
        _table("Flags", ("flag", "studies"), sorted(summary.flags.items())),
        _table("Most doubtful", ("study", "reason"), summary.doubtful),
        *(_histogram(name, values) for name, values in summary.measures.items()),
        _throughput(summary),
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Batch of {escape(model)}</title><style>{_STYLE}</style>"
        f"<h1>Batch of {escape(model)}</h1>"
        "<p>Research use, not a medical device. Made from the receipts of the batch by "
        "<code>medserve batch report</code>.</p>" + "".join(sections) + "</html>\n"
    )


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    top = "".join(f"<th>{escape(each)}</th>" for each in heads)
    body = "".join("<tr>" + "".join(_cell(each) for each in row) + "</tr>" for row in rows)
    return f"<h2>{escape(title)}</h2><div><table><tr>{top}</tr>{body}</table></div>"


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f'<td class="n">{value:,}</td>'
    return f"<td>{escape(str(value))}</td>"


def _histogram(name: str, values: array[float]) -> str:
    """Draw how a measure is distributed over the studies."""
    found = np.asarray(values)
    found = found[np.isfinite(found)]
    if not len(found):
        return ""
    counts, edges = np.histogram(found, bins=_BINS)
    bars = _bars([int(each) for each in counts])
    low, middle, high = np.percentile(found, (5, 50, 95))
    return (
        f"<h2>{escape(name)}</h2>{bars}<p>{edges[0]:.4g} to {edges[-1]:.4g}; median "
        f"{middle:.4g}, 5th and 95th percentile {low:.4g} and {high:.4g}; {len(found)} studies</p>"
    )


def _throughput(summary: Summary) -> str:
    if not summary.seconds:
        return ""
    hours = range(min(summary.hours), max(summary.hours) + 1, _HOUR_S)
    shown = hours[-7 * 24 :]  # the last week
    first = datetime.fromtimestamp(shown[0], UTC)
    middle, high = np.percentile(np.asarray(summary.seconds), (50, 95))
    return (
        f"<h2>Throughput</h2>{_bars([summary.hours[hour] for hour in shown])}"
        f"<p>Answered studies an hour, from {first:%Y-%m-%d %H:00} UTC. A study took "
        f"{middle:.3g} s (median), {high:.3g} s (95th percentile). Inputs: "
        f"{summary.size_bytes / 1e9:.3f} GB.</p>"
    )


def _bars(counts: Sequence[int]) -> str:
    most = max(counts, default=0) or 1
    width = 480 / len(counts)
    bars = "".join(
        f'<rect x="{place * width:.1f}" y="{100 - 100 * count / most:.1f}" width="{width:.1f}" '
        f'height="{100 * count / most:.1f}"><title>{count}</title></rect>'
        for place, count in enumerate(counts)
    )
    return f'<svg viewBox="0 0 480 100" width="480" height="100" role="img">{bars}</svg>'


_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "h2{margin:2rem 0 .5rem;font-size:1.15rem}table{border-collapse:collapse;max-width:100%}"
    "td,th{text-align:left;padding:.2rem 1.2rem .2rem 0;border-bottom:1px solid #8886;"
    "vertical-align:top;overflow-wrap:break-word}th{white-space:nowrap}"
    "td{min-width:4rem}td.n{text-align:right;font-variant-numeric:tabular-nums}"
    "div{overflow-x:auto}svg{max-width:100%;height:auto;border-bottom:1px solid #8888}"
    "rect{fill:#2a7de1}"
)
