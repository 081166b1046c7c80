"""Settings of a diffusion training; the names that a config.ini uses stand in `INI_KEYS`."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from medserve.inference.samplers import Prediction
from medserve.inference.schedules import NoiseSchedule, ScheduleKind
from models.diffusion_sampler.network import Activation, Down, NetworkConfig, Norm
from training.core.config import FitConfig, Setting, TrainPrecision

__all__ = ["INI_KEYS", "DiffusionConfig", "NetworkName", "implied"]

# Key in the file -> field, where they differ.
INI_KEYS = {
    "dataset": "data_dir",
    "class": "only_class",
    "img_size": "image_size",
    "n_channel": "channels",
    "n_epochs": "epochs",
    "lr": "learning_rate",
    "n_steps": "steps",
    "n_images": "samples",
    "output_path": "out_dir",
}


_BETAS = frozenset({"min_beta", "max_beta"})


def implied(given: Mapping[str, object]) -> dict[str, object]:
    """Return what betas mean where nothing else is said: the DDPM of Ho et al., arXiv:2006.11239.

    Linear betas, a network that says the noise, and an error that weighs all steps alike.
    """
    if not _BETAS & set(given):
        return {}
    return {"schedule": ScheduleKind.LINEAR, "prediction": Prediction.NOISE, "snr_limit": 0.0}


class NetworkName(enum.StrEnum):
    """Which network is trained."""

    UNET = "unet"
    MONAI = "monai"  # MONAI's DiffusionModelUNet, for comparison


@dataclass(frozen=True)
class DiffusionConfig(FitConfig):
    """Train a diffusion model on a folder of images, judge it and export it."""

    data_dir: Annotated[Path, Setting("folder of images, or of one folder per class")] = Path(
        "data/BrainMRI"
    )
    out_dir: Annotated[Path, Setting("folder for checkpoints, pictures, artifact")] = Path(
        "runs/diffusion_sampler"
    )
    only_class: Annotated[str, Setting("train on this class alone")] = ""
    model: Annotated[
        Path | None, Setting("checkpoint of an earlier training to start from; empty: none")
    ] = None
    network: Annotated[NetworkName, Setting("which network is trained")] = NetworkName.UNET
    image_size: Annotated[int, Setting("side of the square image", minimum=8, maximum=512)] = 64
    channels: Annotated[int, Setting("1 grey, 3 colour", minimum=1, maximum=3)] = 1
    conditional: Annotated[bool, Setting("tell the network the class")] = True
    epochs: Annotated[int, Setting("passes over the images", minimum=1)] = 80
    batch_size: Annotated[int, Setting("images a step", minimum=1)] = 32
    accumulate: Annotated[int, Setting("batches a step of the optimiser", minimum=1)] = 1
    learning_rate: Annotated[float, Setting("peak of Adam's rate", minimum=0.0)] = 5e-4
    weight_decay: Annotated[float, Setting("AdamW's; 0 is Adam", minimum=0.0)] = 0.0
    ema_decay: Annotated[
        float, Setting("memory of the weight average that samples", minimum=0.0, maximum=1.0)
    ] = 0.999
    precision: Annotated[
        TrainPrecision, Setting("arithmetic; bf16 halves the time on CPUs that have it")
    ] = TrainPrecision.BF16
    steps: Annotated[int, Setting("T of the diffusion process", minimum=2)] = 1000
    schedule: Annotated[ScheduleKind, Setting("how noise grows")] = ScheduleKind.COSINE
    min_beta: Annotated[
        float, Setting("first beta; given, it means --schedule linear", minimum=0.0)
    ] = 1e-4
    max_beta: Annotated[
        float, Setting("last beta; given, it means --schedule linear", maximum=1.0)
    ] = 0.02
    prediction: Annotated[Prediction, Setting("what the network says")] = Prediction.VELOCITY
    snr_limit: Annotated[
        float, Setting("Min-SNR's gamma; 0 weighs all steps alike", minimum=0.0)
    ] = 5.0
    class_dropout: Annotated[
        float, Setting("share of images shown without class", minimum=0.0, maximum=1.0)
    ] = 0.1
    mirror: Annotated[
        bool, Setting("show half of the images mirrored; samples then know no left and right")
    ] = False
    width: Annotated[int, Setting("channels of the first stage", minimum=8)] = 64
    stages: Annotated[int, Setting("planes of halved size", minimum=1, maximum=6)] = 3
    blocks: Annotated[int, Setting("blocks a stage", minimum=1)] = 2
    patch: Annotated[int, Setting("side of the blocks that become channels", minimum=1)] = 2
    activation: Annotated[Activation, Setting("between convolutions")] = Activation.GELU
    down: Annotated[Down, Setting("how planes are halved")] = Down.STRIDE
    norm: Annotated[Norm, Setting("layer ties the weights to one size")] = Norm.GROUP
    attention: Annotated[bool, Setting("self-attention over the smallest plane")] = False
    dropout: Annotated[float, Setting("share of features left out", minimum=0.0, maximum=0.9)] = 0.0
    debug: Annotated[bool, Setting("write sample pictures while training")] = True
    judge_every: Annotated[int, Setting("epochs between image metrics", minimum=1)] = 5
    judge_images: Annotated[int, Setting("samples for the image metric", minimum=16)] = 256
    samples: Annotated[int, Setting("images to write when done", minimum=0)] = 64
    finish: Annotated[
        bool, Setting("do not train: export and judge the best checkpoint in out_dir")
    ] = False
    install: Annotated[bool, Setting("copy the artifact into the room when done")] = False
    variant: Annotated[str, Setting("of the room that --install writes; empty: the room")] = ""

    @property
    def noise_schedule(self) -> NoiseSchedule:
        """The process; ConfigError where the betas make none."""
        return NoiseSchedule(self.schedule, self.steps, self.min_beta, self.max_beta)

    def network_config(self, classes: int) -> NetworkConfig:
        """The shape of our own network."""
        return NetworkConfig(
            image_size=self.image_size,
            channels=self.channels,
            classes=classes,
            width=self.width,
            stages=tuple(range(1, self.stages + 1)),
            blocks=self.blocks,
            patch=self.patch,
            activation=self.activation,
            down=self.down,
            norm=self.norm,
            attention=self.attention,
            dropout=self.dropout,
        )
