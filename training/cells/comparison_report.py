"""What came out of a comparison: JSON for programs, Markdown for documents, HTML to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.classification import report
from training.classification.mcnemar import mcnemar
from training.classification.metrics import ClassificationMetrics
from training.core.files import markdown_table, write_json
from training.core.page import data_uri, draw, write_page

__all__ = ["Row", "best_two", "markdown", "write"]

_COLUMNS: Mapping[str, Callable[[Any], object]] = {
    "network": lambda row: row["name"],
    "first weights": lambda row: row["start"],
    "accuracy (95 %)": lambda row: "{:.2f} % ({:.2f} to {:.2f})".format(
        *(100 * each for each in (row["accuracy"], *row["accuracy_interval_95_exact"]))
    ),
    "macro F1": lambda row: f"{row['macro_f1']:.4f}",
    "ECE": lambda row: f"{row['ece']:.4f}",
    "passes": lambda row: f"{row['passes']:.1f}",
    "parameters": lambda row: f"{row['parameters']:,}",
    "MB": lambda row: f"{row['megabytes']:.1f}",
    "ms an image": lambda row: f"{row['image_ms']:.1f}",
}


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
    content = {"about": about, "rows": [row.to_json() for row in rows], "mcnemar": _test(rows)}
    write_json(out_dir / "comparison.json", content)
    (out_dir / "comparison.md").write_text(markdown(content), encoding="utf-8")
    shown = {"about": about, "mcnemar": content["mcnemar"]}
    return write_page(
        out_dir / "comparison.html",
        "cell_comparison.html",
        {**shown, "rows": [(row, _figures(out_dir, row)) for row in rows]},
        {},
    )


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
    confusion, labels = row.measured.confusion, row.measured.labels
    pngs = {
        "confusion_matrix": draw(lambda: report.confusion_matrix(confusion, labels)),
        "reliability": draw(lambda: report.reliability_curve(row.probabilities, row.label_ids)),
    }
    for name, png in pngs.items():
        (folder / f"{name}.png").write_bytes(png)
    return {name: data_uri(png) for name, png in pngs.items()}


def markdown(content: dict[str, Any]) -> str:
    """The table of `comparison.json`, and what McNemar's test says of the best two."""
    table = markdown_table(_COLUMNS, content["rows"])
    if not (test := content["mcnemar"]):
        return table
    return (
        f"{table}\nOf the best two, only {test['first']} is right on {test['only_first']} images "
        f"and only {test['second']} on {test['only_second']}: McNemar's exact p = "
        f"{test['p_value']:.2g}.\n"
    )
