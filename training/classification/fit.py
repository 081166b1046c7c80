"""The training loop of every classifier, over Lightning: progress, checkpoints, resume, loggers."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
)
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, SumMetric

from training.classification.data import Batches, LabelledImages
from training.core import loop
from training.core.config import FitConfig

__all__ = ["Classifier", "Fitted", "fit_classifier", "load_best", "one_cycle", "warmed_average"]

_log = logging.getLogger(__name__)

SCORE = "validation_score"
Augmentation = Callable[[Tensor, torch.Generator], Tensor]  # images (N, C, H, W) in [0, 1]
ParameterList = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True)
class Fitted:
    """The best network of a training and where it came from."""

    network: nn.Module  # in eval mode, on the CPU, weights averaged
    checkpoint: Path
    epoch: int  # counted from 1; the one whose weights ship
    validation_score: float


class Classifier(L.LightningModule):
    """A network with its loss, its optimiser and a running average of its weights.

    The average is what is validated, checkpointed as best and exported: it makes fewer errors
    than any single step and costs nothing at serving.
    """

    def __init__(
        self, network: nn.Module, config: FitConfig, augment: Augmentation, label_smoothing: float
    ) -> None:
        super().__init__()
        self.config = config
        self.augment = augment
        self.label_smoothing = label_smoothing
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = AveragedModel(
            self.network, multi_avg_fn=warmed_average(config.ema_decay), use_buffers=True
        ).requires_grad_(False)
        self.draws = torch.Generator()
        self.errors = SumMetric()
        self.loss = MeanMetric()

    def on_train_epoch_start(self) -> None:
        """Seed the augmentation by epoch and rank, so that a resumed run draws the same."""
        seed = self.config.seed * 1_000_003 + 1009 * self.current_epoch + self.global_rank
        self.draws.manual_seed(seed)

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

    def on_train_batch_end(self, *_: object) -> None:
        """Move the average one step."""
        self.average.update_parameters(self.network)

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
        self.log(SCORE, errors + loss.clamp(max=0.999))
        self.errors.reset()
        self.loss.reset()

    def configure_optimizers(self) -> dict[str, object]:  # type: ignore[override]
        """AdamW on one cycle over the whole training."""
        optimiser = torch.optim.AdamW(
            self.network.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
        )
        steps = max(2, int(self.trainer.estimated_stepping_batches))
        schedule = LambdaLR(optimiser, lambda step: one_cycle(step / steps))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def one_cycle(progress: float, warm_up: float = 0.2, start: float = 0.04) -> float:
    """Share of the peak learning rate at a progress in [0, 1]: up from `start`, then down to 0.

    After Smith and Topin, arXiv:1708.07120. A function of progress alone, so that a resumed
    training may have more epochs than the first one asked for.
    """
    if progress < warm_up:
        return start + (1.0 - start) * 0.5 * (1.0 - math.cos(math.pi * progress / warm_up))
    left = (progress - warm_up) / (1.0 - warm_up)
    return 0.5 * (1.0 + math.cos(math.pi * min(left, 1.0)))


def warmed_average(decay: float) -> Callable[[ParameterList, ParameterList, Tensor | int], None]:
    """Exponential average that forgets the random start: its memory grows to `decay` by and by.

    For `torch.optim.swa_utils.AveragedModel(multi_avg_fn=...)`.
    """

    @torch.no_grad()
    def step(averaged: ParameterList, current: ParameterList, count: Tensor | int) -> None:
        kept = min(decay, (1.0 + float(count)) / (10.0 + float(count)))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value.to(mean.dtype), 1.0 - kept)
            else:  # batch norm's step counter
                mean.copy_(value)

    return step


def fit_classifier(
    module: Classifier, train: LabelledImages, validation: LabelledImages, out_dir: Path
) -> Fitted:
    """Train, and return the averaged weights of the epoch with the best validation.

    Writes `checkpoints/best.ckpt` and `checkpoints/last.ckpt` (every epoch), and into `logs/`
    what TensorBoard shows and a `metrics.csv`.
    """
    config = module.config
    folder = out_dir / "checkpoints"
    resumed = loop.resumed_from(folder, config.resume)
    best = ModelCheckpoint(folder, filename="best", monitor=SCORE, enable_version_counter=False)
    every = ModelCheckpoint(folder, filename="last", enable_version_counter=False)
    trainer = _trainer(config, out_dir, [best, every])
    if config.threads:
        torch.set_num_threads(config.threads)
    with loop.expected_remarks():
        trainer.fit(
            module,
            _loader(train, config, shuffle=True),
            _loader(validation, config, shuffle=False),
            ckpt_path=resumed,
        )
    return load_best(module, folder / "best.ckpt")


def load_best(module: Classifier, checkpoint: Path) -> Fitted:
    """The averaged weights of a checkpoint, as a plain network ready for export."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module.load_state_dict(content["state_dict"])
    network = loop.plain_network(module.average)
    savers = [state for name, state in content["callbacks"].items() if SCORE in name]
    score = min(float(each["best_model_score"]) for each in savers if "best_model_score" in each)
    _log.info("best epoch %d, validation score %.4f", loop.epoch_of(content), score)
    return Fitted(network, checkpoint, loop.epoch_of(content), score)


def _loader(
    images: LabelledImages, config: FitConfig, *, shuffle: bool
) -> DataLoader[tuple[Tensor, Tensor]]:
    order = torch.Generator().manual_seed(config.seed)
    return DataLoader(
        Batches(images),
        config.batch_size,
        shuffle=shuffle,
        generator=order,
        collate_fn=_as_it_comes,  # Batches hands out whole batches
    )


def _as_it_comes(batch: Any) -> Any:
    return batch


def _trainer(config: FitConfig, out_dir: Path, callbacks: list[Callback]) -> L.Trainer:
    return L.Trainer(
        max_epochs=config.epochs,
        devices=config.devices or "auto",
        precision=config.precision.value,
        callbacks=[
            *callbacks,
            EarlyStopping(SCORE, patience=config.patience),
            LearningRateMonitor(),
            RichProgressBar(),
        ],
        logger=loop.loggers(out_dir),
        log_every_n_steps=20,
        gradient_clip_val=1.0,
        enable_model_summary=False,
        default_root_dir=out_dir,
    )
