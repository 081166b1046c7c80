"""The table of a comparison of networks: JSON, CSV, Markdown and HTML with a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from training.core.files import write_csv, write_json
from training.core.means import bootstrap_interval
from training.core.report import Table, write_page

__all__ = ["write"]

Row = dict[str, Any]
_OTHER = " (other budget)"
_MEASURES = ("hd95_mm", "surface_dice", "volume_error_percent")


def write(out_dir: Path, rows: Sequence[Row], budget: Mapping[str, Any]) -> None:
    """Write `comparison.json`, `.csv`, `.md`, `.html` and `.png`.

    Args:
        out_dir: Receives them.
        rows: What `training.volumes.compare` found out about each network.
        budget: What was equal for all; rows made under another one are marked.
    """
    ranked = sorted(rows, key=lambda row: -row["dice"]["mean"])
    ranked = [
        {**row, "versus_best": _difference(row, ranked[0]), "same_budget": row["budget"] == budget}
        for row in ranked
    ]
    content = {
        "budget": dict(budget),
        "rows": [{k: v for k, v in row.items() if k != "budget"} for row in ranked],
    }
    write_json(out_dir / "comparison.json", content, indent=1)
    write_csv(out_dir / "comparison.csv", [_flat(row) for row in ranked])
    labels = [label for label in ranked[0]["dice"] if label != "mean"]
    (out_dir / "comparison.md").write_text(_markdown(ranked, labels, budget), encoding="utf-8")
    write_page(
        out_dir / "comparison.html",
        "volumes_comparison.html",
        {"rows": ranked, "labels": labels, "budget": spoken(budget), "measures": _MEASURES},
        {"comparison": lambda: _figure(ranked, labels)},
    )


def spoken(budget: Mapping[str, Any]) -> str:
    """The budget in one sentence."""
    length = f"{budget['minutes']:g} minutes" if budget["minutes"] else f"{budget['epochs']} epochs"
    return (
        f"{length} of training each on {budget['threads']} threads ({budget['precision']}), "
        f"{budget['train_volumes']} volumes, batches of {budget['batch_size']} patches of "
        f"{' x '.join(map(str, budget['window']))}, one cycle up to a learning rate of "
        f"{budget['learning_rate']:g}, seed {budget['seed']}; scored on the "
        f"{budget['scored_volumes']} volumes of the {budget['scored_part']} part, on their own "
        f"grids, by ONNX Runtime, {'with' if budget['flips'] else 'without'} test-time flips"
    )


def _difference(row: Row, best: Row) -> dict[str, Any]:
    """Mean difference of Dice to the best network over the same volumes, with its interval."""
    shared = sorted(set(row["dice_per_case"]) & set(best["dice_per_case"]))
    mine, other = (
        np.array([np.mean(each["dice_per_case"][name]) for name in shared]) for each in (row, best)
    )
    low, high = bootstrap_interval(mine - other, shared)
    return {
        "mean": round(float((mine - other).mean()), 5),
        "interval": [round(low, 5), round(high, 5)],
    }


def _flat(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {"network": row["network"], "n": row["n"]}
    for name in ("dice", *_MEASURES):
        for label, value in row[name].items():
            low, high = row["intervals"][name][label]
            flat |= {f"{name}_{label}": value, f"{name}_{label}_low": low,
                     f"{name}_{label}_high": high}  # fmt: skip
    flat |= {
        "versus_best": row["versus_best"]["mean"],
        "parameters": row["parameters"],
        "artifact_mb": row["artifact_mb"],
        **{f"ms_{engine}": value for engine, value in row["ms_per_volume"].items()},
        **{name: row[name] for name in ("epochs", "best_epoch", "minutes", "cpu_minutes")},
        "same_budget": row["same_budget"],
    }
    return flat


def _markdown(rows: Sequence[Row], labels: Sequence[str], budget: Mapping[str, Any]) -> str:
    def dice(label: str) -> Callable[[Row], str]:
        return lambda row: _with_interval(row, label)

    def milliseconds(engine: str) -> Callable[[Row], str]:
        return lambda row: f"{row['ms_per_volume'][engine]:.0f}"

    columns: dict[str, Callable[[Row], str]] = {
        "network": lambda row: f"`{row['network']}`{'' if row['same_budget'] else _OTHER}",
        **{f"Dice {label}": dice(label) for label in labels},
        "mean": lambda row: f"{row['dice']['mean']:.4f}",
        "to the best": lambda row: "" if row is rows[0] else _to_the_best(row["versus_best"]),
        "HD95 mm": lambda row: f"{row['hd95_mm']['mean']:.2f}",
        "parameters": lambda row: f"{row['parameters'] / 1e6:.2f} M",
        **{f"ms, {engine}": milliseconds(engine) for engine in rows[0]["ms_per_volume"]},
        "ONNX MB": lambda row: f"{row['artifact_mb']:.1f}",
        "epochs": lambda row: row["epochs"],
    }
    note = (
        f"n = {rows[0]['n']}; 95 % intervals by bootstrap over subjects. {spoken(budget)}. "
        '"To the best": mean difference of Dice over the same volumes. Milliseconds: from a '
        f"file's bytes to its mask, median volume, {budget['threads']} threads."
    )
    return f"{Table.of(columns, rows).markdown()}\n{note}\n"


def _to_the_best(difference: Mapping[str, Any]) -> str:
    low, high = difference["interval"]
    return f"{difference['mean']:+.4f} ({low:+.4f} to {high:+.4f})"


def _with_interval(row: Row, label: str) -> str:
    low, high = row["intervals"]["dice"][label]
    return f"{row['dice'][label]:.4f} ({low:.3f} to {high:.3f})"


def _figure(rows: Sequence[Row], labels: Sequence[str]) -> Figure:
    """Left: Dice of each network with its interval. Right: Dice against time, area by size."""
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = np.arange(len(rows))[::-1]
    for n, label in enumerate(labels):
        values = np.array([row["dice"][label] for row in rows])
        bounds = np.array([row["intervals"]["dice"][label] for row in rows])
        errors = [values - bounds[:, 0], bounds[:, 1] - values]
        left.errorbar(values, places + 0.12 * (0.5 * (len(labels) - 1) - n), xerr=errors,
                      fmt="o", capsize=3, label=label)  # fmt: skip
    left.set_yticks(places, [row["network"] for row in rows])
    left.set_xlabel("Dice, 95 % interval")
    left.grid(axis="x", color="0.9")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=len(labels), frameon=False)
    engine = next(iter(rows[0]["ms_per_volume"]))
    milliseconds = [row["ms_per_volume"][engine] for row in rows]
    right.scatter(
        milliseconds,
        [row["dice"]["mean"] for row in rows],
        s=[60.0 * row["parameters"] / 1e6 for row in rows],
        alpha=0.5,
    )
    for rank, (row, x) in enumerate(zip(rows, milliseconds, strict=True)):
        aside = 11 if rank % 2 else -18  # neighbours in rank are neighbours in the picture
        right.annotate(row["network"], (x, row["dice"]["mean"]), textcoords="offset points",
                       xytext=(0, aside), ha="center")  # fmt: skip
    right.set(xlabel=f"ms a volume, {engine} (area: parameters)", ylabel="mean Dice")
    right.margins(x=0.15, y=0.25)
    right.grid(color="0.9")
    right.set_xlim(left=0)
    return figure
