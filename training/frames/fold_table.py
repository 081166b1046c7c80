"""The table of a k-fold training: every member on the fold that it did not see.

`folds.json`, `folds.csv` and `folds.md` in the training's folder. Frames are scored on their own
pixels by the code of serving, with the trained network in eager torch.
"""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medserve.inference.frame_pipeline import FramePipeline
from training.core.fit import Fitted
from training.core.split import Split
from training.frames.data import FrameCase
from training.frames.evaluation import measure_frames
from training.frames.module import predict_with
from training.frames.scores import summarise

__all__ = ["write"]

_COLUMNS = (
    "fold", "patients", "frames", "best_epoch", "dice", "iou", "n", "false_positive_rate",
    "n_empty",
)  # fmt: skip
_AVERAGED = ("dice", "iou", "false_positive_rate")


def write(
    out_dir: Path,
    pipeline: FramePipeline,
    members: Sequence[Fitted],
    split: Split,
    cases: Sequence[FrameCase],
) -> list[dict[str, Any]]:
    """Measure and write; returns the rows."""
    rows = []
    for fold, member in enumerate(members):
        held_out = [case for case in cases if case.name in split.folds[fold]]
        measured = measure_frames(pipeline, predict_with(member.network), held_out)
        summary = summarise([each.score for each in measured]).to_json()
        row = {
            "fold": fold,
            "patients": len({case.patient for case in held_out}),
            "frames": len(held_out),
            "best_epoch": member.epoch,
        }
        rows.append(row | {name: summary[name] for name in _COLUMNS if name in summary})
    (out_dir / "folds.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    with (out_dir / "folds.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (out_dir / "folds.md").write_text(_markdown(rows), encoding="utf-8")
    return rows


def _markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join(name.replace("_", " ") for name in _COLUMNS) + " |"]
    lines.append("|" + "---|" * len(_COLUMNS))
    lines += ["| " + " | ".join(_shown(row[name]) for name in _COLUMNS) + " |" for row in rows]
    if len(rows) > 1:
        means = dict.fromkeys(_COLUMNS, "") | {"fold": "mean ± deviation"}
        for name in _AVERAGED:
            values = [row[name] for row in rows if row[name] is not None]
            if len(values) > 1:
                mean, deviation = statistics.fmean(values), statistics.stdev(values)
                means[name] = f"{mean:.4f} ± {deviation:.4f}"
        lines.append("| " + " | ".join(means[name] for name in _COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
