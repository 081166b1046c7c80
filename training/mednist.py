"""Train the MedNIST classifier: `python -m training.mednist --data-dir DIR`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import lightning

import models
from models.mednist.network import MednistNet
from training.classification import data
from training.classification import ship as shipping
from training.classification.augment import Augment
from training.classification.evaluation import EvaluationRequest, evaluate_classifier
from training.classification.fit import Classifier, fit_classifier
from training.core.config import FitConfig, Setting, TrainPrecision, run, write

__all__ = ["NAME", "TrainConfig", "evaluate", "main"]

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
    width: Annotated[int, Setting("channels of the first stage; 18 exceed 1 MB", minimum=1)] = 16
    label_smoothing: Annotated[
        float, Setting("keeps logits finite on an easy set", minimum=0.0, maximum=0.5)
    ] = 0.02
    foreign_dir: Annotated[
        Path | None, Setting("images to test the novelty on, one folder per kind")
    ] = None
    install: Annotated[bool, Setting("copy the artifact into models/mednist when done")] = False


def main(config: TrainConfig) -> None:
    """Read, split, fit, then export and report on the best weights."""
    spec = models.spec(NAME)
    images = data.read_class_folders(config.data_dir, spec)
    write(config, config.out_dir / "config.json")
    parts = data.split(images, config.seed)
    data.write_split(config.out_dir / "split.csv", images, parts)
    train, validation = images.take(parts["train"]), images.take(parts["validation"])
    lightning.seed_everything(config.seed, verbose=False)
    network = MednistNet(len(spec.labels), config.width)
    module = Classifier(network, config, Augment(), config.label_smoothing)
    fitted = fit_classifier(module, train, validation, config.out_dir)
    shipment = shipping.Shipment(
        spec, train, validation, config.data_dir, config.out_dir, config.foreign_dir
    )
    folder = shipping.ship_classifier(fitted, shipment)
    if config.install:
        shipping.install(folder, config.out_dir, NAME)


def evaluate(request: EvaluationRequest) -> None:
    """Measure the shipped artifact (or another) on labelled images."""
    evaluate_classifier(NAME, request)


if __name__ == "__main__":
    sys.exit(run(main, TrainConfig))
