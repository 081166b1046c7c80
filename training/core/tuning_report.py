"""The page of a search for settings: its history, what mattered, and every trial."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from training.core.page import write_page

__all__ = ["write"]

_LOGARITHMIC = ("learning_rate", "l1", "weight_decay")


def write(out_dir: Path, content: Mapping[str, Any]) -> Path:
    """Write `tuning.html` with everything inside, and each figure as a PNG beside it."""
    figures = {"history": lambda: _history(content), "settings": lambda: _settings(content)}
    if content["importance"]:
        figures["importance"] = lambda: _importance(content)
    return write_page(out_dir / "tuning.html", "tuning.html",
                      {"content": content, "settings": list(content["best"])}, figures)  # fmt: skip


def _history(content: Mapping[str, Any]) -> Figure:
    """Score of each trial, and of the best so far."""
    figure = Figure(figsize=(4.2, 2.9), layout="constrained")
    axes = figure.subplots()
    numbers = [row["trial"] for row in content["rows"]]
    scores = [row["score"] for row in content["rows"]]
    best = (np.maximum if content["higher_is_better"] else np.minimum).accumulate
    axes.plot(numbers, scores, "o", markersize=4, label="trial")
    axes.step(numbers, best(scores), where="post", label="best so far")
    axes.set(xlabel="trial (0: the defaults)", ylabel=content["score"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    axes.grid(color="0.9")
    return figure


def _importance(content: Mapping[str, Any]) -> Figure:
    """Share of the variance that each setting explains."""
    figure = Figure(figsize=(4.2, 2.9), layout="constrained")
    axes = figure.subplots()
    shares = dict(sorted(content["importance"].items(), key=lambda pair: pair[1]))
    axes.barh([name.replace("_", " ") for name in shares], list(shares.values()))
    axes.set(xlabel="share of the variance explained (fANOVA)", xlim=(0, 1))
    return figure


def _settings(content: Mapping[str, Any]) -> Figure:
    """Score against each setting."""
    names = list(content["best"])
    rows = -(-len(names) // 4)
    figure = Figure(figsize=(9.6, 2.3 * rows), layout="constrained")
    panels = figure.subplots(rows, 4, squeeze=False, sharey=True).ravel()
    scores = [row["score"] for row in content["rows"]]
    for axes, name in zip(panels, names, strict=False):
        if name in _LOGARITHMIC:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())  # powers of ten are enough
        axes.plot([row[name] for row in content["rows"]], scores, ".", alpha=0.7)
        axes.axvline(content["best"][name], color="0.7", linewidth=1, zorder=0)
        axes.set_xlabel(name.replace("_", " "))
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    panels[0].set_ylabel(content["score"])
    return figure
