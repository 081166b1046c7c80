"""How the cell classifier learns: stages of maturation beside labels, small images first."""

from __future__ import annotations

import dataclasses
from typing import cast

from torch import Tensor

from models.blood_cell.network import BloodCellNet
from training.cells.augment import CellAugment
from training.cells.kinds import KindLoss
from training.classification.fit import Classifier
from training.core.config import FitConfig

__all__ = ["CellClassifier"]


class CellClassifier(Classifier):
    """A `BloodCellNet` that sees smaller images in its first epochs.

    Args:
        network: Takes images of any side.
        config: Of the training.
        augment: Shows the middle of a frame at its full side.
        label_smoothing: Share of the target that is spread over all labels.
        first_side: Pixels of the images in the first epochs; they cost less and teach as much.
        small_share: Share of the epochs that see them.
    """

    def __init__(
        self,
        network: BloodCellNet,
        config: FitConfig,
        augment: CellAugment,
        label_smoothing: float,
        first_side: int,
        small_share: float,
    ) -> None:
        super().__init__(network, config, augment, label_smoothing)
        self.full = augment
        self.small = dataclasses.replace(augment, side=min(first_side, augment.side))
        self.small_epochs = round(small_share * config.epochs)
        self.kind_loss = KindLoss(label_smoothing)

    def on_train_epoch_start(self) -> None:
        """Choose the side of this epoch's images."""
        super().on_train_epoch_start()
        self.augment = self.small if self.current_epoch < self.small_epochs else self.full

    def learn(self, image: Tensor, label_ids: Tensor) -> Tensor:
        """Loss of the kinds, see `training.cells.kinds`; the augmentation shows the middle."""
        cells = cast(BloodCellNet, self.network)
        units = cells.tell_apart(cells.maps(image))
        return self.kind_loss(units, cells.join(units), label_ids)
