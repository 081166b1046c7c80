"""Train a diffusion model: `python -m training.diffusion_sampler --config config.ini`.

    python -m training.diffusion_sampler --data-dir BrainMRI --out-dir runs/diffusion_sampler

Every key of the configuration file is a flag as well, and a flag beats the file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import lightning
import torch

from training import data
from training.config import run, write
from training.diffusion import extractor
from training.diffusion.fit import Fitted, Judge, fit
from training.diffusion.images import FolderRequest, read_folder
from training.diffusion.module import Diffusion
from training.diffusion.networks import build
from training.diffusion.settings import INI_KEYS, DiffusionConfig
from training.ini import parse_with_file

__all__ = ["NAME", "main"]

NAME = "diffusion_sampler"


def main(config: DiffusionConfig) -> None:
    """Read, split, train the extractor that judges, then the network."""
    images = read_folder(
        FolderRequest(config.data_dir, config.image_size, config.channels, config.only_class)
    )
    write(config, config.out_dir / "config.json")
    parts = data.split(images, config.seed)
    data.write_split(config.out_dir / "split.csv", images, parts)
    train, validation = images.take(parts["train"]), images.take(parts["validation"])
    train_network(config, train, validation)


def train_network(
    config: DiffusionConfig, train: data.LabelledImages, validation: data.LabelledImages
) -> Fitted:
    """The network of the configuration, trained on these images."""
    judge_path = config.out_dir / "extractor.pt"
    if not judge_path.is_file():
        torch.save(extractor.train_extractor(train, seed=config.seed).state_dict(), judge_path)
    eyes = extractor.load_extractor(judge_path, config.channels, len(train.labels))
    lightning.seed_everything(config.seed, verbose=False)
    classes = len(train.labels) if config.conditional else 0
    module = Diffusion(build(config, classes), classes, config)
    judge = Judge(validation, eyes, config.out_dir, config.mirror)
    return fit(module, train, judge, config.out_dir)


def _read(config: type[DiffusionConfig], arguments: Sequence[str] | None) -> DiffusionConfig:
    return parse_with_file(config, arguments, INI_KEYS)


if __name__ == "__main__":
    sys.exit(run(main, DiffusionConfig, read=_read))
