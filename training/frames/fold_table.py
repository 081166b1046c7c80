"""The table of a k-fold training: every member on the fold that it did not see, and all of them.

`folds.json`, `folds.csv` and `folds.md` in the training's folder. Frames are scored on their own
pixels by the code of serving, with the trained network in eager torch. `folds.md` ends with all
frames together, each scored once: means with 95 % intervals by bootstrap over patients.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

from medserve.inference.frame_pipeline import FramePipeline
from training.core.evaluation import predict_with
from training.core.files import write_csv, write_json
from training.core.fit import Fitted
from training.core.report import Table
from training.core.segmentation import Material
from training.frames.config import FrameConfig
from training.frames.data import FrameCase, LoadedFrame
from training.frames.evaluation import measure_frames
from training.frames.scores import FrameScore, summarise

__all__ = ["write"]

_SCORES = ("dice", "iou", "n", "false_positive_rate", "n_empty")
_AVERAGED = ("dice", "iou", "false_positive_rate")


def write(
    config: FrameConfig,
    pipeline: FramePipeline,
    members: Sequence[Fitted],
    material: Material[FrameCase, LoadedFrame],
) -> None:
    """Measure every member and write the table of a training."""
    rows: list[dict[str, Any]] = []
    scores: list[FrameScore] = []
    for number, member in enumerate(members):
        fold = (config.fold + number) % config.folds
        held_out = material.named(material.split.folds[fold])
        measured = measure_frames(pipeline, predict_with(member.network), held_out)
        scores += (own := [each.score for each in measured])
        summary = summarise(own).to_json()
        row = {
            "fold": fold,
            "patients": len({case.patient for case in held_out}),
            "frames": len(held_out),
            "best_epoch": member.epoch,
        }
        rows.append(row | {name: summary[name] for name in _SCORES})
    write_json(config.out_dir / "folds.json", rows)
    write_csv(config.out_dir / "folds.csv", rows)
    columns = {name.replace("_", " "): partial(_shown, name) for name in rows[0]}
    table = Table.of(columns, [*rows, *_means(rows), *_together(rows, scores)]).markdown()
    (config.out_dir / "folds.md").write_text(table, encoding="utf-8")


def _means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the line of the table's means, where there are folds to average."""
    if len(rows) < 2:
        return []
    means = dict.fromkeys(rows[0], "") | {"fold": "mean ± deviation"}
    for name in _AVERAGED:
        values = [row[name] for row in rows if row[name] is not None]
        if len(values) > 1:
            means[name] = f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"
    return [means]


def _together(rows: Sequence[dict[str, Any]], scores: Sequence[FrameScore]) -> list[dict[str, Any]]:
    """Return the line of all frames, where there are several folds."""
    if len(rows) < 2:
        return []
    summary = summarise(scores).to_json()
    line = {name: summary.get(name, "") for name in rows[0]}
    line |= {"fold": "all frames", "frames": len(scores)}
    line["patients"] = len({each.patient for each in scores})
    for name in _AVERAGED:
        if (interval := summary["intervals"][name]) is not None:
            line[name] = "{:.4f} ({:.4f} to {:.4f})".format(summary[name], *interval)
    return [line]


def _shown(name: str, row: dict[str, Any]) -> str:
    value = row[name]
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
