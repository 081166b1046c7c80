"""The operator's page of a node: what came, what waits, what is held and why. It names nobody."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape

from medserve.dicom.node import Node
from medserve.dicom.table import queue, undelivered

__all__ = ["render"]

_LOOK_AGAIN_S = 5
_MOST_ROWS = 200
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
       color: #1b1b1b; background: #fff; }
div { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 2rem; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #ddd;
         vertical-align: top; }
.held td, .stuck { color: #a40000; }
@media (prefers-color-scheme: dark) { body { color: #eee; background: #1b1b1b; }
  th, td { border-color: #444; } .held td, .stuck { color: #ff8f7f; } }
"""
_EVENTS = {
    "rejected": "associations rejected: another AE title is called, or the sender is not allowed",
    "refused": "objects refused for want of room",
    "unreadable": "objects that cannot be read",
    "mismatched": "objects that are others than their sender says, or of a kind that is not taken",
    "other_bytes": "objects that came again with other bytes; the first ones are kept",
    "results_ignored": "results that came back",
    "failed": "objects that failed here; see the log",
}


def render(node: Node, stuck: Sequence[str]) -> str:
    """Return the page; `stuck` are the loops that make no progress."""
    counts, now = node.spool.counts(), node.spool.now()
    tasks = node.spool.read(queue)[:_MOST_ROWS]
    results = node.spool.read(undelivered)[:_MOST_ROWS]
    health = "It makes progress."
    if stuck:
        health = f'<span class="stuck">No progress: {escape(", ".join(stuck))}.</span>'
    parts = [
        f"<p>{health} This page looks again every {_LOOK_AGAIN_S} seconds.</p>",
        _section("Now", ("what", "number"), (("", row) for row in _numbers(counts))),
        _section(
            "Series that are not answered",
            ("task", "series", "rule", "images", "state", "tries", "for", "reason"),
            (
                (each["state"],
                 (each["id"], each["series"], each["rule"], each["images"], each["state"],
                  each["attempts"], _age(now - each["changed"]), each["reason"]))
                for each in tasks
            ),
        ),
        _section(
            "Results that are not sent",
            ("task", "destination", "objects", "state", "reason"),
            (
                (each["state"], (each["task"], each["destination"], each["objects"], each["state"],
                                 each["reason"]))
                for each in results
            ),
        ),
        "<p>Held tasks: <code>medserve dicom retry</code> lets them be tried again, "
        "<code>medserve dicom forget</code> deletes all that is known of their series.</p>",
    ]  # fmt: skip
    title = f"DICOM node {escape(node.settings.receiver.ae_title)}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta http-equiv="refresh" content="{_LOOK_AGAIN_S}">'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><h1>{title}</h1>{''.join(parts)}</body></html>\n"
    )


def _numbers(counts: dict[str, Counter[str]]) -> list[tuple[object, ...]]:
    tasks, results = counts["task"], counts["delivery"]
    rows: list[tuple[object, ...]] = [
        ("series received, still coming", counts["series"]["open"]),
        ("series received", counts["series"].total()),
        ("tasks incomplete", tasks["incomplete"]),
        ("tasks waiting for the model", tasks["waiting"]),
        ("tasks answered", tasks["answered"]),
        ("tasks held", tasks["held"]),
        ("results sent", results["sent"]),
        ("results waiting for a destination", results["waiting"]),
        ("results held", results["held"]),
        ("MB of images on the disk", f"{counts['bytes']['images'] / 1e6:.1f}"),
    ]
    return rows + [(text, number) for event, text in _EVENTS.items()
                   if (number := counts["count"][event])]  # fmt: skip


def _section(title: str, names: Sequence[str], rows: Iterable[tuple[str, Sequence[object]]]) -> str:
    body = []
    for state, row in rows:
        cells = "".join(f"<td>{escape(str(each))}</td>" for each in row)
        body.append(f'<tr class="{escape(state)}">{cells}</tr>')
    if not body:
        return f"<h2>{title}</h2><p>None.</p>"
    head = "".join(f"<th>{name}</th>" for name in names)
    return f"<h2>{title}</h2><div><table><tr>{head}</tr>{''.join(body)}</table></div>"


def _age(seconds: float) -> str:
    if seconds < 60:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
