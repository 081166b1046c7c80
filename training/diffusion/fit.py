"""The training loop of a diffusion model: checkpoints, resume, the best by an image metric."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import (
    Callback,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from training.classification.data import LabelledImages
from training.core import loop
from training.diffusion import extractor
from training.diffusion.distances import frechet_distance
from training.diffusion.module import Diffusion, sample
from training.diffusion.pictures import sheet, write_png

__all__ = ["Fitted", "fit", "load_best"]

_log = logging.getLogger(__name__)

SCORE = "frechet_distance"
_METRIC_STEPS = 15  # of DPM-Solver++; more say little about which epoch is better
_SHOWN = 36


@dataclass(frozen=True)
class Fitted:
    """The averaged weights of the epoch whose samples were nearest to real images."""

    network: nn.Module  # in eval mode, on the CPU
    epoch: int  # counted from 1; the one whose weights ship
    distance: float  # Fréchet, to the validation images


class ImageMetric(Callback):
    """Every few epochs: samples, their Fréchet distance to the validation images, a picture."""

    def __init__(
        self,
        validation: LabelledImages,
        network: extractor.DomainExtractor,
        out_dir: Path,
        mirrored: bool = False,
    ) -> None:
        self._network, self._out_dir, self._mirrored = network, out_dir, mirrored
        self._label_ids = validation.label_ids
        self._real = extractor.features(network, validation.images, mirrored)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Log `SCORE`, on which the best checkpoint is chosen."""
        assert isinstance(module, Diffusion)
        config, epoch = module.config, trainer.current_epoch + 1
        if epoch % config.judge_every and epoch != config.epochs:
            return
        draws = np.random.default_rng(config.seed)
        label_ids = draws.choice(self._label_ids, config.judge_images)  # classes as they occur
        if not module.classes:
            label_ids = np.zeros_like(label_ids)
        images = sample(module, label_ids, _METRIC_STEPS, config.seed)
        found = extractor.features(self._network, images, self._mirrored)
        distance = frechet_distance(found, self._real)
        module.log(SCORE, distance, prog_bar=True)
        _log.info("epoch %d: Fréchet distance %.4f", epoch, distance)
        if config.debug:
            picture = sheet(images[:_SHOWN])
            write_png(self._out_dir / "pictures" / f"epoch_{epoch:04d}.png", picture)


def fit(
    module: Diffusion,
    train: LabelledImages,
    metric: ImageMetric,
    out_dir: Path,
) -> Fitted:
    """Train; writes `checkpoints/{best,last}.ckpt`, `logs/` and, with debug, `pictures/`."""
    config = module.config
    folder = out_dir / "checkpoints"
    resumed = loop.resumed_from(folder, config.resume)
    best = ModelCheckpoint(
        folder, filename="best", monitor=SCORE, every_n_epochs=config.judge_every,
        enable_version_counter=False, save_on_train_epoch_end=True,
    )  # fmt: skip
    every = ModelCheckpoint(
        folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True
    )
    trainer = _trainer(module, out_dir, [metric, best, every])
    if config.threads:
        torch.set_num_threads(config.threads)
    with loop.expected_remarks(
        ".*You defined a `validation_step`", ".*this may be a|.*could not find the monitored key"
    ):
        trainer.fit(module, _loader(train, module), ckpt_path=resumed)
    return load_best(module, folder / "best.ckpt")


def load_best(module: Diffusion, checkpoint: Path) -> Fitted:
    """The averaged weights of a checkpoint, as a plain network ready for export."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module.load_state_dict(content["state_dict"])
    network = loop.plain_network(module.average)
    savers = [state for name, state in content["callbacks"].items() if SCORE in name]
    distance = min(float(each["best_model_score"]) for each in savers)
    return Fitted(network, loop.epoch_of(content), distance)


def _loader(images: LabelledImages, module: Diffusion) -> DataLoader[tuple[Tensor, ...]]:
    label_ids = torch.from_numpy(images.label_ids)
    if not module.classes:
        label_ids = torch.zeros_like(label_ids)
    return DataLoader(
        TensorDataset(torch.from_numpy(images.images), label_ids),
        module.config.batch_size,
        shuffle=True,
        drop_last=len(images) > module.config.batch_size,
        generator=torch.Generator().manual_seed(module.config.seed),
    )


def _trainer(module: Diffusion, out_dir: Path, callbacks: list[Callback]) -> L.Trainer:
    config = module.config
    return L.Trainer(
        max_epochs=config.epochs,
        devices=config.devices or "auto",
        precision=config.precision.value,
        accumulate_grad_batches=config.accumulate,
        callbacks=[*callbacks, LearningRateMonitor(), RichProgressBar()],
        logger=loop.loggers(out_dir),
        log_every_n_steps=20,
        gradient_clip_val=1.0,
        enable_model_summary=False,
        default_root_dir=out_dir,
    )
