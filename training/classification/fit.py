"""The training of a classifier: its loss, its validation, and its schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, SumMetric

from training.classification.data import Batches, ImagesConfig, LabelledImages
from training.core.config import FitConfig, Setting, TrainPrecision
from training.core.fit import (
    AveragedNetwork,
    Fitted,
    Score,
    as_it_comes,
    fit_best,
    seen_in_order,
    start_from,
)

__all__ = ["SCORE", "Classifier", "ClassifierConfig", "batches", "fit_classifier"]

SCORE = Score("validation_score")
Augmentation = Callable[[Tensor, torch.Generator], Tensor]  # images (N, C, H, W) in [0, 1]


@dataclass(frozen=True)
class ClassifierConfig(ImagesConfig, FitConfig):
    """What the training of every classifier by gradient has; that of a room extends it."""

    precision: Annotated[
        TrainPrecision, Setting("arithmetic; bf16 halves the time on CPUs that have it")
    ] = TrainPrecision.BF16
    label_smoothing: Annotated[
        float, Setting("some labels are wrong, none is certain", minimum=0.0, maximum=0.5)
    ] = 0.05
    variant: Annotated[str, Setting("of the room; empty: the room's own network")] = ""
    fp16_weights: Annotated[
        bool, Setting("store kernels in 16 bits, for half the file; arithmetic keeps 32")
    ] = False
    init_from: Annotated[
        Path | None, Setting("checkpoint to fine-tune; its head too where classes are as many")
    ] = None


class Batched(Protocol):
    """Settings that decide about batches."""

    @property
    def batch_size(self) -> int:
        """Images a step."""

    @property
    def seed(self) -> int:
        """Of the order."""


class Classifier(AveragedNetwork):
    """A classifier with its loss and its optimiser; errors are counted on the average."""

    def __init__(
        self, network: nn.Module, config: FitConfig, augment: Augmentation, label_smoothing: float
    ) -> None:
        super().__init__(network, config)
        self.augment = augment
        self.label_smoothing = label_smoothing
        self.errors = SumMetric()
        self.loss = MeanMetric()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Loss of one batch: image uint8 (N, C, H, W), label_ids int64 (N,)."""
        image, label_ids = batch
        image = self.augment(image.float() / 255.0, self.draws)
        loss = self.learn(image.contiguous(memory_format=torch.channels_last), label_ids)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def learn(self, image: Tensor, label_ids: Tensor) -> Tensor:
        """The loss to descend on for images (N, C, H, W) in [0, 1]; the place for another one."""
        logits = self.network(image)
        return F.cross_entropy(logits, label_ids, label_smoothing=self.label_smoothing)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Errors and cross-entropy of the averaged weights."""
        image, label_ids = batch
        logits = self.average(image.float() / 255.0).float()
        self.errors.update((logits.argmax(dim=1) != label_ids).sum())
        smoothing = self.label_smoothing  # as trained, or longer training would look worse
        loss = F.cross_entropy(logits, label_ids, label_smoothing=smoothing, reduction="none")
        self.loss.update(loss)

    def on_validation_epoch_end(self) -> None:
        """Score that ranks by errors first and by loss among equals; lower is better."""
        errors, loss = self.errors.compute(), self.loss.compute()
        self.log("validation_errors", errors, prog_bar=True)
        self.log("validation_loss", loss)
        self.log(SCORE.name, errors + loss.clamp(max=0.999))
        self.errors.reset()
        self.loss.reset()

    def configure_optimizers(self) -> dict[str, object]:  # type: ignore[override]
        """AdamW on one cycle over the whole training."""
        optimiser = torch.optim.AdamW(
            self.network.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
        )
        return self.on_one_cycle(optimiser)


def fit_classifier(
    module: Classifier,
    train: LabelledImages,
    validation: LabelledImages,
    out_dir: Path,
    init_from: Path | None = None,
) -> Fitted:
    """Train, and return the averaged weights of the epoch with the best validation.

    Raises:
        ConfigError: `init_from` is no checkpoint, or one of another network.
    """
    if init_from is not None and not module.config.resume:
        start_from(module, init_from, "head")
    loaders = batches(module.config, train, validation)
    return fit_best(module, loaders, SCORE, out_dir, gradient_clip_val=1.0)


def batches(
    config: Batched, train: LabelledImages, validation: LabelledImages
) -> list[DataLoader[tuple[Tensor, Tensor]]]:
    """Return the loaders of training, in an order that the seed decides, and of validation."""
    size, order = config.batch_size, seen_in_order(config.seed)
    return [
        DataLoader(Batches(train), size, shuffle=True, generator=order, collate_fn=as_it_comes),
        DataLoader(Batches(validation), size, collate_fn=as_it_comes),
    ]
