"""Train a diffusion model: `python -m training.diffusion_sampler --config config.ini`.

    python -m training.diffusion_sampler --data-dir BrainMRI --out-dir runs/diffusion_sampler

Every key of the configuration file is a flag as well, and a flag beats the file. A file that gives
betas describes a DDPM: linear betas, and a network that says the noise.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import lightning
import torch

import models
from training.classification import data
from training.core.config import run, write
from training.core.files import require_folder
from training.core.fit import Fitted, checkpoints_of, load_best, start_from
from training.core.ini import parse_with_file
from training.diffusion import extractor
from training.diffusion.evaluation import DiffusionEvaluation, evaluate_diffusion
from training.diffusion.finish import finish, stored
from training.diffusion.fit import SCORE, ImageMetric, fit_diffusion
from training.diffusion.images import FolderRequest, read_folder
from training.diffusion.module import Diffusion, build
from training.diffusion.settings import INI_KEYS, DiffusionConfig, implied
from training.diffusion.ship import NAME, Shipment

__all__ = ["EVALUATION", "NAME", "evaluate", "main", "new_module", "train_network"]

EVALUATION = DiffusionEvaluation


def main(config: DiffusionConfig) -> None:
    """Read, split, train the extractor of features, then the network; export and measure it."""
    if config.finish:
        config = stored(config)
    images = read_folder(
        FolderRequest(config.data_dir, config.image_size, config.channels, config.only_class)
    )
    parts = data.split(images, config.seed)
    train, validation = images.take(parts["train"]), images.take(parts["validation"])
    if config.finish:
        folder = require_folder(config.out_dir, "--out-dir")
        checkpoint = checkpoints_of(folder) / "best.ckpt"
        fitted = load_best(new_module(config, train), checkpoint, SCORE)
    else:
        new_module(
            config, train
        )  # refuses a checkpoint that does not fit before anything is trained
        write(config, config.out_dir / "config.json")
        data.write_split(config.out_dir / "split.csv", images, parts)
        fitted = train_network(config, train, validation)
    labels = train.labels if config.conditional else ()
    finish(config, fitted, Shipment(config, train, validation, labels), _room(config.variant))


def train_network(
    config: DiffusionConfig, train: data.LabelledImages, validation: data.LabelledImages
) -> Fitted:
    """The network of the configuration, trained on these images."""
    extractor_path = config.out_dir / "extractor.pt"
    if not extractor_path.is_file():
        torch.save(extractor.train_extractor(train, seed=config.seed).state_dict(), extractor_path)
    feature_network = extractor.load_extractor(extractor_path, config.channels, len(train.labels))
    metric = ImageMetric(validation, feature_network, config.out_dir, config.mirror)
    return fit_diffusion(new_module(config, train), train, metric, config.out_dir)


def evaluate(config: DiffusionEvaluation) -> None:
    """ImageMetric the shipped artifact (or another) on images that no training saw."""
    evaluate_diffusion(config)


def new_module(config: DiffusionConfig, train: data.LabelledImages) -> Diffusion:
    """Return the network before its training: of random weights, or of those of `config.model`."""
    lightning.seed_everything(config.seed, verbose=False)
    classes = len(train.labels) if config.conditional else 0
    module = Diffusion(build(config, classes), classes, config)
    if config.model is not None:
        start_from(module, config.model)
    return module


def _room(variant: str) -> Path:
    room = Path(models.__file__).parent / NAME
    return room / "variants" / variant if variant else room


def _read(config: type[DiffusionConfig], arguments: Sequence[str] | None) -> DiffusionConfig:
    return parse_with_file(config, arguments, INI_KEYS, implied)


if __name__ == "__main__":
    sys.exit(run(main, DiffusionConfig, read=_read))
