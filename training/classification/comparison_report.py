"""The comparison of versions as JSON, as a table in Markdown, and as one page with every error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from training.classification.report import confusion_matrix
from training.core.files import markdown_table, write_json
from training.core.page import data_uri, encode_png, write_page

__all__ = ["as_markdown", "write"]

_VERSION: Mapping[str, Callable[[Any], object]] = {
    "version": lambda row: f"`{row['version']}`",
    "errors": lambda row: f"{row['errors']} of {row['n']}",
    "accuracy": lambda row: f"{100 * row['accuracy']:.3f} %",
    "exact 95 % interval": lambda row: "{:.3f} to {:.3f} %".format(
        *(100 * each for each in row["accuracy_interval_95_exact"])
    ),
    "macro F1": lambda row: f"{row['macro_f1']:.5f}",
    "calibration error": lambda row: f"{row['ece']:.5f}",
    "for review": lambda row: row["reviewed"],
    "errors among them": lambda row: sum(each["review"] for each in row["wrong"]),
    "MB": lambda row: f"{row['artifact_bytes'] / 1e6:.2f}",
    "core-ms an image, alone / of 16": lambda row: (
        f"{row['core_ms']['1']:.2f} / {row['core_ms']['16']:.2f}"
    ),
    "engine": lambda row: row["engine"],
}
_PAIR: Mapping[str, Callable[[Any], object]] = {
    "pair": lambda each: f"`{each['first']}` and `{each['second']}`",
    "only the first right": lambda each: each["only_first"],
    "only the second right": lambda each: each["only_second"],
    "both wrong": lambda each: each["both_wrong"],
    "McNemar's p, exact": lambda each: f"{each['p_value']:.4f}",
}


def write(
    out_dir: Path, content: Mapping[str, Any], pictures: Mapping[str, npt.NDArray[np.uint8]]
) -> None:
    """Write `comparison.json`, `comparison.md` and `comparison.html`.

    Args:
        out_dir: Receives them.
        content: What `training.comparison` measured.
        pictures: The images of all errors, uint8 (H, W), by name; only the page shows them.
    """
    write_json(out_dir / "comparison.json", content, indent=1)
    (out_dir / "comparison.md").write_text(as_markdown(content), encoding="utf-8")
    versions = content["versions"]
    shown = {name: data_uri(encode_png(each)) for name, each in pictures.items()}
    write_page(
        out_dir / "comparison.html",
        "version_comparison.html",
        {"content": content, "shown": shown},
        {"confusion": lambda: _confusion(versions, content["labels"])},
    )


def as_markdown(content: Mapping[str, Any]) -> str:
    """Three tables: errors and cost, the paired tests, every image that any version errs on."""
    names = [f"`{row['version']}`" for row in content["versions"]]
    errors = _errors(content)
    tables = (
        markdown_table(_VERSION, content["versions"]),
        markdown_table(_PAIR, content["pairs"]),
        markdown_table(
            {
                "error": lambda row: f"`{row[0]}`",
                "truth": lambda row: row[1],
                **{name: partial(_said_by, n) for n, name in enumerate(names)},
            },
            errors,
        ),
    )
    return "\n".join(tables)


def _said_by(n: int, error: tuple[str, str, list[str]]) -> str:
    return error[2][n]


def _errors(content: Mapping[str, Any]) -> list[tuple[str, str, list[str]]]:
    """Name, truth and each version's wrong answer ("" where it is right), by name."""
    wrong = [{each["name"]: each for each in row["wrong"]} for row in content["versions"]]
    truths = {name: each["truth"] for row in wrong for name, each in row.items()}
    return [
        (name, truth, [_spoken(own.get(name)) for own in wrong])
        for name, truth in sorted(truths.items())
    ]


def _spoken(error: Mapping[str, Any] | None) -> str:
    return f"{error['answer']} ({error['probability']:.3f})" if error else ""


def _confusion(versions: list[dict[str, Any]], labels: list[str]) -> Figure:
    """One matrix a version, side by side."""
    figure = Figure(figsize=(4.2 * len(versions), 4.2), layout="constrained")
    for axes, row in zip(np.atleast_1d(figure.subplots(1, len(versions))), versions, strict=True):
        confusion_matrix(row["confusion_matrix"], labels, row["version"], axes)
    return figure
