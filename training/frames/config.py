"""What a training of a frame network can be told."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from training.core.config import Setting
from training.core.segmentation import SegmentationConfig

__all__ = ["FrameConfig", "Schedule"]


class Schedule(enum.StrEnum):
    """What becomes of the learning rate."""

    PLATEAU = "plateau"  # falls where validation stops to improve (ReduceLROnPlateau)
    ONE_CYCLE = "one_cycle"  # warms up and falls to zero over a known number of epochs


@dataclass(frozen=True)
class FrameConfig(SegmentationConfig):
    """Settings of one network's training; labels, size and filter are the model's."""

    data_dir: Annotated[Path, Setting("folder with the folders images and masks")] = Path("data")
    model_config: Annotated[
        Path | None, Setting("model-config.yaml with size, crop and filter, if not the room's")
    ] = None
    epochs: Annotated[int, Setting("passes over the training frames", minimum=1)] = 60
    batch_size: Annotated[int, Setting("frames a step", minimum=2)] = 8
    learning_rate: Annotated[float, Setting("Adam's, at first", minimum=0.0)] = 1e-3
    weight_decay: Annotated[float, Setting("L2 inside of Adam's gradient", minimum=0.0)] = 0.0
    ema_decay: Annotated[
        float, Setting("memory of the weight average that is exported", minimum=0.0, maximum=1.0)
    ] = 0.99
    patience: Annotated[int, Setting("validations without a better one", minimum=1)] = 20
    schedule: Annotated[Schedule, Setting("of the learning rate")] = Schedule.PLATEAU
    plateau_patience: Annotated[
        int, Setting("validations without a better one before the rate falls", minimum=0)
    ] = 5
    plateau_factor: Annotated[
        float, Setting("by which the rate falls then", minimum=0.01, maximum=0.99)
    ] = 0.3
    bce_weight: Annotated[float, Setting("of the cross-entropy in the loss", minimum=0.0)] = 1.0
    augment: Annotated[bool, Setting("change frames and masks at random")] = True
    zoom: Annotated[
        float, Setting("frames grow and shrink by a factor of up to 1 + this", minimum=0.0)
    ] = 0.25
    cutmix: Annotated[
        float,
        Setting("share of frames that get a part of another, for small sets", minimum=0, maximum=1),
    ] = 0.0
    encoder: Annotated[
        str, Setting("of the network, such as resnet152 or mit_b2; empty: its light one")
    ] = ""
    dropout: Annotated[
        float, Setting("share of channels that the decoder drops", minimum=0.0, maximum=0.9)
    ] = 0.2
    encoder_weights: Annotated[
        Path | None, Setting("file of an encoder's weights to start from; never needed")
    ] = None
    encoder_rate: Annotated[
        float,
        Setting("the encoder's share of the learning rate; below 1 for weights from a file",
                minimum=0.0, maximum=1.0),
    ] = 1.0  # fmt: skip
    ensemble: Annotated[bool, Setting("export the members' average, not the best one")] = True

    built_from = ("network", "size", "encoder")
