"""A segmentation network in training: loss, optimiser, weight average, validation by windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from medserve.imaging.geometry import Shape
from medserve.inference import sliding_window
from medserve.inference.sliding_window import SlidingWindow
from training.core.evaluation import predict_with
from training.core.fit import Score
from training.core.losses import absolute_weights, dice_and_cross_entropy
from training.core.overlap import dice
from training.core.segmentation import SegmentationModule
from training.volumes.augment import Augmentation, Placement
from training.volumes.config import VolumesConfig
from training.volumes.data import LoadedCase

__all__ = ["SCORE", "Segmenter", "freeze_body", "placement_of"]

SCORE = Score("validation_dice", higher_is_better=True)


def placement_of(config: VolumesConfig) -> Placement:
    """Return how patches are placed with these settings."""
    mirrored = (config.mirror, 0.0, 0.0)
    return Placement(rotate=config.rotate, elastic=config.elastic, mirrored=mirrored)


class Segmenter(SegmentationModule):
    """A network of volumes with its loss and its optimiser; whole volumes validate the average."""

    config: VolumesConfig
    score = SCORE

    def __init__(
        self,
        network: nn.Module,
        config: VolumesConfig,
        window: SlidingWindow,
        labels: Sequence[str],
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(network, config, torch.channels_last_3d)
        self.window = window
        self.labels = tuple(labels)
        self.augmentation = augmentation or Augmentation(placement_of(config))
        self.dice = nn.ModuleList(MeanMetric() for _ in self.labels[1:])

    @property
    def validate_every(self) -> int:
        """Epochs between two validations, one at least in a short training."""
        return min(self.config.validate_every, self.config.epochs)

    def transfer_batch_to_device(
        self, batch: list[LoadedCase], device: torch.device, dataloader_idx: int
    ) -> list[LoadedCase]:
        """Leave volumes where they are: only patches and windows go to the device."""
        return batch

    def on_train_epoch_start(self) -> None:
        """Let only the head learn in the first epochs, where that is asked for."""
        super().on_train_epoch_start()
        freeze_body(self.network, self.current_epoch < self.config.freeze_epochs)

    def patches(self, cases: Sequence[LoadedCase]) -> tuple[Tensor, Tensor]:
        """One random patch of each case: image (N, C, i, j, k), shares (N, classes, i, j, k)."""
        size: Shape = self.window.size
        pairs = [
            self.augmentation(case.image, case.mask, size, len(self.labels), self.draws)
            for case in cases
        ]
        images, shares = zip(*pairs, strict=True)
        return torch.stack(images), torch.stack(shares)

    def training_step(self, batch: list[LoadedCase], batch_index: int) -> Tensor:
        """Loss of one patch of each case."""
        with torch.autocast(self.device.type, enabled=False):  # coordinates need float32
            image, shares = (each.to(self.device) for each in self.patches(batch))
        logits = self.network(image.contiguous(memory_format=torch.channels_last_3d))
        loss = dice_and_cross_entropy(logits, shares, self.config.dice_weight)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch))
        if self.config.l1:
            loss = loss + self.config.l1 * absolute_weights(self.network)
        return loss

    def validation_step(self, batch: list[LoadedCase], batch_index: int) -> None:
        """Dice of every label of whole volumes, by the sliding window that serving uses."""
        predict = predict_with(self.average, self.device)
        for case in batch:
            mask = sliding_window.labels(case.image.numpy(), predict, self.window, len(self.labels))
            for label_id, metric in enumerate(self.dice, start=1):
                found, wanted = mask == label_id, case.mask.numpy() == label_id
                counts = (int(each.sum()) for each in (found & wanted, found, wanted))
                cast(MeanMetric, metric).update(dice(*counts))

    def on_validation_epoch_end(self) -> None:
        """Mean Dice, of each label and of all."""
        means = []
        for label, metric in zip(self.labels[1:], self.dice, strict=True):
            means.append(cast(MeanMetric, metric).compute())
            self.log(f"validation_dice_{label}", means[-1])
            cast(MeanMetric, metric).reset()
        self.log(SCORE.name, torch.stack(means).mean(), prog_bar=True)

    def configure_optimizers(self) -> dict[str, object]:  # type: ignore[override]
        """AdamW on one cycle over the whole training; norms and biases are not decayed."""
        weights = [each for each in self.network.parameters() if each.ndim > 1]
        others = [each for each in self.network.parameters() if each.ndim <= 1]
        optimiser = torch.optim.AdamW(
            [
                {"params": weights, "weight_decay": self.config.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=self.config.learning_rate,
        )
        return self.on_one_cycle(optimiser)


def freeze_body(network: nn.Module, frozen: bool) -> None:
    """Let only the head learn, or everything again."""
    head = {id(each) for each in cast(nn.Module, network.head).parameters()}
    for parameter in network.parameters():
        parameter.requires_grad_(not frozen or id(parameter) in head)
