"""Train MedNet, a variant of MedNIST's room, by its own rule: `python -m training.mednet`."""

from __future__ import annotations

import dataclasses
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, SumMetric

import models
from models.mednist.mednet import MedNet, MedNetShape
from training.classification import data
from training.classification import ship as shipping
from training.classification.data import LabelledImages
from training.classification.fit import SCORE, batches
from training.core.config import Setting, TrainPrecision, run
from training.core.files import write_rows
from training.core.fit import Fitted, checkpoints_of, epoch_of, fit

__all__ = [
    "NAME",
    "VARIANT",
    "MedNetConfig",
    "MedNetTraining",
    "RatioStop",
    "class_weights",
    "fit_by_rule",
    "main",
]

NAME = "mednist"
VARIANT = "mednet"
_HISTORY = ("epoch", "train_loss", "validation_loss", "validation_errors", "epochs_apart")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MedNetConfig(data.ImagesConfig):
    """Train MedNet by stochastic gradient descent, export it and report on it."""

    data_dir: Annotated[Path, Setting("folder with one folder of images per class")] = Path(
        "data/MedNIST"
    )
    out_dir: Annotated[Path, Setting("folder for checkpoints, artifact, report")] = Path(
        "runs/mednet"
    )
    num_convs1: Annotated[int, Setting("channels of the first convolution", minimum=1)] = 8
    conv_size1: Annotated[int, Setting("side of its kernel", minimum=1)] = 5
    num_convs2: Annotated[int, Setting("channels of the second convolution", minimum=1)] = 16
    conv_size2: Annotated[int, Setting("side of its kernel", minimum=1)] = 5
    pool: Annotated[int, Setting("pooling after each; without (1) 6 M parameters", minimum=1)] = 2
    fc_size1: Annotated[int, Setting("units of the first linear layer", minimum=1)] = 128
    fc_size2: Annotated[int, Setting("units of the second", minimum=1)] = 64
    learn_rate: Annotated[float, Setting("the same in every step", minimum=0.0)] = 0.02
    momentum: Annotated[float, Setting("of the descent", minimum=0.0, maximum=1.0)] = 0.9
    batch_size: Annotated[int, Setting("images a step", minimum=1)] = 100
    max_epochs: Annotated[int, Setting("passes over the training images", minimum=1)] = 30
    t2v_ratio: Annotated[
        float, Setting("validation over training loss that counts as too far apart", minimum=0.0)
    ] = 1.2
    t2v_epochs: Annotated[int, Setting("such epochs, in a row, that end it", minimum=1)] = 3
    precision: Annotated[TrainPrecision, Setting("arithmetic")] = TrainPrecision.BF16
    threads: Annotated[int, Setting("CPU threads; 0 leaves torch's choice", minimum=0)] = 0
    resume: Annotated[bool, Setting("go on from the last checkpoint in out_dir")] = False

    @property
    def shape(self) -> MedNetShape:
        """The keys of the architecture among these."""
        names = [field.name for field in dataclasses.fields(MedNetShape) if field.name != "side"]
        side = models.spec(NAME).input.size[0]
        return MedNetShape(side=side, **{name: getattr(self, name) for name in names})


def class_weights(label_ids: Tensor, classes: int) -> Tensor:
    """One over the number of images of each class, scaled to a mean of 1, float32 (K,).

    A class without an image counts as one with a single image, so that nothing is divided by 0.

    Args:
        label_ids: int64 (N,).
        classes: K.
    """
    counts = torch.bincount(label_ids, minlength=classes)
    weights = 1.0 / counts.clamp(min=1).float()
    return weights / weights.mean()


class RatioStop:
    """Stop after `epochs` in a row whose validation loss exceeds `ratio` times the training loss.

    The training goes on getting better on its own images alone: it learns them by heart.
    """

    def __init__(self, ratio: float, epochs: int) -> None:
        self.ratio = ratio
        self.epochs = epochs
        self.in_a_row = 0

    def is_due(self, train_loss: float, validation_loss: float) -> bool:
        """Take in one epoch; whether the training should end after it."""
        apart = validation_loss > self.ratio * train_loss
        self.in_a_row = self.in_a_row + 1 if apart else 0
        return self.in_a_row >= self.epochs


