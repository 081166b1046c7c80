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

import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import lightning
import torch

import models
from annotation.importer import ImportConfig, import_annotations
from annotation.prepare import PrepareConfig, prepare
from annotation.simulated_annotator import AnnotateConfig, annotate
from medserve.errors import ConfigError
from medserve.inference.frame_pipeline import FramePipeline
from medserve.spec import ModelSpec
from models.trus_prostate.network import SIDES_DIVIDE_BY, build, load_encoder
from simulation.simulated_set import SimulateConfig, simulate_set
from training.core.config import Setting, run, write
from training.core.evaluation import EvaluationRequest
from training.core.export import require_agreement
from training.core.files import require_folder, write_json
from training.core.fit import Fitted, load_best
from training.core.split import Split, write_split
from training.frames import fold_table
from training.frames.compare import CompareConfig, compare
from training.frames.config import FrameConfig
from training.frames.data import (
    FrameCase,
    LoadedFrame,
    find_frames,
    load_frames,
    mask_shares,
    split_frames,
)
from training.frames.evaluation import evaluate_frames
from training.frames.fit import fit_frames
from training.frames.module import SCORE, FrameSegmenter
from training.frames.sheets import SheetsConfig, write_sheets
from training.frames.ship import Shipment, install, ship

__all__ = ["NAME", "TrainConfig", "main", "prepare_training", "run_command"]

_log = logging.getLogger(__name__)

NAME = "trus_prostate"
CONFIG = "model-config.yaml"


@dataclass(frozen=True)
class TrainConfig(FrameConfig):
    """Train a network of ultrasound frames, export it and report on it."""

    data_dir: Annotated[Path, Setting("folder with the folders images and masks")] = Path(
        "data/trus"
    )
    out_dir: Annotated[Path, Setting("folder for checkpoints, artifact, report")] = Path(
        "runs/trus_prostate"
    )
    model_config: Annotated[
        Path | None, Setting("model-config.yaml with size, crop and filter, if not the room's")
    ] = None
    members: Annotated[int, Setting("networks, each validated on its fold", minimum=1)] = 1
    ensemble: Annotated[bool, Setting("export the members' average, not the best one")] = True
    fp16_weights: Annotated[
        bool, Setting("store kernels in 16 bits, for half the file; arithmetic keeps 32")
    ] = False
    install: Annotated[bool, Setting("copy the artifact into the room when done")] = False
    variant: Annotated[str, Setting("of the room that --install writes; empty: the room")] = ""


@dataclass(frozen=True, eq=False)
class _Read:
    """The frames of a training: those that it uses are in memory."""

    pipeline: FramePipeline
    cases: Sequence[FrameCase]
    split: Split
    loaded: dict[str, LoadedFrame]


def main(config: TrainConfig) -> None:
    """Read, split, fit every member, then export and report."""
    read = _read(config)
    members = [_train_member(config, member, read) for member in range(config.members)]
    fold_table.write(config.out_dir, read.pipeline, members, read.split, read.cases)
    if not config.ensemble:
        members = [max(members, key=lambda each: each.score)]
    shipment = Shipment(
        read.pipeline, members, list(read.loaded.values()), _model_config(config),
        config.out_dir, config.fp16_weights,
    )  # fmt: skip
    folder = ship(shipment, config.threads)
    described = _report(config, read.pipeline.spec, folder, read.split)
    require_agreement(
        {each["engine"]: 1.0 - each["differing"] / each["pixels"] for each in described["parity"]}
    )
    if config.install:
        install(folder, config.out_dir, NAME, config.variant)


def prepare_training(config: TrainConfig) -> Callable[[TrainConfig], Fitted]:
    """Read the data once, and return what trains a network on them by other settings."""
    read = _read(config)
    return lambda settings: _train_member(settings, 0, read)


def _model_config(config: TrainConfig) -> Path:
    return config.model_config or models.room(NAME, config.variant) / CONFIG


def _read(config: TrainConfig) -> _Read:
    """Read and split the frames, and write what the training will say of itself."""
    pipeline = FramePipeline(ModelSpec.from_file(_model_config(config)))
    _check_sides(pipeline)
    cases = find_frames(require_folder(config.data_dir, "--data-dir"))
    split = split_frames(cases, mask_shares(cases), config.folds, config.test_share, config.seed)
    if config.members > config.folds:
        raise ConfigError(f"expected at most {config.folds} members, one for each fold, got "
                          f"{config.members}")  # fmt: skip
    write(config, config.out_dir / "config.json")
    write_split(config.out_dir / "split.csv", split)
    used = [case for case in cases if case.name not in split.test]
    loaded = {frame.case.name: frame for frame in load_frames(used, pipeline)}
    return _Read(pipeline, cases, split, loaded)


def _report(config: TrainConfig, spec: ModelSpec, folder: Path, split: Split) -> dict[str, Any]:
    """Measure the artifact on frames that no training saw; without any, on all folds' frames.

    Returns what `training.json` says of it.
    """
    measured = evaluate_frames(
        EvaluationRequest(
            spec, folder, config.data_dir, config.out_dir / "report", folder / "split.csv",
            "test" if split.test else "validation", threads=config.threads,
        )
    )  # fmt: skip
    described: dict[str, Any] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    measured["training"] = described
    write_json(folder / "metrics.json", measured)
    return described


def _check_sides(pipeline: FramePipeline) -> None:
    if any(side % SIDES_DIVIDE_BY for side in pipeline.size):
        raise ConfigError(
            f"expected input.size that divides by {SIDES_DIVIDE_BY}, as the networks halve five "
            f"times, got {list(pipeline.size)}"
        )


def _train_member(config: TrainConfig, member: int, read: _Read) -> Fitted:
    """Train one network on all folds but its own; a finished one is read instead."""
    folder = config.out_dir / f"member_{member}"
    last = folder / "checkpoints" / "last.ckpt"
    started = config.resume and last.is_file()
    config = dataclasses.replace(config, seed=config.seed + member, resume=started)
    lightning.seed_everything(config.seed, verbose=False)
    network = build(
        config.network, read.pipeline.spec.input.channels, len(read.pipeline.spec.labels),
        config.encoder, config.size, config.dropout,
    )  # fmt: skip
    if config.encoder_weights is not None and not started:
        fitted = load_encoder(network, config.encoder_weights)
        _log.info("%d tensors of the encoder from %s", fitted, config.encoder_weights)
    module = FrameSegmenter(network, config, read.pipeline.frame.threshold)
    if started and int(torch.load(last, weights_only=True)["epoch"]) + 1 >= config.epochs:
        return load_best(module, folder / "checkpoints" / "best.ckpt", SCORE)
    train, validation = (
        [read.loaded[name] for name in read.split.parts(member)[part]]
        for part in ("train", "validation")
    )
    return fit_frames(module, train, validation, folder)


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
