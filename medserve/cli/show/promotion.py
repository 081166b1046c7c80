"""The figures on which a promotion rests, as one HTML page that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["write_promotion"]

_WIDTH, _ROW = 640, 22  # of the plots, in pixels
_NAMES, _PLOT = 150, 430
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:right}
td:first-child,th:first-child{text-align:left}figcaption{color:#555}svg{max-width:100%}
"""


def write_promotion(path: Path, evidence: Mapping[str, Any], promoted: bool) -> None:
    """Write the page; it appears whole."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(_page(evidence, promoted), encoding="utf-8")
    temporary.replace(path)


def _page(found: Mapping[str, Any], promoted: bool) -> str:
    title = f"{found['model']}: {found['after']} beside {found['before']}"
    decision = (
        f"{found['after']} was made the default version."
        if promoted
        else f"{found['before']} stays the default version."
    )
    parts = [
        f"<h1>{_text(title)}</h1>",
        f"<p><b>{_text(decision)}</b> It may be worse by {found['worst']:.2%} at most (95 %), and "
        f"{found['allowed']:.2%} was allowed. The version that answered the callers is the "
        "reference; nobody knows the truth of their calls.</p>",
        _table(
            ("answers compared", "failed", "copies dropped", "not comparable"),
            [[found["pairs"], found["failed"], found["dropped"], found["skipped"]]],
        ),
    ]
    if "different" in found:
        parts += _classes(found)
    if "dice" in found:
        parts += _masks(found)
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_text(title)}</title>'
        f"<style>{_STYLE}</style><body>\n{body}\n"
        "<p>Research use, not a medical device.</p></body></html>\n"
    )


def _classes(found: Mapping[str, Any]) -> list[str]:
    share = found["different"]
    rows = [
        [
            each["label"],
            each["both"],
            each["only_before"],
            each["only_after"],
            f"{each['agreement']:.2%}",
            f"{each['mcnemar_p']:.3g}",
        ]
        for each in found["classes"]
    ]
    return [
        "<h2>Answers with another class</h2>",
        _interval(share["share"], share["interval_95"], found["allowed"], "share that differs"),
        "<h2>Agreement by class</h2>",
        _bars([(each["label"], each["agreement"]) for each in found["classes"]]),
        _table(
            ("class", "both", "only before", "only after", "agreement", "McNemar p"),
            rows,
        ),
    ]


def _masks(found: Mapping[str, Any]) -> list[str]:
    dice = found["dice"]
    rows = [
        [label, f"{each['mean']:+.2%}", _range(each["interval_95"])]
        for label, each in found["volumes"].items()
    ]
    low, high = dice["interval_95"]
    return [
        "<h2>What the mean Dice lacks of 1</h2>",
        _interval(1 - dice["mean"], (1 - high, 1 - low), found["allowed"], "1 - mean Dice"),
        "<h2>Dice of the masks</h2>",
        _bars(
            [
                (f"{place / 20:.2f} to {(place + 1) / 20:.2f}", count / max(1, found["pairs"]))
                for place, count in enumerate(dice["histogram"])
                if count
            ]
        ),
        "<h2>Volumes</h2>",
        _table(("structure", "mean change", "95 %"), rows),
    ]


def _interval(value: float, interval: Sequence[float], allowed: float, name: str) -> str:
    """Draw a value, its interval, and the line that it may not reach."""
    most = max(1.25 * max(interval[1], allowed), 1e-6)

    def x(of: float) -> float:
        return _NAMES + _PLOT * min(max(of, 0.0), most) / most

    low, high = x(interval[0]), x(interval[1])
    colour = "#1a7f37" if interval[1] <= allowed else "#b35900"
    drawn = [
        f'<line x1="{low:.1f}" y1="30" x2="{high:.1f}" y2="30" stroke="{colour}" '
        'stroke-width="3"/>',
        f'<circle cx="{x(value):.1f}" cy="30" r="5" fill="{colour}"/>',
        f'<line x1="{x(allowed):.1f}" y1="8" x2="{x(allowed):.1f}" y2="52" stroke="#222" '
        'stroke-dasharray="4 3"/>',
        f'<text x="{x(allowed):.1f}" y="68" text-anchor="middle">allowed {allowed:.2%}</text>',
        f'<text x="0" y="34">{_text(name)}</text>',
    ]
    caption = f"{value:.2%}, 95 %: {_range(interval)}"
    return _figure(drawn, 74, caption)


def _bars(rows: Sequence[tuple[str, float]]) -> str:
    drawn = []
    for place, (name, share) in enumerate(rows):
        y = place * _ROW
        drawn += [
            f'<text x="0" y="{y + 15}">{_text(name)}</text>',
            f'<rect x="{_NAMES}" y="{y + 4}" width="{_PLOT * share:.1f}" height="14" '
            'fill="#3572a5"/>',
            f'<text x="{_NAMES + _PLOT * share + 6:.1f}" y="{y + 15}">{share:.1%}</text>',
        ]
    return _figure(drawn, max(1, len(rows)) * _ROW, "")


def _figure(drawn: Iterable[str], height: int, caption: str) -> str:
    below = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    inside = "".join(drawn)
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'font-size="13" role="img">{inside}</svg>{below}</figure>'
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{_text(each)}</th>" for each in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(each)}</td>" for each in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _range(interval: Sequence[float] | None) -> str:
    return "too few" if interval is None else f"{interval[0]:.2%} to {interval[1]:.2%}"


def _text(value: object) -> str:
    return html.escape(str(value))
