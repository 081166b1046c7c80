"""The comparison of versions as JSON, as a table in Markdown, and as one page with every error."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image as PillowImage

from training.segmentation.page import data_uri, write_page

__all__ = ["as_markdown", "write"]

_ZOOM = 2  # screen pixels an image pixel


def write(
    out_dir: Path, content: Mapping[str, Any], pictures: Mapping[str, npt.NDArray[np.uint8]]
) -> None:
    """Write `comparison.json`, `comparison.md` and `comparison.html`.

    Args:
        out_dir: Receives them.
        content: What `training.comparison` measured.
        pictures: The images of all errors, uint8 (H, W), by name; only the page shows them.
    """
    text = json.dumps(content, indent=1)
    (out_dir / "comparison.json").write_text(text + "\n", encoding="utf-8")
    (out_dir / "comparison.md").write_text(as_markdown(content), encoding="utf-8")
    versions = content["versions"]
    shown = {name: data_uri(_png(each)) for name, each in pictures.items()}
    write_page(
        out_dir / "comparison.html",
        "version_comparison.html",
        {"content": content, "shown": shown},
        {"confusion": lambda: _confusion(versions, content["labels"])},
    )


def as_markdown(content: Mapping[str, Any]) -> str:
    """Three tables: errors and cost, the paired tests, every image that any version errs on."""
    lines = [
        "| version | errors | accuracy | exact 95 % interval | macro F1 | calibration error | "
        "for review | errors among them | MB | core-ms an image, alone / of 16 | engine |",
        "|" + "---|" * 11,
    ]
    for row in content["versions"]:
        low, high = row["accuracy_interval_95_exact"]
        caught = sum(each["review"] for each in row["wrong"])
        lines.append(
            f"| `{row['version']}` | {row['errors']} of {row['n']} | {100 * row['accuracy']:.3f} % "
            f"| {100 * low:.3f} to {100 * high:.3f} % | {row['macro_f1']:.5f} | {row['ece']:.5f} "
            f"| {row['reviewed']} | {caught} | {row['artifact_bytes'] / 1e6:.2f} "
            f"| {row['core_ms']['1']:.2f} / {row['core_ms']['16']:.2f} | {row['engine']} |"
        )
    lines += [
        "",
        "| pair | only the first right | only the second right | both wrong | McNemar's p, exact |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{each['first']}` and `{each['second']}` | {each['only_first']} | "
        f"{each['only_second']} | {each['both_wrong']} | {each['p_value']:.4f} |"
        for each in content["pairs"]
    ]
    lines += ["", "| error | truth | " + " | ".join(_versions(content)) + " |"]
    lines.append("|" + "---|" * (2 + len(content["versions"])))
    lines += [
        f"| `{name}` | {truth} | " + " | ".join(answers) + " |"
        for name, truth, answers in _errors(content)
    ]
    return "\n".join(lines) + "\n"


def _versions(content: Mapping[str, Any]) -> list[str]:
    return [f"`{row['version']}`" for row in content["versions"]]


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
        counts = np.array(row["confusion_matrix"])
        # Colour by share of the row, or the hits would leave every error as white as a zero.
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        sns.heatmap(
            np.sqrt(share), annot=counts, fmt="d", cmap="Blues", cbar=False, square=True,
            xticklabels=labels, yticklabels=labels, ax=axes,
        )  # fmt: skip
        axes.set(xlabel="answered", ylabel="true", title=row["version"])
        axes.tick_params(axis="x", rotation=45)
    return figure


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    large = np.kron(pixels, np.ones((_ZOOM, _ZOOM), dtype=np.uint8))
    buffer = io.BytesIO()
    PillowImage.fromarray(large).save(buffer, format="PNG")
    return buffer.getvalue()
