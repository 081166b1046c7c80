"""What every training of a network of volumes can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from training.core.config import Setting, TrainPrecision
from training.core.segmentation import SegmentationConfig

__all__ = ["VolumesConfig"]


@dataclass(frozen=True)
class VolumesConfig(SegmentationConfig):
    """Train a network of volumes, export it and report on it."""

    data_dir: Annotated[
        Path, Setting("folder with dataset.json, or with the folders images and masks")
    ] = Path("data")
    out_dir: Annotated[Path, Setting("folder for checkpoints, artifact, report")] = Path("runs")
    epochs: Annotated[int, Setting("passes over the training volumes", minimum=1)] = 80
    batch_size: Annotated[int, Setting("patches a step", minimum=1)] = 2
    learning_rate: Annotated[float, Setting("peak of the one-cycle schedule", minimum=0.0)] = 2e-3
    weight_decay: Annotated[
        float, Setting("L2, apart from the gradient (AdamW); not of norms", minimum=0.0)
    ] = 0.02
    l1: Annotated[float, Setting("factor of the weights' absolute values", minimum=0.0)] = 0.0
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
    patience: Annotated[int, Setting("validations without a better one", minimum=1)] = 15
    validate_every: Annotated[int, Setting("epochs between two validations", minimum=1)] = 3
    precision: Annotated[
        TrainPrecision, Setting("arithmetic; bf16 halves the time on CPUs that have it")
    ] = TrainPrecision.BF16
    width: Annotated[int, Setting("channels at full resolution; 0: the size's", minimum=0)] = 0
    folds: Annotated[int, Setting("parts of which one validates", minimum=2)] = 11
    test_share: Annotated[
        float, Setting("share of the subjects that no training sees", minimum=0.0, maximum=0.9)
    ] = 0.154
    freeze_epochs: Annotated[
        int, Setting("epochs in which only the head learns, with --init-from", minimum=0)
    ] = 0

    built_from = ("network", "size", "width")
