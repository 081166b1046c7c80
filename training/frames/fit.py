"""Training of one network of frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from torch.utils.data import DataLoader

from training.core.fit import Fitted, checkpoints_of, fit, load_best, seen_in_order
from training.frames.data import LoadedFrame
from training.frames.module import SCORE, Frames, FrameSegmenter, collate

__all__ = ["fit_frames"]


def fit_frames(
    module: FrameSegmenter,
    train: Sequence[LoadedFrame],
    validation: Sequence[LoadedFrame],
    out_dir: Path,
) -> Fitted:
    """Train, and return the averaged weights of the epoch with the best validation."""
    config, size = module.config, module.config.batch_size
    training: DataLoader[LoadedFrame] = DataLoader(
        Frames(train), size, shuffle=True, generator=seen_in_order(config.seed),
        collate_fn=collate, drop_last=len(train) > size,
    )  # fmt: skip
    validating: DataLoader[LoadedFrame] = DataLoader(Frames(validation), size, collate_fn=collate)
    fit(
        module,
        out_dir,
        [training, validating],
        SCORE,
        resume=config.resume,
        threads=config.threads,
        callbacks=[
            EarlyStopping(SCORE.name, mode=SCORE.mode, patience=config.patience),
            LearningRateMonitor(),
        ],
        max_epochs=config.epochs,
        devices=config.devices or "auto",
        precision=config.precision.value,
        gradient_clip_val=5.0,
    )
    return load_best(module, checkpoints_of(out_dir) / "best.ckpt", SCORE)
