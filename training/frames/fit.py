"""Training of one frame network over Lightning: checkpoints, resume, early stop, logs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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

from training.core import loop
from training.frames.config import FrameConfig
from training.frames.data import LoadedFrame
from training.frames.module import SCORE, Frames, FrameSegmenter, collate

__all__ = ["FittedFrames", "fit_frames", "load_best"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FittedFrames:
    """The best network of a training and where it came from."""

    network: nn.Module  # in eval mode, on the CPU, weights averaged
    checkpoint: Path
    epoch: int  # counted from 1; the one whose weights ship
    validation_iou: float


def fit_frames(
    module: FrameSegmenter,
    train: Sequence[LoadedFrame],
    validation: Sequence[LoadedFrame],
    out_dir: Path,
) -> FittedFrames:
    """Train, and return the averaged weights of the epoch with the best validation.

    Writes `checkpoints/best.ckpt` and `checkpoints/last.ckpt` (every epoch), and into `logs/`
    what TensorBoard shows and a `metrics.csv`.
    """
    config = module.config
    folder = out_dir / "checkpoints"
    resumed = loop.resumed_from(folder, config.resume)
    best = ModelCheckpoint(
        folder, filename="best", monitor=SCORE, mode="max", enable_version_counter=False
    )
    every = ModelCheckpoint(
        folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True
    )
    if config.threads:
        torch.set_num_threads(config.threads)
    order = torch.Generator().manual_seed(config.seed)
    with loop.expected_remarks():
        _trainer(config, out_dir, [best, every]).fit(
            module,
            DataLoader(
                Frames(train), config.batch_size, shuffle=True, generator=order,
                collate_fn=collate, drop_last=len(train) > config.batch_size,
            ),
            DataLoader(Frames(validation), config.batch_size, collate_fn=collate),
            ckpt_path=resumed,
        )  # fmt: skip
    return load_best(module, folder / "best.ckpt")


def load_best(module: FrameSegmenter, checkpoint: Path) -> FittedFrames:
    """The averaged weights of a checkpoint, as a plain network ready for export."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module.load_state_dict(content["state_dict"])
    savers = [state for name, state in content["callbacks"].items() if SCORE in name]
    iou = max(float(each["best_model_score"]) for each in savers if "best_model_score" in each)
    _log.info("best epoch %d, validation IoU %.4f", loop.epoch_of(content), iou)
    return FittedFrames(loop.plain_network(module.average), checkpoint, loop.epoch_of(content), iou)


def _trainer(config: FrameConfig, out_dir: Path, callbacks: list[Callback]) -> L.Trainer:
    return L.Trainer(
        max_epochs=config.epochs,
        devices=config.devices or "auto",
        precision=config.precision.value,
        callbacks=[
            *callbacks,
            EarlyStopping(SCORE, mode="max", patience=config.patience),
            LearningRateMonitor(),
            RichProgressBar(),
        ],
        logger=loop.loggers(out_dir),
        num_sanity_val_steps=0,
        log_every_n_steps=20,
        gradient_clip_val=5.0,
        enable_model_summary=False,
        default_root_dir=out_dir,
    )
