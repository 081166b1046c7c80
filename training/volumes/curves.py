"""What a training wrote down as it went: loss and validation, and the table of its folds."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

__all__ = ["Fold", "Run", "draw_runs", "fold_of", "read_runs"]

_LOSS, _DICE, _PREFIX = "train_loss", "validation_dice", "validation_dice_"


@dataclass(frozen=True)
class Run:
    """The log of one training.

    Attributes:
        name: Of its folder.
        fold: The part that validated, None where no config says so.
        loss: (epoch, mean training loss) of every logged epoch, counted from 1.
        dice: (epoch, mean validation Dice).
        labels: label -> Dice, in the order of `dice`.
    """

    name: str
    fold: int | None
    loss: tuple[tuple[int, float], ...]
    dice: tuple[tuple[int, float], ...]
    labels: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Fold:
    """The best validation of one training: a row of the table of folds."""

    name: str
    fold: int | None
    epoch: int
    dice: float
    labels: dict[str, float]


def read_runs(folder: Path) -> list[Run]:
    """Trainings below a folder: itself, or its `member_*`, wherever there are `logs/`."""
    folders = [folder, *sorted(folder.glob("member_*"))]
    runs = [_read(each) for each in folders if list(each.glob("logs/attempt_*/metrics.csv"))]
    return [run for run in runs if run.dice]


def fold_of(run: Run) -> Fold:
    """Its best validation."""
    place = max(range(len(run.dice)), key=lambda n: run.dice[n][1])
    epoch, dice = run.dice[place]
    labels = {label: values[place] for label, values in run.labels.items()}
    return Fold(run.name, run.fold, epoch, dice, labels)


def draw_runs(runs: Sequence[Run]) -> Figure:
    """Loss (left) and validation Dice (right) of each training by epoch."""
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for run in runs:
        name = run.name if run.fold is None else f"{run.name}, fold {run.fold}"
        left.plot(*zip(*run.loss, strict=True), linewidth=1, label=name)
        right.plot(*zip(*run.dice, strict=True), "o-", markersize=3, linewidth=1, label=name)
    left.set(xlabel="epoch", ylabel="training loss (Dice + cross-entropy)")
    right.set(xlabel="epoch", ylabel="mean validation Dice")
    # The first validations are far below the rest and would leave it flat.
    best = max(dice for run in runs for _, dice in run.dice)
    right.set_ylim(bottom=max(min(dice for run in runs for _, dice in run.dice), best - 0.15))
    for axes in (left, right):
        axes.grid(color="0.9")
    right.legend(frameon=False, fontsize=8)
    return figure


def _epoch(row: Mapping[str, str]) -> int:
    return int(float(row["epoch"])) + 1  # Lightning counts from 0


def _read(folder: Path) -> Run:
    """All attempts of a training; where one was gone on with, the later rows count."""
    losses: dict[int, list[float]] = {}
    dice: dict[int, float] = {}
    labels: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("logs/attempt_*/metrics.csv"), key=_attempt):
        with path.open(newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if row.get("epoch")]
        again = {_epoch(row) for row in rows}
        losses = {epoch: values for epoch, values in losses.items() if epoch not in again}
        for row in rows:
            epoch = _epoch(row)
            if row.get(_LOSS):
                losses.setdefault(epoch, []).append(float(row[_LOSS]))
            if row.get(_DICE):
                dice[epoch] = float(row[_DICE])
                for key, value in row.items():
                    if key.startswith(_PREFIX) and value:
                        labels.setdefault(key.removeprefix(_PREFIX), {})[epoch] = float(value)
    epochs = sorted(dice)
    return Run(
        folder.name,
        _fold(folder),
        tuple((epoch, sum(losses[epoch]) / len(losses[epoch])) for epoch in sorted(losses)),
        tuple((epoch, dice[epoch]) for epoch in epochs),
        {label: tuple(values[epoch] for epoch in epochs) for label, values in labels.items()},
    )


def _attempt(path: Path) -> int:
    return int(path.parent.name.rpartition("_")[2])


def _fold(folder: Path) -> int | None:
    try:
        return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["fold"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
