"""Train the blood-cell classifier: `python -m training.blood_cell --data-dir DIR`."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import lightning

import models
from medserve.errors import ConfigError
from models.blood_cell.network import VIEWS, BloodCellNet, CellNet
from models.blood_cell.transfer import Encoder, EncoderNet
from models.encoders import load_encoder
from training.classification import data
from training.classification import ship as shipping
from training.classification.cells import (
    FOLDERS,
    CellAugment,
    CellClassifier,
    EncoderClassifier,
    Phases,
    with_kinds,
)
from training.classification.fit import ClassifierConfig, fit_classifier
from training.core.config import Setting, run
from training.core.fit import Fitted

__all__ = ["FOLDERS", "NAME", "TrainConfig", "fit", "main", "prepare_training", "read_images"]

NAME = "blood_cell"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainConfig(ClassifierConfig):
    """Train the blood-cell classifier, export it and report on it."""

    data_dir: Annotated[Path, Setting("folder with one folder of images per class")] = Path(
        "data/PBC"
    )
    out_dir: Annotated[Path, Setting("folder for checkpoints, artifact, report")] = Path(
        "runs/blood_cell"
    )
    epochs: Annotated[int, Setting("passes over the training images", minimum=1)] = 90
    batch_size: Annotated[int, Setting("images a step", minimum=1)] = 128
    learning_rate: Annotated[float, Setting("peak of the one-cycle schedule", minimum=0.0)] = 3e-3
    weight_decay: Annotated[float, Setting("AdamW's, apart from the gradient", minimum=0.0)] = 0.05
    patience: Annotated[int, Setting("epochs without a better validation", minimum=1)] = 90
    width: Annotated[int, Setting("channels of the first stage", minimum=2)] = 48
    first_side: Annotated[int, Setting("pixels of the window in the first epochs", minimum=16)] = 64
    small_share: Annotated[
        float, Setting("share of the epochs that see such images", minimum=0.0, maximum=1.0)
    ] = 0.37
    test_share: Annotated[float, Setting("of every class held out", minimum=0.01, maximum=0.3)] = (
        0.1
    )
    validation_share: Annotated[
        float, Setting("of every class, to choose the epoch", minimum=0.01, maximum=0.3)
    ] = 0.05
    views: Annotated[
        int, Setting("turned and mirrored views that the artifact averages: 1, 4 or 8", minimum=1)
    ] = 4
    encoder: Annotated[
        Encoder | None, Setting("public encoder with a new head, not the room's own network")
    ] = None
    encoder_weights: Annotated[
        Path | None, Setting("file of that encoder's weights; without it, they start at random")
    ] = None
    frozen_share: Annotated[
        float,
        Setting("of the epochs, in which the head learns alone on weights from a file",
                minimum=0.0, maximum=1.0),
    ] = 0.1  # fmt: skip
    encoder_rate: Annotated[
        float,
        Setting("share of the learning rate for the last part of an encoder from a file",
                minimum=0.0, maximum=1.0),
    ] = 0.2  # fmt: skip


def main(config: TrainConfig) -> None:
    """Read, split, fit, then export and report on the best weights."""
    train, validation = _read(config)
    fitted = fit(config, train, validation)
    spec = models.spec(NAME, config.variant)
    examples = models.room(NAME) / "examples" if config.variant else None
    shipment = shipping.Shipment(
        spec, train, validation, config, FOLDERS, config.fp16_weights, examples
    )
    folder = shipping.ship_classifier(fitted, shipment)
    if config.install:
        shipping.install(folder, NAME, config.variant)


def prepare_training(config: TrainConfig) -> Callable[[TrainConfig], Fitted]:
    """Read the data once, and return what trains a network on them by other settings."""
    train, validation = _read(config)
    return lambda settings: fit(settings, train, validation)


def _read(config: TrainConfig) -> tuple[data.LabelledImages, data.LabelledImages]:
    """Read and split the images; train and validation, and the split on disk."""
    images = read_images(config)
    return data.divide(images, config, config.test_share, config.validation_share)


def read_images(config: TrainConfig) -> data.LabelledImages:
    """Read all images; ConfigError for settings that no training of the room can have."""
    if config.views not in VIEWS:
        raise ConfigError(f"expected --views to be one of {VIEWS}, got {config.views}")
    if config.encoder_weights is not None and config.encoder is None:
        raise ConfigError("--encoder-weights are of a public encoder: say which one by --encoder")
    spec = models.spec(NAME, config.variant)
    return data.without_contradictions(data.read_class_folders(config.data_dir, spec, FOLDERS))


def fit(config: TrainConfig, train: data.LabelledImages, validation: data.LabelledImages) -> Fitted:
    """Train a network on some images; the best epoch on others, with the views that it ships."""
    lightning.seed_everything(config.seed, verbose=False)
    module = _module(config)
    train = with_kinds(train)
    fitted = fit_classifier(module, train, validation, config.out_dir, config.init_from)
    cast(CellNet, fitted.network).views = config.views
    return fitted


def _module(config: TrainConfig) -> CellClassifier:
    """Return a network in training: the room's own, or a public encoder with a new head."""
    augment, smoothing = CellAugment(), config.label_smoothing
    small = (config.first_side, config.small_share)
    if config.encoder is None:
        network = BloodCellNet(width=config.width)
        return CellClassifier(network, config, augment, smoothing, *small)
    cells, phases = EncoderNet(config.encoder), None
    if (weights := config.encoder_weights) is not None:
        phases = Phases(config.frozen_share, config.encoder_rate)
        # What learns changes on the way, which several devices would have to agree on.
        config = dataclasses.replace(config, devices=1)
        if not config.resume:
            taken = load_encoder(cells, weights)
            _log.info("%d tensors of the encoder from %s", taken, weights)
    return EncoderClassifier(cells, config, augment, smoothing, *small, phases)


if __name__ == "__main__":
    sys.exit(run(main, TrainConfig))
