"""A frame network in training: loss, optimiser, weight average, validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric

from training.core.depthwise import DepthwiseInF32
from training.core.fit import Score
from training.core.losses import dice_and_bce, iou_per_image
from training.core.segmentation import SegmentationModule
from training.frames.augment import Augmentation
from training.frames.config import FrameConfig, Schedule
from training.frames.data import LoadedFrame

__all__ = ["SCORE", "FrameSegmenter", "collate"]

SCORE = Score("validation_iou", higher_is_better=True)


def collate(frames: Sequence[LoadedFrame]) -> tuple[Tensor, Tensor]:
    """Images float32 (N, 1, H, W) and masks uint8 (N, 1, H, W) of a batch."""
    images = np.stack([each.plane for each in frames]).astype(np.float32)
    masks = np.stack([each.mask for each in frames])
    return torch.from_numpy(images)[:, None], torch.from_numpy(masks)[:, None]


class FrameSegmenter(SegmentationModule):
    """A network of frames with its loss and its optimiser; IoU validates the average."""

    config: FrameConfig
    score = SCORE
    collate = staticmethod(collate)

    def __init__(
        self,
        network: nn.Module,
        config: FrameConfig,
        threshold: float = 0.5,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(network, config)
        self.threshold = threshold
        self.augmentation = augmentation or Augmentation(scale=config.zoom, cutmix=config.cutmix)
        self.iou = MeanMetric()
        self.validation_loss = MeanMetric()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change training frames at random, on the CPU, where the generator is."""
        if not (self.trainer.training and self.config.augment):
            return batch
        images, masks = batch
        return self.augmentation(images, masks, self.draws)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Loss of one batch."""
        images, masks = batch
        with DepthwiseInF32():
            logits = self.network(images.contiguous(memory_format=torch.channels_last))
        loss = dice_and_bce(logits, masks, self.config.dice_weight, self.config.bce_weight)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """IoU of each frame on the network's pixels, every frame counted (`core.overlap`)."""
        images, masks = batch
        logits = self.average(images.contiguous(memory_format=torch.channels_last))
        self.iou.update(iou_per_image(logits, masks, self.threshold))
        loss = dice_and_bce(logits, masks, self.config.dice_weight, self.config.bce_weight)
        self.validation_loss.update(loss, len(images))

    def on_validation_epoch_end(self) -> None:
        """Mean over the frames, not over the batches, of which the last may be smaller."""
        self.log(SCORE.name, self.iou.compute(), prog_bar=True)
        self.log("validation_loss", self.validation_loss.compute())
        self.iou.reset()
        self.validation_loss.reset()

    def configure_optimizers(self) -> Any:
        """Adam, whose rate falls on a plateau of the validation or along one cycle."""
        encoder = cast(nn.Module, self.network.encoder)
        inside = {id(each) for each in encoder.parameters()}
        decoder = [each for each in self.network.parameters() if id(each) not in inside]
        rate = self.config.learning_rate
        optimiser = torch.optim.Adam(
            [
                {"params": list(encoder.parameters()), "lr": self.config.encoder_rate * rate},
                {"params": decoder, "lr": rate},
            ],
            weight_decay=self.config.weight_decay,
        )
        if self.config.schedule is Schedule.ONE_CYCLE:
            return self.on_one_cycle(optimiser)
        plateau = ReduceLROnPlateau(
            optimiser, mode="max", factor=self.config.plateau_factor,
            patience=self.config.plateau_patience,
        )  # fmt: skip
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": plateau, "monitor": SCORE.name},
        }
