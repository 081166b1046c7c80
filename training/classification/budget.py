"""Train any network of cells for a fixed amount of work: seconds of processor time.

Epochs would be no common measure: one of VGG16 costs what 250 of MobileNet cost. Processor time
counts alike on a busy machine and on an idle one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blood_cell.transfer import TransferNet
from training.classification.cells import CellAugment
from training.core.fit import one_cycle

__all__ = ["EXPECTED", "Budget", "BudgetedClassifier", "seen"]

_log = logging.getLogger(__name__)

Clock = Callable[[], float]
EXPECTED = (  # Lightning's remarks on what is meant
    ".*`max_epochs`",  # the budget ends the training
    ".*val_dataloader",
    ".*in eval mode at the start of training",  # what is frozen
)


@dataclass(frozen=True)
class Budget:
    """How long and how fast to learn.

    Attributes:
        seconds: Of processor time, all threads together.
        learning_rate: Peak of the one-cycle schedule, of what learns first.
        frozen_share: Of the budget in which a transferred network learns its last layer alone.
        unfrozen_rate: Of the last convolutional part, as a share of `learning_rate`.
    """

    seconds: float
    learning_rate: float
    frozen_share: float = 0.4
    unfrozen_rate: float = 0.1


def seen(image: Tensor, window: int, side: int) -> Tensor:
    """The middle `window` pixels of frames (N, 3, H, W) at `side` pixels, without a change."""
    top, left = (image.shape[2] - window) // 2, (image.shape[3] - window) // 2
    middle = image[:, :, top : top + window, left : left + window]
    if side == window:
        return middle
    return F.interpolate(middle, size=(side, side), mode="bilinear", antialias=True)


class BudgetedClassifier(L.LightningModule):
    """A network, a loss, and a schedule over processor time.

    A `TransferNet` with weights of other pictures learns in two phases: its last layer on a frozen
    backbone, then the last convolutional part too, slowly. Any other network learns whole.

    Args:
        network: Image (N, 3, side, side) -> logits.
        budget: Ends the training.
        augment: Its window and side say what is seen in validation, too.
        seed: Of the augmentation.
        clock: Seconds of work so far.
    """

    def __init__(
        self,
        network: nn.Module,
        budget: Budget,
        augment: CellAugment,
        seed: int = 0,
        clock: Clock = time.process_time,
    ) -> None:
        super().__init__()
        self.network = network
        self.budget = budget
        self.augment = augment
        self.clock = clock
        self.draws = torch.Generator().manual_seed(seed)
        self.transfer = (
            network if isinstance(network, TransferNet) and network.is_pretrained else None
        )
        self.began: float | None = None
        self.images_seen = 0
        self.told_tenths = 0
        if self.transfer is not None:
            self.transfer.freeze(but=[self.transfer.head])

    @property
    def progress(self) -> float:
        """Share of the budget that is spent."""
        return 0.0 if self.began is None else (self.clock() - self.began) / self.budget.seconds

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; the rates are set at each step."""
        rate = self.budget.learning_rate
        if self.transfer is None:
            groups = [{"params": list(self.network.parameters()), "peak": rate}]
        else:
            last = [each for part in self.transfer.last_convolutions for each in part.parameters()]
            groups = [
                {"params": list(self.transfer.head.parameters()), "peak": rate},
                {"params": last, "peak": rate * self.budget.unfrozen_rate},
            ]
        return torch.optim.AdamW(groups, lr=rate, weight_decay=0.02)

    def on_train_batch_start(self, batch: Any, batch_index: int) -> int | None:
        """Move rates and phase to where the clock is; -1 ends the epoch, and so the training."""
        if self.began is None:
            self.began = self.clock()
        progress = self.progress
        if progress >= 1.0:
            self.trainer.should_stop = True
            return -1
        self._tell(progress)
        optimiser = self.optimizers()
        for group in optimiser.param_groups:  # type: ignore[union-attr]
            group["lr"] = group["peak"] * one_cycle(progress)
        if self.transfer is not None and progress >= self.budget.frozen_share:
            self.transfer.freeze(but=[self.transfer.head, *self.transfer.last_convolutions])
        return None

    def _tell(self, progress: float) -> None:
        """Log each tenth of the budget."""
        tenths = int(10 * progress)
        if tenths > self.told_tenths:
            self.told_tenths = tenths
            _log.info("%d %% of %g s learnt", 10 * tenths, self.budget.seconds)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Loss of frames float32 (N, 3, H, W) in [0, 1] and label ids int64 (N,)."""
        image, label_ids = batch
        self.images_seen += len(image)
        changed = self.augment(image, self.draws)
        logits = self.network(changed.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, label_ids, label_smoothing=0.05)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    @torch.no_grad()
    def probabilities(self, image: Tensor) -> Tensor:
        """Frames float32 (N, 3, H, W) in [0, 1] -> probabilities (N, K), unchanged by chance."""
        shown = seen(image, self.augment.window, self.augment.side)
        return self.network(shown).float().softmax(dim=1)
