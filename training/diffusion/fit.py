"""The training of a diffusion model; an image metric tells which epoch is best."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from training.classification.data import LabelledImages
from training.core.fit import Fitted, Score, checkpoints_of, fit_best, seen_in_order
from training.diffusion import extractor
from training.diffusion.distances import frechet_distance
from training.diffusion.module import Diffusion, sample
from training.diffusion.pictures import sheet, write_png

__all__ = ["SCORE", "ImageMetric", "fit_diffusion"]

_log = logging.getLogger(__name__)

SCORE = Score("frechet_distance")
_METRIC_STEPS = 15  # of DPM-Solver++; more say little about which epoch is better
_SHOWN = 36


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
        """Log the score on which the best checkpoint is chosen."""
        assert isinstance(module, Diffusion)
        config, epoch = module.config, trainer.current_epoch + 1
        if epoch % config.judge_every and epoch != config.epochs:
            return
        trainer.save_checkpoint(checkpoints_of(self._out_dir) / "last.ckpt")  # judging takes long
        _log.info("epoch %d: judging %d samples", epoch, config.judge_images)
        draws = np.random.default_rng(config.seed)
        label_ids = draws.choice(self._label_ids, config.judge_images)  # classes as they occur
        if not module.classes:
            label_ids = np.zeros_like(label_ids)
        images = sample(module, label_ids, _METRIC_STEPS, config.seed)
        found = extractor.features(self._network, images, self._mirrored)
        distance = frechet_distance(found, self._real)
        module.log(SCORE.name, distance, prog_bar=True)
        _log.info("epoch %d: Fréchet distance %.4f", epoch, distance)
        if config.debug:
            picture = sheet(images[:_SHOWN])
            write_png(self._out_dir / "pictures" / f"epoch_{epoch:04d}.png", picture)


def fit_diffusion(
    module: Diffusion, train: LabelledImages, metric: ImageMetric, out_dir: Path
) -> Fitted:
    """Train, and return the averaged weights of the epoch whose samples were nearest to real ones.

    With `config.debug`, samples of each judged epoch lie in `pictures/`.
    """
    remarks = (
        ".*You defined a `validation_step`",
        ".*this may be a|.*could not find the monitored key",
    )
    return fit_best(
        module, [_loader(train, module)], SCORE, out_dir, callbacks=[metric], remarks=remarks,
        accumulate_grad_batches=module.config.accumulate, gradient_clip_val=1.0,
    )  # fmt: skip


def _loader(images: LabelledImages, module: Diffusion) -> DataLoader[tuple[Tensor, ...]]:
    label_ids = torch.from_numpy(images.label_ids)
    if not module.classes:
        label_ids = torch.zeros_like(label_ids)
    return DataLoader(
        TensorDataset(torch.from_numpy(images.images), label_ids),
        module.config.batch_size,
        shuffle=True,
        drop_last=len(images) > module.config.batch_size,
        generator=seen_in_order(module.config.seed),
    )
