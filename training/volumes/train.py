"""The training of a room of volumes, from the folder of cases to what the room ships."""

from __future__ import annotations

from collections.abc import Callable

import models
from medserve.errors import ConfigError
from medserve.inference.volume_pipeline import VolumePipeline
from medserve.spec.volumes import NormalisationKind
from training.core import segmentation
from training.core.export import require_agreement
from training.core.files import require_folder
from training.core.fit import Fitted, start_from
from training.core.segmentation import Material, read_material
from training.core.ship import install, report_on
from training.volumes.augment import Augmentation
from training.volumes.config import VolumesConfig
from training.volumes.data import Case, LoadedCase, find_cases, load_cases, split_cases
from training.volumes.evaluation import evaluate_segmentation
from training.volumes.module import Segmenter, placement_of
from training.volumes.ship import VolumeShipment, ship, what_parts_add

__all__ = ["prepare_training", "train", "train_member"]

_UNIT = {NormalisationKind.PERCENTILE, NormalisationKind.WINDOW, NormalisationKind.MIN_MAX}


def train(config: VolumesConfig) -> None:
    """Read, split, fit every member, then export and report on their average."""
    pipeline, material = _read(config)
    members = [train_member(config, n, pipeline, material) for n in range(config.members)]
    shipment = VolumeShipment(
        pipeline, members, list(material.loaded.values()), config.out_dir, config.fp16_weights
    )
    described = ship(shipment, config.threads)
    if held_out := material.named(material.split.test):
        described["what_parts_add"] = what_parts_add(shipment, held_out, config.threads)
    part = "test" if held_out else "validation"
    report_on(config, pipeline.spec, part, described, evaluate_segmentation)
    require_agreement(
        {each["engine"]: each["agreement"] for each in described["agreement_with_eager"]}
    )
    if config.install:
        install(config.out_dir, config.room, config.variant)


def prepare_training(config: VolumesConfig) -> Callable[[VolumesConfig], Fitted]:
    """Read the data once, and return what trains a network on them by other settings."""
    pipeline, material = _read(config)
    return lambda settings: train_member(settings, 0, pipeline, material)


def _read(config: VolumesConfig) -> tuple[VolumePipeline, Material[Case, LoadedCase]]:
    spec = models.spec(config.room, config.variant)
    if spec.volume is not None and spec.volume.regions:
        raise ConfigError(
            f"{config.room}: expected labels that exclude one another; a network of regions that "
            "overlap is trained elsewhere and imported (medserve import)"
        )
    pipeline = VolumePipeline(spec)
    cases = find_cases(require_folder(config.data_dir, "--data-dir"))
    split = split_cases(cases, config.folds, config.test_share, config.seed)
    return pipeline, read_material(config, cases, split, lambda used: load_cases(used, pipeline))


def train_member(
    config: VolumesConfig,
    member: int,
    pipeline: VolumePipeline,
    material: Material[Case, LoadedCase],
) -> Fitted:
    """Train one network, on all folds but its own; a finished one is read instead."""
    return segmentation.train_member(
        config, member, material, lambda settings: _segmenter(settings, pipeline)
    )


def _segmenter(config: VolumesConfig, pipeline: VolumePipeline) -> Segmenter:
    asked = {"dropout": config.dropout, "width": config.width, "size": config.size}
    network = models.build(
        config.room,
        config.network,
        in_channels=pipeline.spec.input.channels,
        classes=len(pipeline.spec.labels),
        **{name: value for name, value in asked.items() if value},
    )
    augmentation = Augmentation(
        placement_of(config),
        is_unit=all(steps[-1].kind in _UNIT for steps in pipeline.volume.steps),
    )
    module = Segmenter(network, config, pipeline.window, pipeline.spec.labels, augmentation)
    if config.init_from is not None and not config.resume:
        start_from(module, config.init_from, str(getattr(network, "head_path", "head")))
    return module