class MedNetTraining(L.LightningModule):
    """A network, the weighted loss, plain descent, and the losses that the stop compares."""

    def __init__(self, network: nn.Module, config: MedNetConfig, weights: Tensor) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.config = config
        self.stop = RatioStop(config.t2v_ratio, config.t2v_epochs)
        self.history: list[dict[str, float]] = []
        self.weights: Tensor
        self.register_buffer("weights", weights)
        self.train_loss, self.validation_loss = MeanMetric(), MeanMetric()
        self.errors = SumMetric()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Mean weighted loss of images uint8 (N, 1, H, W) with label ids int64 (N,)."""
        losses, weights, _ = self._losses(batch)
        self.train_loss.update(losses.detach(), weights)
        return (losses * weights).sum() / weights.sum()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Loss and errors; every image counts the same, also those of a short last batch."""
        losses, weights, errors = self._losses(batch)
        self.validation_loss.update(losses, weights)
        self.errors.update(errors)

    def on_validation_epoch_end(self) -> None:
        """Close the epoch: validation comes after its training images."""
        train_loss = float(self.train_loss.compute())
        validation_loss, errors = float(self.validation_loss.compute()), int(self.errors.compute())
        due = self.stop.is_due(train_loss, validation_loss)
        epoch = dict(
            zip(
                _HISTORY,
                (self.current_epoch + 1, train_loss, validation_loss, errors, self.stop.in_a_row),
                strict=True,
            )
        )
        self.history.append(epoch)
        self.log_dict({key: float(epoch[key]) for key in _HISTORY[1:]}, prog_bar=True)
        self.log(
            SCORE.name, errors + min(validation_loss, 0.999)
        )  # errors first, loss among equals
        for metric in (self.train_loss, self.validation_loss, self.errors):
            metric.reset()
        if due:
            _log.info("validation loss > %g x training loss %d epochs in a row: stopped",
                      self.stop.ratio, self.stop.epochs)  # fmt: skip
            self.trainer.should_stop = True

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain descent with a constant rate."""
        return torch.optim.SGD(
            self.network.parameters(), lr=self.config.learn_rate, momentum=self.config.momentum
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What the stop has seen so far goes along."""
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting where the last run ended."""
        self.history = list(checkpoint["history"])
        self.stop.in_a_row = int(self.history[-1]["epochs_apart"])

    def _losses(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and weight of each image (N,), and the number of errors."""
        image, label_ids = batch
        scaled = (image.float() / 255.0).contiguous(memory_format=torch.channels_last)
        logits = self.network(scaled).float()
        losses = F.cross_entropy(logits, label_ids, reduction="none")
        return losses, self.weights[label_ids], (logits.argmax(dim=1) != label_ids).sum()


def fit_by_rule(
    module: MedNetTraining, train: LabelledImages, validation: LabelledImages, out_dir: Path
) -> Fitted:
    """Train by the rule and return the epoch that validated best.

    The losses of all epochs lie in `training.csv`.
    """
    config = module.config
    fit(
        module,
        out_dir,
        batches(config, train, validation),
        SCORE,
        resume=config.resume,
        threads=config.threads,
        max_epochs=config.max_epochs,
        precision=config.precision.value,
    )
    rows = [[f"{epoch[name]:.6g}" for name in _HISTORY] for epoch in module.history]
    write_rows(out_dir / "training.csv", _HISTORY, rows)
    checkpoint = checkpoints_of(out_dir) / "best.ckpt"
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module.load_state_dict(content["state_dict"])
    network = module.network.cpu().to(memory_format=torch.contiguous_format).eval()
    best = [epoch["validation_errors"] for epoch in module.history]
    return Fitted(network, checkpoint, epoch_of(content), min(best))


def main(config: MedNetConfig) -> None:
    """Read, split, fit, then export and report on the best epoch."""
    spec = models.spec(NAME, VARIANT)
    shape = config.shape
    _log.info("%d numbers reach the first linear layer", shape.fc_inputs)
    images = data.read_class_folders(config.data_dir, spec)
    train, validation = data.divide(images, config)  # the room's own: same images, same seed
    L.seed_everything(config.seed, verbose=False)
    weights = class_weights(torch.from_numpy(train.label_ids), len(spec.labels))
    module = MedNetTraining(MedNet(len(spec.labels), shape), config, weights)
    fitted = fit_by_rule(module, train, validation, config.out_dir)
    examples = models.room(NAME) / "examples"
    shipment = shipping.Shipment(spec, train, validation, config, examples=examples)
    folder = shipping.ship_classifier(fitted, shipment)
    if config.install:
        shipping.install(folder, NAME, VARIANT, ("training.csv",))


if __name__ == "__main__":
    sys.exit(run(main, MedNetConfig))
