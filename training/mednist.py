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
from training.classification.fit import Classifier, ClassifierConfig, fit_classifier
from training.core.config import Setting, run
from training.core.fit import Fitted

__all__ = ["NAME", "TrainConfig", "fit", "main", "prepare_training", "read_images"]

NAME = "mednist"


@dataclass(frozen=True)
class TrainConfig(ClassifierConfig):
    """Train the MedNIST classifier, export it and report on it."""

    data_dir: Annotated[Path, Setting("folder with one folder of images per class")] = Path(
        "data/MedNIST"
    )
    out_dir: Annotated[Path, Setting("folder for checkpoints, artifact, report")] = Path(
        "runs/mednist"
    )
    network: Annotated[str, Setting("which of the room's networks; empty: its first")] = ""
    width: Annotated[int, Setting("channels of the first stage; 18 exceed 1 MB", minimum=1)] = 16
    label_smoothing: Annotated[
        float, Setting("keeps logits finite on an easy set", minimum=0.0, maximum=0.5)
    ] = 0.02


def main(config: TrainConfig) -> None:
    """Read, split, fit, then export and report on the best weights."""
    train, validation = _read(config)
    fitted = fit(config, train, validation)
    spec = models.spec(NAME, config.variant)
    shipment = shipping.Shipment(spec, train, validation, config, fp16_weights=config.fp16_weights)
    folder = shipping.ship_classifier(fitted, shipment)
    if config.install:
        shipping.install(folder, NAME, config.variant)


def prepare_training(config: TrainConfig) -> Callable[[TrainConfig], Fitted]:
    """Read the data once, and return what trains a network on them by other settings."""
    train, validation = _read(config)
    return lambda settings: fit(settings, train, validation)


def _read(config: TrainConfig) -> tuple[data.LabelledImages, data.LabelledImages]:
    """Read and split the images; train and validation, and the split on disk."""
    return data.divide(read_images(config), config)


def read_images(config: TrainConfig) -> data.LabelledImages:
    """Read all images."""
    return data.read_class_folders(config.data_dir, models.spec(NAME, config.variant))


def fit(config: TrainConfig, train: data.LabelledImages, validation: data.LabelledImages) -> Fitted:
    """Train a network on some images; the best epoch on others."""
    spec = models.spec(NAME, config.variant)
    lightning.seed_everything(config.seed, verbose=False)
    shape = {"in_channels": spec.input.channels, "classes": len(spec.labels)}
    network = models.build(NAME, config.network, width=config.width, **shape)
    module = Classifier(network, config, Augment(), config.label_smoothing)
    return fit_classifier(module, train, validation, config.out_dir, config.init_from)


if __name__ == "__main__":
    sys.exit(run(main, TrainConfig))
