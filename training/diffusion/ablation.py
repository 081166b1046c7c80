"""Which choices in the network matter: each is changed alone, all else and the budget equal.

    python -m training.diffusion.ablation --data-dir BrainMRI --out outputs/ablation

Small images, a small network and few epochs tell the variants apart in minutes; a figure says
something about the choice under this budget, not about what the variant reaches when trained long.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn

from medserve.errors import ConfigError
from models.diffusion_sampler.network import Activation, Down, Norm
from training.classification import data
from training.classification.data import LabelledImages
from training.core.config import Setting, TrainPrecision, run, write
from training.core.files import write_json
from training.core.report import Table
from training.diffusion import extractor
from training.diffusion.distances import frechet_distance, kernel_distance
from training.diffusion.images import FolderRequest, read_folder
from training.diffusion.module import Diffusion, build, sample
from training.diffusion.pictures import sheet, write_png
from training.diffusion.settings import DiffusionConfig, NetworkName

__all__ = ["VARIANTS", "AblationConfig", "Row", "main", "markdown"]

_log = logging.getLogger(__name__)

# Name -> what differs from the defaults.
VARIANTS: dict[str, dict[str, Any]] = {
    "default: GELU, strided convolution, group norm, no attention": {},
    "SiLU": {"activation": Activation.SILU},
    "max-pool down": {"down": Down.POOL},
    "LayerNorm over (C, H, W)": {"norm": Norm.LAYER},
    "no norm": {"norm": Norm.NONE},
    "attention": {"attention": True},
    "MONAI DiffusionModelUNet": {"network": NetworkName.MONAI},
}
_SAMPLING_STEPS = 20
_BATCH = 64
_SHOWN = 12


@dataclass(frozen=True)
class AblationConfig:
    """Train variants of the network under one small budget and compare their samples."""

    data_dir: Annotated[Path, Setting("folder of images, or of one folder per class")] = Path(
        "data/BrainMRI"
    )
    out: Annotated[Path, Setting("folder for ablation.json, ablation.md and sheets")] = Path(
        "outputs/ablation"
    )
    image_size: Annotated[int, Setting("side of the square image", minimum=8)] = 32
    channels: Annotated[int, Setting("1 grey, 3 colour", minimum=1, maximum=3)] = 1
    width: Annotated[int, Setting("channels of the first stage", minimum=8)] = 16
    steps: Annotated[int, Setting("steps of the optimiser, each of 64 images", minimum=1)] = 600
    images: Annotated[int, Setting("samples to judge, and validation images", minimum=8)] = 256
    seeds: Annotated[int, Setting("trainings of each variant", minimum=1)] = 2
    only: Annotated[str, Setting("part of the names to run; all where empty")] = ""
    threads: Annotated[int, Setting("CPU threads; 0 leaves torch's choice", minimum=0)] = 0


@dataclass(frozen=True)
class Row:
    """One variant.

    Attributes:
        variant: Its name.
        parameters: Of the network.
        loss: Mean weighted error on the validation images, of all trainings.
        frechet: Fréchet distance of the samples to the validation images, a mean likewise.
        frechet_spread: Largest minus smallest of the trainings.
        kernel: Kernel distance, a mean likewise.
        milliseconds: Of CPU time, a training step.
    """

    variant: str
    parameters: int
    loss: float
    frechet: float
    frechet_spread: float
    kernel: float
    milliseconds: float


@dataclass(frozen=True)
class _Trained:
    parameters: int
    loss: float
    frechet: float
    kernel: float
    milliseconds: float
    images: Any  # uint8 (N, C, H, W)


def main(config: AblationConfig) -> None:
    """Train every variant with every seed; write the table after each variant."""
    chosen = {name: what for name, what in VARIANTS.items() if config.only in name}
    if not chosen:
        raise ConfigError(f"--only: expected a part of {'; '.join(VARIANTS)}, got {config.only!r}")
    if config.threads:
        torch.set_num_threads(config.threads)
    images = read_folder(FolderRequest(config.data_dir, config.image_size, config.channels))
    parts = data.split(images, seed=0)
    train, validation = images.take(parts["train"]), images.take(parts["validation"])
    write(config, config.out / "config.json")
    feature_network = extractor.train_extractor(train)
    rows = []
    for name, what in chosen.items():
        trained = [
            _train(_settings(config, what, seed), train, validation, feature_network)
            for seed in range(config.seeds)
        ]
        rows.append(_row(name, trained))
        _log.info("%s", rows[-1])
        picture = sheet(trained[0].images[:_SHOWN], columns=_SHOWN)
        write_png(config.out / f"variant_{len(rows) - 1}.png", picture, scale=2)
        write_json(config.out / "ablation.json", [dataclasses.asdict(row) for row in rows])
        (config.out / "ablation.md").write_text(markdown(rows), encoding="utf-8")


def markdown(rows: Sequence[Row]) -> str:
    """The table of all rows."""
    columns: Mapping[str, Callable[[Row], object]] = {
        "network": lambda row: row.variant,
        "parameters": lambda row: f"{row.parameters:,}",
        "Fréchet distance": lambda row: f"{row.frechet:.3f}",
        "spread of the trainings": lambda row: f"{row.frechet_spread:.3f}",
        "kernel distance": lambda row: f"{row.kernel:.4f}",
        "validation loss": lambda row: f"{row.loss:.5f}",
        "CPU ms a step": lambda row: f"{row.milliseconds:.0f}",
    }
    return Table.of(columns, rows).markdown()


def _settings(config: AblationConfig, what: dict[str, Any], seed: int) -> DiffusionConfig:
    usual = DiffusionConfig(
        image_size=config.image_size, channels=config.channels, width=config.width, blocks=1,
        stages=2, batch_size=_BATCH, ema_decay=0.99, learning_rate=1e-3,
        epochs=config.steps, judge_images=config.images, seed=seed,
        precision=TrainPrecision.BF16,
    )  # fmt: skip
    return dataclasses.replace(usual, **what)


def _train(
    config: DiffusionConfig,
    train: LabelledImages,
    validation: LabelledImages,
    feature_network: nn.Module,
) -> _Trained:
    """A bare loop: what is compared is the network, not what surrounds a long training."""
    lightning.seed_everything(config.seed, verbose=False)
    classes = len(train.labels)
    network = build(config, classes)
    module = Diffusion(network, classes, config)
    optimiser = torch.optim.Adam(module.network.parameters(), lr=config.learning_rate)
    steps = config.epochs
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, total_steps=steps)
    pixels, label_ids = torch.from_numpy(train.images), torch.from_numpy(train.label_ids)
    module.draws.manual_seed(config.seed)
    started = time.process_time()
    for _ in range(steps):
        chosen = torch.randint(len(pixels), (_BATCH,), generator=module.draws)
        loss = _loss(module, pixels[chosen], label_ids[chosen])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.network.parameters(), 1.0)
        optimiser.step()
        rate.step()
        module.average.update_parameters(module.network)
    milliseconds = (time.process_time() - started) / steps * 1000
    chosen_labels = np.random.default_rng(config.seed).choice(
        validation.label_ids, config.judge_images
    )
    made = sample(module, chosen_labels, _SAMPLING_STEPS, config.seed)
    real = extractor.features(feature_network, validation.images)
    found = extractor.features(feature_network, made)
    return _Trained(
        parameters=sum(each.numel() for each in network.parameters()),
        loss=_validation_loss(module, validation),
        frechet=frechet_distance(found, real),
        kernel=kernel_distance(found, real),
        milliseconds=milliseconds,
        images=made,
    )


def _loss(module: Diffusion, images: Tensor, label_ids: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=module.config.precision.value[:2] == "bf"):
        return module.error(images, label_ids)


@torch.no_grad()
def _validation_loss(module: Diffusion, validation: LabelledImages) -> float:
    """With the averaged weights and the same noise for every variant."""
    module.network.load_state_dict(module.average.module.state_dict())
    module.draws.manual_seed(0)
    images = torch.from_numpy(validation.images)
    label_ids = torch.from_numpy(validation.label_ids)
    parts = range(0, len(images) - len(images) % _BATCH or len(images), _BATCH)
    losses = [
        float(_loss(module, images[start : start + _BATCH], label_ids[start : start + _BATCH]))
        for start in parts
    ]
    return float(np.mean(losses))


def _row(name: str, trained: Sequence[_Trained]) -> Row:
    frechet = [each.frechet for each in trained]
    return Row(
        variant=name,
        parameters=trained[0].parameters,
        loss=round(float(np.mean([each.loss for each in trained])), 6),
        frechet=round(float(np.mean(frechet)), 4),
        frechet_spread=round(max(frechet) - min(frechet), 4),
        kernel=round(float(np.mean([each.kernel for each in trained])), 5),
        milliseconds=round(float(np.mean([each.milliseconds for each in trained])), 1),
    )


if __name__ == "__main__":
    sys.exit(run(main, AblationConfig))
