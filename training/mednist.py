"""Train the MedNIST classifier: `python -m training.mednist --data-dir DIR`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import lightning

import models
from training.classification import data
from training.classification import ship as shipping
from training.classification.augment import Augment
from training.classification.fit import Classifier, fit_classifier
from training.core.config import FitConfig, Setting, TrainPrecision, run, write
from training.core.fit import Fitted

__all__ = ["NAME", "TrainConfig", "main", "prepare_training"]

NAME = "mednist"


@dataclass(frozen=True)
class TrainConfig(FitConfig):
    """Train the MedNIST classifier, export it and report on it."""

    data_dir: Annotated[Path, Setting("folder with one folder of images per class")] = Path(
        "data/MedNIST"
    )
    out_dir: Annotated[Path, Setting("folder for checkpoints, artifact, report")] = Path(
        "runs/mednist"
    )
    precision: Annotated[
        TrainPrecision, Setting("arithmetic; bf16 halves the time on CPUs that have it")
    ] = TrainPrecision.BF16
    network: Annotated[str, Setting("which of the room's networks; empty: its first")] = ""
    width: Annotated[int, Setting("channels of the first stage; 18 exceed 1 MB", minimum=1)] = 16
    label_smoothing: Annotated[
        float, Setting("keeps logits finite on an easy set", minimum=0.0, maximum=0.5)
    ] = 0.02
    foreign_dir: Annotated[
        Path | None, Setting("images to test the novelty on, one folder per kind")
    ] = None
    variant: Annotated[str, Setting("of the room; empty: the room's own network")] = ""
    install: Annotated[bool, Setting("copy the artifact into the room when done")] = False


def main(config: TrainConfig) -> None:
    """Read, split, fit, then export and report on the best weights."""
    train, validation = _read(config)
    fitted = _fit(config, train, validation)
    spec = models.spec(NAME, config.variant)
    shipment = shipping.Shipment(
        spec, train, validation, config.data_dir, config.out_dir, config.foreign_dir,
    )  # fmt: skip
    folder = shipping.ship_classifier(fitted, shipment)
    if config.install:
        shipping.install(folder, NAME, config.variant)


def prepare_training(config: TrainConfig) -> Callable[[TrainConfig], Fitted]:
    """Read the data once, and return what trains a network on them by other settings."""
    train, validation = _read(config)
    return lambda settings: _fit(settings, train, validation)


def _read(config: TrainConfig) -> tuple[data.LabelledImages, data.LabelledImages]:
    """Read and split the images; train and validation, and the split on disk."""
    spec = models.spec(NAME, config.variant)
    images = data.read_class_folders(config.data_dir, spec)
    write(config, config.out_dir / "config.json")
    parts = data.split(images, config.seed)
    data.write_split(config.out_dir / "split.csv", images, parts)
    return images.take(parts["train"]), images.take(parts["validation"])


def _fit(
    config: TrainConfig, train: data.LabelledImages, validation: data.LabelledImages
) -> Fitted:
    spec = models.spec(NAME, config.variant)
    lightning.seed_everything(config.seed, verbose=False)
    shape = {"in_channels": spec.input.channels, "classes": len(spec.labels)}
    network = models.build(NAME, config.network, width=config.width, **shape)
    module = Classifier(network, config, Augment(), config.label_smoothing)
    return fit_classifier(module, train, validation, config.out_dir)


if __name__ == "__main__":
    sys.exit(run(main, TrainConfig))
