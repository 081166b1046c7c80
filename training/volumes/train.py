"""The training of a room of volumes, from the folder of cases to what the room ships."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import lightning
import torch
from torch import nn

import models
from medserve.errors import ConfigError
from medserve.inference.volume_pipeline import VolumePipeline
from medserve.spec.volumes import NormalisationKind
from training.core.config import Setting, write
from training.core.evaluation import EvaluationRequest
from training.core.export import require_agreement
from training.core.files import require_folder, write_json
from training.core.fit import Fitted
from training.core.split import Split, write_split
from training.volumes.augment import Augmentation
from training.volumes.config import SegmentationConfig
from training.volumes.data import Case, LoadedCase, find_cases, load_cases, split_cases
from training.volumes.evaluation import evaluate_segmentation
from training.volumes.fit import (
    fit_segmenter,
    initialise_from,
    is_fitted,
    load_fitted,
)
from training.volumes.module import Segmenter, placement_of
from training.volumes.ship import Shipment, install, ship, what_parts_add

__all__ = ["VolumesConfig", "prepare_training", "report", "train", "train_member"]

_log = logging.getLogger(__name__)

_UNIT = {NormalisationKind.PERCENTILE, NormalisationKind.WINDOW, NormalisationKind.MIN_MAX}


@dataclass(frozen=True)
class VolumesConfig(SegmentationConfig):
    """Train a network of volumes, export it and report on it."""

    data_dir: Annotated[
        Path, Setting("folder with dataset.json, or with the folders images and masks")
    ] = Path("data")
    out_dir: Annotated[Path, Setting("folder for checkpoints, artifact, report")] = Path("runs")
    room: Annotated[str, Setting("room whose model-config.yaml states labels and window")] = ""
    members: Annotated[int, Setting("networks that are averaged, each of its fold", minimum=1)] = 1
    epochs: Annotated[int, Setting("passes over the training volumes", minimum=1)] = 80
    fp16_weights: Annotated[
        bool, Setting("store kernels in 16 bits, for half the file; arithmetic keeps 32")
    ] = False
    install: Annotated[bool, Setting("copy the artifact into the room when done")] = False


@dataclass(frozen=True, eq=False)
class _Read:
    """The cases of a training: those that it uses are in memory."""

    pipeline: VolumePipeline
    cases: Sequence[Case]
    split: Split
    loaded: dict[str, LoadedCase]


def train(config: VolumesConfig) -> None:
    """Read, split, fit every member, then export and report on their average."""
    read = _read(config)
    members = [
        train_member(config, member, read.pipeline, read.split, read.loaded)
        for member in range(config.members)
    ]
    shipment = Shipment(
        read.pipeline, members, list(read.loaded.values()), config.out_dir, config.fp16_weights
    )
    folder = ship(shipment, config.threads)
    held_out = [case for case in read.cases if case.name in read.split.test]
    described = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    if held_out:
        report(config, shipment, folder, held_out)
    require_agreement(
        {each["engine"]: each["agreement"] for each in described["agreement_with_eager"]}
    )
    if config.install:
        install(folder, config.out_dir, config.room)


def prepare_training(config: VolumesConfig) -> Callable[[VolumesConfig], Fitted]:
    """Read the data once, and return what trains a network on them by other settings."""
    read = _read(config)
    return lambda settings: train_member(settings, 0, read.pipeline, read.split, read.loaded)


def _read(config: VolumesConfig) -> _Read:
    """Read and split the cases, and write what the training will say of itself."""
    spec = models.spec(config.room)
    if spec.volume is not None and spec.volume.regions:
        raise ConfigError(
            f"{config.room}: expected labels that exclude one another; a network of regions that "
            "overlap is trained elsewhere and imported (medserve import)"
        )
    pipeline = VolumePipeline(spec)
    cases = find_cases(require_folder(config.data_dir, "--data-dir"))
    split = split_cases(cases, config.folds, config.test_share, config.seed)
    write(config, config.out_dir / "config.json")
    write_split(config.out_dir / "split.csv", split)
    used = [case for case in cases if case.name not in split.test]
    loaded = {case.name: case for case in load_cases(used, pipeline)}
    return _Read(pipeline, cases, split, loaded)


def report(
    config: VolumesConfig, shipment: Shipment, folder: Path, held_out: Sequence[Case]
) -> None:
    """Measure the artifact, and what each of its parts adds, on volumes that no training saw."""
    request = EvaluationRequest(
        shipment.pipeline.spec, folder, config.data_dir, config.out_dir / "report",
        split=folder / "split.csv", threads=config.threads,
    )  # fmt: skip
    measured = evaluate_segmentation(request)
    described = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    described["what_parts_add"] = what_parts_add(shipment, folder, held_out, config.threads)
    measured["training"] = described
    (folder / "training.json").unlink()
    write_json(folder / "metrics.json", measured)


def train_member(
    config: VolumesConfig,
    member: int,
    pipeline: VolumePipeline,
    split: Split,
    loaded: dict[str, LoadedCase],
) -> Fitted:
    """Train one network, on all folds but its own; a finished one is read instead.

    Members differ in fold, first weights, order and augmentation. A finished one keeps the
    settings that it was trained with: it may be another network or have another width.
    """
    folder = config.out_dir / f"member_{member}"
    started = config.resume and (folder / "checkpoints" / "last.ckpt").is_file()
    config = dataclasses.replace(
        config, fold=(config.fold + member) % config.folds, seed=config.seed + member,
        out_dir=folder, resume=started,
    )  # fmt: skip
    if started and _is_done(config):
        config = _as_trained(config)
        return load_fitted(_segmenter(_network(config, pipeline), config, pipeline), folder)
    write(config, folder / "config.json")
    lightning.seed_everything(config.seed, verbose=False)
    network = _network(config, pipeline)
    if config.init_from is not None and not started:
        initialise_from(network, config.init_from)
    parts = split.parts(config.fold)
    return fit_segmenter(
        _segmenter(network, config, pipeline),
        [loaded[name] for name in parts["train"]],
        [loaded[name] for name in parts["validation"]],
        folder,
    )


def _network(config: VolumesConfig, pipeline: VolumePipeline) -> nn.Module:
    asked = {"dropout": config.dropout, "width": config.width, "size": config.size}
    return models.build(
        config.room,
        config.network,
        in_channels=pipeline.spec.input.channels,
        classes=len(pipeline.spec.labels),
        **{name: value for name, value in asked.items() if value},
    )


def _segmenter(network: nn.Module, config: VolumesConfig, pipeline: VolumePipeline) -> Segmenter:
    augmentation = Augmentation(
        placement_of(config),
        is_unit=all(steps[-1].kind in _UNIT for steps in pipeline.volume.steps),
    )
    return Segmenter(network, config, pipeline.window, pipeline.spec.labels, augmentation)


def _is_done(config: VolumesConfig) -> bool:
    """Whether the training of this folder came to its end and no more epochs are asked for."""
    if not is_fitted(config.out_dir):
        return False
    if config.minutes:
        return True
    last = config.out_dir / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    return int(content["epoch"]) + 1 >= config.epochs


def _as_trained(config: VolumesConfig) -> VolumesConfig:
    """The settings of a finished member's network."""
    text = (config.out_dir / "config.json").read_text(encoding="utf-8")
    settings = json.loads(text)
    return dataclasses.replace(
        config, network=settings["network"], size=settings["size"],
        width=settings["width"],
    )  # fmt: skip
