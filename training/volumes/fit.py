"""Training of one segmentation network over Lightning: checkpoints, resume, early stop, logs."""

from __future__ import annotations

import datetime
import json
import logging
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
)
from torch import nn
from torch.utils.data import DataLoader

from medserve.errors import ConfigError
from training.core import loop
from training.volumes.config import SegmentationConfig
from training.volumes.data import LoadedCase
from training.volumes.module import SCORE, Cases, Segmenter

__all__ = [
    "FittedSegmenter",
    "fit_segmenter",
    "initialise_from",
    "is_fitted",
    "load_best",
    "load_fitted",
]

_log = logging.getLogger(__name__)

_FITTED = "fitted.json"  # beside the checkpoints of a training that came to its end


@dataclass(frozen=True)
class FittedSegmenter:
    """The best network of a training and where it came from."""

    network: nn.Module  # in eval mode, on the CPU, weights averaged
    checkpoint: Path
    epoch: int  # counted from 1; the one whose weights ship
    validation_dice: float


def fit_segmenter(
    module: Segmenter,
    train: Sequence[LoadedCase],
    validation: Sequence[LoadedCase],
    out_dir: Path,
) -> FittedSegmenter:
    """Train, and return the averaged weights of the epoch with the best validation.

    A training by minutes ends with its schedule: its last weights are returned instead.

    Writes `checkpoints/best.ckpt` and `checkpoints/last.ckpt` (every epoch), into `logs/` what
    TensorBoard shows and a `metrics.csv`, and at the end what `load_fitted` reads.
    """
    config = module.config
    folder = out_dir / "checkpoints"
    last = folder / "last.ckpt"
    resumed = loop.resumed_from(folder, config.resume)
    (folder / _FITTED).unlink(missing_ok=True)  # of an earlier training in this folder
    best = ModelCheckpoint(
        folder, filename="best", monitor=SCORE, mode="max", enable_version_counter=False
    )
    every = ModelCheckpoint(
        folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True
    )
    if config.threads:
        torch.set_num_threads(config.threads)
    trainer = _trainer(config, out_dir, [best, every])
    order = torch.Generator().manual_seed(config.seed)
    with loop.expected_remarks():
        trainer.fit(
            module,
            DataLoader(
                Cases(train), config.batch_size, shuffle=True, generator=order,
                collate_fn=_as_it_comes, drop_last=len(train) > config.batch_size,
            ),
            DataLoader(Cases(validation), 1, collate_fn=_as_it_comes),
            ckpt_path=resumed,
        )  # fmt: skip
        if config.minutes:  # the schedule has ended where the clock said: no epoch is better
            trainer.save_checkpoint(last)
            loader = DataLoader(Cases(validation), 1, collate_fn=_as_it_comes)
            [measured] = trainer.validate(module, loader, verbose=False)
            network = loop.plain_network(module.average)
            fitted = FittedSegmenter(network, last, trainer.current_epoch, float(measured[SCORE]))
        else:
            fitted = load_best(module, folder / "best.ckpt")
    _note(fitted, folder)
    return fitted


def is_fitted(out_dir: Path) -> bool:
    """Whether the training of this folder came to its end."""
    return (out_dir / "checkpoints" / _FITTED).is_file()


def load_fitted(module: Segmenter, out_dir: Path) -> FittedSegmenter:
    """What `fit_segmenter` returned when it came to its end in this folder."""
    folder = out_dir / "checkpoints"
    noted = json.loads((folder / _FITTED).read_text(encoding="utf-8"))
    checkpoint = folder / noted["checkpoint"]
    _load(module, checkpoint)
    return FittedSegmenter(
        loop.plain_network(module.average), checkpoint, noted["epoch"], noted["validation_dice"]
    )


def _note(fitted: FittedSegmenter, folder: Path) -> None:
    noted = {
        "checkpoint": fitted.checkpoint.name,
        "epoch": fitted.epoch,
        "validation_dice": fitted.validation_dice,
    }
    (folder / _FITTED).write_text(json.dumps(noted, indent=2) + "\n", encoding="utf-8")


def _load(module: Segmenter, checkpoint: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module.load_state_dict(content["state_dict"])
    return content


def load_best(module: Segmenter, checkpoint: Path) -> FittedSegmenter:
    """The averaged weights of a checkpoint, as a plain network ready for export."""
    content = _load(module, checkpoint)
    savers = [state for name, state in content["callbacks"].items() if SCORE in name]
    dice = max(float(each["best_model_score"]) for each in savers if "best_model_score" in each)
    _log.info("best epoch %d, validation Dice %.4f", loop.epoch_of(content), dice)
    return FittedSegmenter(
        loop.plain_network(module.average), checkpoint, loop.epoch_of(content), dice
    )


def initialise_from(network: nn.Module, checkpoint: Path) -> list[str]:
    """Take over the weights of another training; returns the names that stay as they were.

    Weights are taken from the average where the checkpoint has one. The head of a network with
    other labels has another shape: it alone may differ, and then starts anew.

    Raises:
        ConfigError: no checkpoint, or one of another network.
    """
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        kind = type(error).__name__  # torch's own text is a page long
        raise ConfigError(f"{checkpoint}: cannot be read as a checkpoint ({kind})") from error
    state: dict[str, Any] = content.get("state_dict", content)
    prefix = "average.module."
    given = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    } or state
    own = network.state_dict()
    head = str(getattr(network, "head_path", "head"))
    differing = [name for name in own if name not in given or given[name].shape != own[name].shape]
    if foreign := [name for name in differing if not name.startswith(head)]:
        raise ConfigError(
            f"{checkpoint}: expected the weights of the same network, but {foreign[0]} differs; "
            "give the settings (network, size, width) that it was trained with"
        )
    network.load_state_dict({name: given[name] for name in own if name not in differing},
                            strict=False)  # fmt: skip
    _log.info("weights of %s; new: %s", checkpoint, ", ".join(differing) or "nothing")
    return differing


def _as_it_comes(batch: Any) -> Any:
    return batch


def _trainer(config: SegmentationConfig, out_dir: Path, callbacks: list[Callback]) -> L.Trainer:
    return L.Trainer(
        max_epochs=config.epochs,
        max_time=datetime.timedelta(minutes=config.minutes) if config.minutes else None,
        devices=config.devices or "auto",
        precision=config.precision.value,
        callbacks=[
            *callbacks,
            EarlyStopping(SCORE, mode="max", patience=config.patience),
            LearningRateMonitor(),
            RichProgressBar(),
        ],
        logger=loop.loggers(out_dir),
        check_val_every_n_epoch=min(config.validate_every, config.epochs),
        num_sanity_val_steps=0,
        log_every_n_steps=20,
        gradient_clip_val=5.0,
        enable_model_summary=False,
        default_root_dir=out_dir,
    )
