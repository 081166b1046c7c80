"""What every training of a segmentation network can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from models.segmentation_3d.network import NetworkName, NetworkSize
from training.core.config import FitConfig, Setting, TrainPrecision

__all__ = ["SegmentationConfig"]


@dataclass(frozen=True)
class SegmentationConfig(FitConfig):
    """Settings of one network's training; labels, window and intensities are the room's."""

    epochs: Annotated[int, Setting("passes over the training volumes", minimum=1)] = 100
    minutes: Annotated[
        float, Setting("end after so many minutes, schedule included; 0: after epochs", minimum=0.0)
    ] = 0.0
    batch_size: Annotated[int, Setting("patches a step", minimum=1)] = 2
    learning_rate: Annotated[float, Setting("peak of the one-cycle schedule", minimum=0.0)] = 2e-3
    weight_decay: Annotated[
        float, Setting("L2, apart from the gradient (AdamW); not of norms", minimum=0.0)
    ] = 0.02
    l1: Annotated[float, Setting("factor of the weights' absolute values", minimum=0.0)] = 0.0
    dropout: Annotated[
        float, Setting("share of channels that a step drops", minimum=0.0, maximum=0.9)
    ] = 0.0
    dice_weight: Annotated[float, Setting("of Dice against cross-entropy", minimum=0.0)] = 1.0
    rotate: Annotated[
        float, Setting("share of patches that are rotated and scaled", minimum=0.0, maximum=1.0)
    ] = 0.4
    elastic: Annotated[
        float, Setting("share of patches that are deformed", minimum=0.0, maximum=1.0)
    ] = 0.25
    mirror: Annotated[
        float,
        Setting("share of patches mirrored left to right; less for one-sided sets",
                minimum=0.0, maximum=1.0),
    ] = 0.5  # fmt: skip
    ema_decay: Annotated[
        float, Setting("memory of the weight average that is exported", minimum=0.0, maximum=1.0)
    ] = 0.998
    patience: Annotated[int, Setting("validations without a better one", minimum=1)] = 15
    validate_every: Annotated[int, Setting("epochs between two validations", minimum=1)] = 3
    precision: Annotated[
        TrainPrecision, Setting("arithmetic; bf16 halves the time on CPUs that have it")
    ] = TrainPrecision.BF16
    network: Annotated[NetworkName, Setting("which of the room's networks")] = NetworkName.UNET
    size: Annotated[NetworkSize, Setting("width and depth")] = NetworkSize.LIGHT
    width: Annotated[int, Setting("channels at full resolution; 0: the size's", minimum=0)] = 0
    folds: Annotated[int, Setting("parts of which one validates", minimum=2)] = 11
    fold: Annotated[int, Setting("the one that validates", minimum=0)] = 0
    test_share: Annotated[
        float, Setting("share of the subjects that no training sees", minimum=0.0, maximum=0.9)
    ] = 0.154
    init_from: Annotated[
        Path | None, Setting("checkpoint to fine-tune; its head too where labels are as many")
    ] = None
    freeze_epochs: Annotated[
        int, Setting("epochs in which only the head learns, with --init-from", minimum=0)
    ] = 0
