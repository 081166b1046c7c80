"""What came out of a comparison: JSON for programs, Markdown for documents, HTML to look at."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt

from training import report
from training.mcnemar import mcnemar
from training.metrics import ClassificationMetrics

__all__ = ["Row", "best_two", "markdown", "write"]


@dataclass(frozen=True, eq=False)
class Row:
    """One network of a comparison.

    Attributes:
        name: Of the network.
        start: Where its first weights came from.
        measured: On the test part.
        probabilities: float64 (N, K) on the test part.
        label_ids: int64 (N,), the truth.
        passes: How often each training image was seen, on average.
        parameters: Number of them.
        megabytes: Of the parameters.
        image_ms: Median time of one answer, in torch.
    """

    name: str
    start: str
    measured: ClassificationMetrics
    probabilities: npt.NDArray[np.float64]
    label_ids: npt.NDArray[np.int64]
    passes: float
    parameters: int
    megabytes: float
    image_ms: float

    @property
    def is_right(self) -> npt.NDArray[np.bool_]:
        """Bool (N,): which test images got their label."""
        return self.probabilities.argmax(axis=1) == self.label_ids

    def to_json(self) -> dict[str, Any]:
        """Members of `comparison.json`."""
        return {
            "name": self.name,
            "start": self.start,
            "passes": round(self.passes, 3),
            "parameters": self.parameters,
            "megabytes": round(self.megabytes, 2),
            "image_ms": round(self.image_ms, 2),
            **self.measured.to_json(),
        }


def best_two(rows: list[Row]) -> tuple[Row, Row] | None:
    """The two rows with the fewest errors, or None where there is but one."""
    ordered = sorted(rows, key=lambda row: (row.measured.errors, row.measured.ece))
    return (ordered[0], ordered[1]) if len(ordered) > 1 else None


def write(out_dir: Path, rows: list[Row], about: dict[str, Any]) -> Path:
    """Write the three forms of the comparison; returns the page."""
    out_dir.mkdir(parents=True, exist_ok=True)
    content = {"about": about, "rows": [row.to_json() for row in rows], "mcnemar": _test(rows)}
    text = json.dumps(content, indent=2)
    (out_dir / "comparison.json").write_text(text + "\n", encoding="utf-8")
    (out_dir / "comparison.md").write_text(markdown(content), encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent.parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("cell_comparison.html").render(
        about=about,
        rows=[(row, _figures(out_dir, row)) for row in rows],
        mcnemar=content["mcnemar"],
    )
    path = out_dir / "comparison.html"
    path.write_text(page, encoding="utf-8")
    return path


def _test(rows: list[Row]) -> dict[str, Any] | None:
    best = best_two(rows)
    if best is None:
        return None
    found = mcnemar(best[0].is_right, best[1].is_right)
    return {"first": best[0].name, "second": best[1].name, **asdict(found)}


def _figures(out_dir: Path, row: Row) -> dict[str, str]:
    """Confusion matrix and reliability as data URIs, and as PNG beside the page."""
    folder = out_dir / row.name
    folder.mkdir(exist_ok=True)
    pngs = {
        "confusion_matrix": report.confusion_png(row.measured),
        "reliability": report.reliability_png(row.probabilities, row.label_ids),
    }
    for name, png in pngs.items():
        (folder / f"{name}.png").write_bytes(png)
    return {name: report.data_uri(png) for name, png in pngs.items()}


def markdown(content: dict[str, Any]) -> str:
    """The table of `comparison.json`, and what McNemar's test says of the best two."""
    lines = [
        "| network | first weights | accuracy (95 %) | macro F1 | ECE | passes | parameters | MB "
        "| ms an image |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in content["rows"]:
        low, high = row["accuracy_interval_95_exact"]
        lines.append(
            f"| {row['name']} | {row['start']} "
            f"| {100 * row['accuracy']:.2f} % ({100 * low:.2f} to {100 * high:.2f}) "
            f"| {row['macro_f1']:.4f} | {row['ece']:.4f} | {row['passes']:.1f} "
            f"| {row['parameters']:,} | {row['megabytes']:.1f} | {row['image_ms']:.1f} |"
        )
    if test := content["mcnemar"]:
        lines += [
            "",
            f"Of the best two, only {test['first']} is right on {test['only_first']} images and "
            f"only {test['second']} on {test['only_second']}: "
            f"McNemar's exact p = {test['p_value']:.2g}.",
        ]
    return "\n".join(lines) + "\n"
