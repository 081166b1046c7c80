"""Synthetic images for judging, drawn by the artifact exactly as serving draws them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import track

import models
from medserve.inference.generation import DiffusionPipeline, SampleSettings
from medserve.spec import ModelSpec
from training.classification.data import LabelledImages

__all__ = ["draw", "spec_beside"]


def spec_beside(weights: Path, name: str) -> ModelSpec:
    """The description in the folder of the artifact, or that of the room."""
    own = weights / "model-config.yaml"
    return ModelSpec.from_file(own) if own.is_file() else models.spec(name)


def draw(
    pipeline: DiffusionPipeline,
    label_ids: npt.NDArray[np.int64],
    settings: SampleSettings,
    first_seed: int,
) -> LabelledImages:
    """One image for each label id; image i has the seed `first_seed + i` for its name."""
    seeds = range(first_seed, first_seed + len(label_ids))
    title = f"Drawing by {settings.sampler}, {settings.steps} calls"
    images = [
        pipeline.draw(seed, int(label_id), settings)
        for seed, label_id in track(list(zip(seeds, label_ids, strict=True)), description=title)
    ]
    names = tuple(f"seed {seed}" for seed in seeds)
    labels = pipeline.spec.labels or ("all",)
    return LabelledImages(np.stack(images), label_ids, names, labels)
