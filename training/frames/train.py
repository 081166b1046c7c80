"""The training of a room of frames, from the folder of frames to what the room ships."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import models
from medserve.errors import ConfigError
from medserve.inference.frame_pipeline import FramePipeline
from medserve.spec import ModelSpec
from medserve.spec.frames import Activation
from models.encoders import load_encoder
from training.core.export import require_agreement
from training.core.files import require_folder
from training.core.fit import Fitted, start_from
from training.core.segmentation import Material, read_material, train_member
from training.core.ship import install, report_on
from training.frames import fold_table
from training.frames.config import FrameConfig
from training.frames.data import (
    FrameCase,
    LoadedFrame,
    find_frames,
    load_frames,
    mask_shares,
    split_frames,
)
from training.frames.evaluation import evaluate_frames
from training.frames.module import FrameSegmenter
from training.frames.ship import FrameShipment, ship

__all__ = ["model_config", "prepare_training", "read", "train", "train_frames"]

_log = logging.getLogger(__name__)
_TRAINED = (1, 2, Activation.SIGMOID)  # channels, labels and activation of the rooms' networks


def train(config: FrameConfig) -> None:
    """Read, split, fit every member, then export and report."""
    if config.members > config.folds:
        raise ConfigError(f"expected at most {config.folds} members, one for each fold, got "
                          f"{config.members}")  # fmt: skip
    pipeline, material = read(config)
    members = [train_frames(config, n, pipeline, material) for n in range(config.members)]
    fold_table.write(config, pipeline, members, material)
    if not config.ensemble:
        members = [max(members, key=lambda each: each.score)]
    shipment = FrameShipment(
        pipeline, members, list(material.loaded.values()), config.out_dir, config.fp16_weights,
        exclusive=False,
    )  # fmt: skip
    described = ship(shipment, model_config(config), config.threads)
    part = "test" if material.split.test else "validation"
    report_on(config, pipeline.spec, part, described, evaluate_frames)
    require_agreement(
        {each["engine"]: 1.0 - each["differing"] / each["pixels"] for each in described["parity"]}
    )
    if config.install:
        install(config.out_dir, config.room, config.variant)


def prepare_training(config: FrameConfig) -> Callable[[FrameConfig], Fitted]:
    """Read the data once, and return what trains a network on them by other settings."""
    pipeline, material = read(config)
    return lambda settings: train_frames(settings, 0, pipeline, material)


def model_config(config: FrameConfig) -> Path:
    """Return the file that describes the model: that of the room, if no other is given."""
    return config.model_config or models.room(config.room, config.variant) / "model-config.yaml"


def read(config: FrameConfig) -> tuple[FramePipeline, Material[FrameCase, LoadedFrame]]:
    """Read and split the frames, and write what the training will say of itself.

    Raises:
        ConfigError: no frames, or an input or output that the networks of the room do not have.
    """
    pipeline = FramePipeline(ModelSpec.from_file(model_config(config)))
    trained = (pipeline.spec.input.channels, len(pipeline.spec.labels), pipeline.frame.activation)
    if trained != _TRAINED:
        raise ConfigError(
            f"expected one structure in grey frames, with sigmoid, which is what is trained here, "
            f"got {trained[0]} channels, {trained[1]} labels and {trained[2]}"
        )
    multiple = getattr(_networks(config), "SIDES_DIVIDE_BY", 1)
    if any(side % multiple for side in pipeline.size):
        raise ConfigError(
            f"expected input.size that divides by {multiple}, as the networks of {config.room} "
            f"halve it time after time, got {list(pipeline.size)}"
        )
    cases = find_frames(require_folder(config.data_dir, "--data-dir"))
    split = split_frames(cases, mask_shares(cases), config.folds, config.test_share, config.seed)
    return pipeline, read_material(config, cases, split, lambda used: load_frames(used, pipeline))


def train_frames(
    config: FrameConfig,
    member: int,
    pipeline: FramePipeline,
    material: Material[FrameCase, LoadedFrame],
) -> Fitted:
    """Train one network, on all folds but its own; a finished one is read instead."""
    return train_member(config, member, material, lambda settings: _segmenter(settings, pipeline))


def _segmenter(config: FrameConfig, pipeline: FramePipeline) -> FrameSegmenter:
    """Return a network of the room with random weights, or those of an encoder from a file."""
    spec = pipeline.spec
    asked = {"encoder": config.encoder, "size": config.size}
    network = models.build(
        config.room,
        config.network,
        in_channels=spec.input.channels,
        classes=len(spec.labels),
        dropout=config.dropout,
        **{name: value for name, value in asked.items() if value},
    )
    if config.encoder_weights is not None and not config.resume:
        fitted = load_encoder(network, config.encoder_weights)
        _log.info("%d tensors of the encoder from %s", fitted, config.encoder_weights)
    module = FrameSegmenter(network, config, pipeline.frame.threshold)
    if config.init_from is not None and not config.resume:
        start_from(module, config.init_from, "segmentation_head")
    return module


def _networks(config: FrameConfig) -> ModuleType:
    return importlib.import_module(f"models.{config.room}.network")
