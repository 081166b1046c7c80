"""Train the 3D segmentation network: `python -m training.segmentation_3d --data-dir DIR`.

    python -m training.segmentation_3d --data-dir Task04_Hippocampus --members 3 --install

With `--members N` the networks of N folds are trained one after the other and exported as one
graph that averages their probabilities.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from training.core.config import Setting, run
from training.volumes.config import VolumesConfig
from training.volumes.train import prepare_training, train

__all__ = ["NAME", "TrainConfig", "main", "prepare_training"]

NAME = "segmentation_3d"


@dataclass(frozen=True)
class TrainConfig(VolumesConfig):
    """Train a network of the room segmentation_3d, export it and report on it."""

    data_dir: Annotated[
        Path, Setting("folder with dataset.json, or with the folders images and masks")
    ] = Path("data/Task04_Hippocampus")
    out_dir: Annotated[Path, Setting("folder for checkpoints, artifact, report")] = Path(
        "runs/segmentation_3d"
    )
    room: Annotated[str, Setting("room whose model-config.yaml states labels and window")] = NAME
    width: Annotated[
        int, Setting("channels at full resolution; three of 16 stay below 5 M", minimum=0)
    ] = 16


def main(config: TrainConfig) -> None:
    """Read, split, fit every member, then export and report on their average."""
    train(config)


if __name__ == "__main__":
    sys.exit(run(main, TrainConfig))
