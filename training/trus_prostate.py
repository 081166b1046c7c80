"""Frames of ultrasound: prepare, annotate, train, evaluate.

    python -m training.trus_prostate simulate --out-dir data/trus        # frames of nobody
    python -m training.trus_prostate prepare … ; … import …              # frames of a clinic
    python -m training.trus_prostate sheets --data-dir data/trus --out-dir sheets
    python -m training.trus_prostate compare --data-dir data/trus --networks fpn,segformer
    python -m training.trus_prostate --data-dir data/trus --out-dir runs/trus_prostate

With `--members N` the networks of N folds are trained one after the other and their table is
written; they are exported as one graph that averages them, or the best alone (`--no-ensemble`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotation.importer import ImportConfig, import_annotations
from annotation.prepare import PrepareConfig, prepare
from annotation.simulated_annotator import AnnotateConfig, annotate
from simulation.simulated_set import SimulateConfig, simulate_set
from training.core.config import Setting, run
from training.frames.compare import CompareConfig, compare
from training.frames.config import FrameConfig
from training.frames.sheets import SheetsConfig, write_sheets
from training.frames.train import prepare_training, train

__all__ = ["NAME", "TrainConfig", "main", "prepare_training", "run_command"]

NAME = "trus_prostate"


@dataclass(frozen=True)
class TrainConfig(FrameConfig):
    """Train a network of ultrasound frames, export it and report on it."""

    data_dir: Annotated[Path, Setting("folder with the folders images and masks")] = Path(
        "data/trus"
    )
    out_dir: Annotated[Path, Setting("folder for checkpoints, artifact, report")] = Path(
        "runs/trus_prostate"
    )
    room: Annotated[str, Setting("room whose networks are trained")] = NAME


def main(config: TrainConfig) -> None:
    """Read, split, fit every member, then export and report."""
    train(config)


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "simulate": lambda flags: run(simulate_set, SimulateConfig, flags),
    "prepare": lambda flags: run(prepare, PrepareConfig, flags),
    "annotate": lambda flags: run(annotate, AnnotateConfig, flags),
    "import": lambda flags: run(import_annotations, ImportConfig, flags),
    "sheets": lambda flags: run(write_sheets, SheetsConfig, flags),
    "compare": lambda flags: run(compare, CompareConfig, flags),
}


def run_command(arguments: Sequence[str]) -> int:
    """Run the command that the first argument names, or else the training; return its exit code."""
    if arguments and arguments[0] in _COMMANDS:
        return _COMMANDS[arguments[0]](arguments[1:])
    return run(main, TrainConfig, arguments)


if __name__ == "__main__":
    sys.exit(run_command(sys.argv[1:]))
