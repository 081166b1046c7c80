"""Measure a diffusion model's artifact on images that no training saw, and write the report.

    python -m training.evaluate diffusion_sampler --data-dir BrainMRI --out outputs/diffusion

The artifact draws as it does in serving: same code, same engine, same images for the same seeds.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from rich.progress import track
from torch import nn

import models
from medserve.errors import ConfigError
from medserve.inference.engines import load_engine
from medserve.inference.fingerprints import FINGERPRINTS_FILE, FingerprintIndex
from medserve.inference.generation import DiffusionPipeline, SampleSettings
from medserve.spec import ModelSpec, Precision
from medserve.spec.generation import SamplerKind
from training.classification import data
from training.classification.data import LabelledImages
from training.core.config import Setting
from training.core.evaluation import measured_model
from training.core.export import sha256
from training.core.files import write_json
from training.diffusion import extractor, report
from training.diffusion.images import FolderRequest, read_folder
from training.diffusion.measures import ImageSets, Measured, SetFeatures, measure
from training.evaluate import EvaluateConfig

__all__ = [
    "DiffusionEvaluation",
    "RealImages",
    "draw",
    "evaluate_diffusion",
    "features_of",
    "open_artifact",
    "real_images",
    "seeing_network",
]

_log = logging.getLogger(__name__)

EXTRACTOR_FILE = "extractor.pt"
_FIRST_TRAINING_SEED = 1_000_000  # trained on are not the images that are measured


@dataclass(frozen=True)
class DiffusionEvaluation(EvaluateConfig):
    """Measure a diffusion model: distances, diversity, copies, and training on its images."""

    model: Annotated[str, Setting("name of the room", positional=True)] = "diffusion_sampler"
    data_dir: Annotated[Path, Setting("folder that it was trained on")] = Path("data/BrainMRI")
    unseen_dir: Annotated[
        Path | None, Setting("real images to compare with, if not a part of --data-dir")
    ] = None
    images: Annotated[int, Setting("synthetic images to measure", minimum=8)] = 512
    seed: Annotated[int, Setting("of the first image", minimum=0)] = 0
    steps: Annotated[int, Setting("calls of the network an image; 0: the room's", minimum=0)] = 0
    sampler: Annotated[SamplerKind | None, Setting("way from noise, if not the room's")] = None
    precision: Annotated[Precision | None, Setting("arithmetic, if not the room's")] = None
    guidance: Annotated[
        float | None, Setting("weight of the class, if not the room's", minimum=0.0)
    ] = None
    taught: Annotated[
        int, Setting("images to train a classifier on; 0 leaves it out", minimum=0)
    ] = 512
    extractor: Annotated[
        Path | None, Setting("weights of torchvision's inception_v3 to see by, if not our own")
    ] = None

    @property
    def folder(self) -> Path:
        """Where the artifact lies."""
        return self.weights or models.room(self.model, self.variant) / "weights"


@dataclass(frozen=True, eq=False)
class RealImages:
    """The real images of an evaluation.

    Attributes:
        training: What the network learned from.
        validation: Chose its epoch.
        unseen: Played no part; of `--unseen-dir`, or the test part.
        mirrored: Whether the network was trained on mirror images, too.
    """

    training: LabelledImages
    validation: LabelledImages
    unseen: LabelledImages
    mirrored: bool


def evaluate_diffusion(config: DiffusionEvaluation) -> dict[str, Any]:
    """Write `metrics.json`, `report.html` and sheets; return the metrics.

    Raises:
        ConfigError: images that do not fit the artifact, or a file that it lacks.
    """
    weights = config.folder
    pipeline = open_artifact(weights, config)
    real = real_images(weights, config, pipeline.spec)
    settings = _settings(pipeline, config)
    count = min(config.images, len(real.validation))
    if count < config.images:
        _log.warning("judging %d images: there are no more real ones to compare with", count)
    chosen = np.random.default_rng(config.seed).permutation(len(real.unseen.label_ids))
    label_ids = np.resize(real.unseen.label_ids[chosen], count)  # classes as they occur
    if not pipeline.spec.labels:
        label_ids = np.zeros_like(label_ids)
    started = time.perf_counter()
    synthetic = draw(pipeline, label_ids, settings, config.seed)
    seconds = (time.perf_counter() - started) / count
    image_sets = ImageSets(
        synthetic, real.unseen, _spread(real.validation, config.seed), real.training,
        FingerprintIndex.load(weights / FINGERPRINTS_FILE),
    )  # fmt: skip
    features = features_of(image_sets, seeing_network(weights, config, real), real.mirrored)
    measured = measure(image_sets, features, config.seed)
    taught = _train_on_synthetic(pipeline, settings, real, config)
    content = {
        "model": pipeline.spec.name,
        "version": pipeline.spec.version,
        "engine": str(config.engine or pipeline.spec.engine.name),
        "precision": str(config.precision or pipeline.spec.engine.precision),
        "artifact_sha256": sha256(weights / "model.onnx"),
        "extractor": features.name,
        **measured.to_json(),
        "taught": taught,
        "settings": _described(settings, config, real),
        "seconds_per_image": round(seconds, 4),
    }
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(config.out / "metrics.json", content)
    page = report.write(config.out, pipeline.spec, content, image_sets, measured)
    _summarise(measured, page)
    return content


def open_artifact(weights: Path, config: DiffusionEvaluation) -> DiffusionPipeline:
    """The artifact in its engine."""
    with measured_model(config.model, config.variant, weights) as (spec, folder):
        engine = load_engine(
            config.engine or spec.engine.name, folder,
            precision=config.precision or spec.engine.precision, threads=config.threads,
        )  # fmt: skip
        return DiffusionPipeline(spec, engine.run)


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


def real_images(weights: Path, config: DiffusionEvaluation, spec: ModelSpec) -> RealImages:
    """Read the images that the artifact was trained on, by its own settings and split."""
    trained = json.loads((weights / "config.json").read_text(encoding="utf-8"))
    request = FolderRequest(
        config.data_dir, spec.input.size[0], spec.input.channels, trained["only_class"]
    )
    images = read_folder(request)
    if spec.labels and images.labels != spec.labels:
        raise ConfigError(
            f"{config.data_dir}: expected the classes {', '.join(spec.labels)}, got "
            f"{', '.join(images.labels)}"
        )
    split_of = data.read_split(config.split or weights / "split.csv")
    parts = np.array([split_of.get(path, "train") for path in images.paths])
    training, validation, unseen = (
        images.take(np.flatnonzero(parts == part)) for part in ("train", "validation", config.part)
    )
    if config.unseen_dir is not None:
        unseen = _of_same_classes(read_folder(_elsewhere(request, config.unseen_dir)), images)
    for name, each in (("validation", validation), (config.part, unseen)):
        if len(each) < 8:
            raise ConfigError(
                f"{config.data_dir}: expected at least 8 images of the part {name}, got "
                f"{len(each)}; is it the folder of the training?"
            )
    return RealImages(training, validation, unseen, bool(trained["mirror"]))


def features_of(
    image_sets: ImageSets, network: tuple[str, nn.Module], mirrored: bool
) -> SetFeatures:
    """Return the features of all images."""
    name, feature_network = network
    sets = (image_sets.synthetic, image_sets.unseen, image_sets.reference, image_sets.training)
    return SetFeatures(
        name, *(extractor.features(feature_network, each.images, mirrored) for each in sets)
    )


def _elsewhere(request: FolderRequest, folder: Path) -> FolderRequest:
    return FolderRequest(folder, request.image_size, request.channels, request.only_class)


def _of_same_classes(images: LabelledImages, known: LabelledImages) -> LabelledImages:
    if images.labels != known.labels:
        raise ConfigError(
            f"--unseen-dir: expected the classes {', '.join(known.labels)}, got "
            f"{', '.join(images.labels)}"
        )
    return images


def seeing_network(
    weights: Path, config: DiffusionEvaluation, real: RealImages
) -> tuple[str, nn.Module]:
    """Who sees: a name for the report, and the network."""
    if config.extractor is not None:
        return "Inception v3 (torchvision)", extractor.load_inception(config.extractor)
    path = weights / EXTRACTOR_FILE
    if not path.is_file():
        raise ConfigError(
            f"expected {path}, the network that sees the images, found none; train one by "
            "`python -m training.diffusion_sampler`, or name one with --extractor"
        )
    own = extractor.load_extractor(path, real.unseen.images.shape[1], len(real.training.labels))
    return "trained on the training images (turns and classes)", own


def _settings(pipeline: DiffusionPipeline, config: DiffusionEvaluation) -> SampleSettings:
    usual = SampleSettings.default(pipeline.generation)
    return SampleSettings(
        steps=config.steps or usual.steps,
        sampler=config.sampler or usual.sampler,
        guidance=usual.guidance if config.guidance is None else config.guidance,
        size=usual.size,
    )


def _spread(images: LabelledImages, seed: int) -> LabelledImages:
    """In random order: the first n then hold the classes as they occur."""
    return images.take(np.random.default_rng(seed).permutation(len(images)))


def _train_on_synthetic(
    pipeline: DiffusionPipeline,
    settings: SampleSettings,
    real: RealImages,
    config: DiffusionEvaluation,
) -> dict[str, Any] | None:
    """Scores of a classifier trained on synthetic and on as many real images."""
    if not config.taught or len(pipeline.spec.labels) < 2:
        return None
    as_many = _spread(real.training, config.seed)
    count = min(config.taught, len(as_many))
    as_many = as_many.take(np.arange(count))
    synthetic = draw(pipeline, as_many.label_ids, settings, config.seed + _FIRST_TRAINING_SEED)
    scores = {
        "synthetic": extractor.train_and_test(synthetic, real.unseen, seed=config.seed),
        "real": extractor.train_and_test(as_many, real.unseen, seed=config.seed),
    }
    return {"n": count, "commonest_class": _commonest(real.unseen.label_ids)} | {
        name: _scores(score) for name, score in scores.items()
    }


def _scores(reached: extractor.RealScore) -> dict[str, float]:
    return {
        "accuracy": round(reached.accuracy, 4),
        "balanced_accuracy": round(reached.balanced_accuracy, 4),
    }


def _commonest(label_ids: npt.NDArray[np.int64]) -> float:
    """Accuracy of whoever always answers the commonest class."""
    return round(float(np.bincount(label_ids).max() / len(label_ids)), 4)


def _described(
    settings: SampleSettings, config: DiffusionEvaluation, real: RealImages
) -> dict[str, Any]:
    return {
        "sampler": str(settings.sampler),
        "steps": settings.steps,
        "guidance": settings.guidance,
        "size": settings.size,
        "first_seed": config.seed,
        "unseen_images": len(real.unseen),
        "training_images": len(real.training),
        "compared_with": "another folder" if config.unseen_dir else f"part {config.part}",
        "features_of_mirror_images_too": real.mirrored,
    }


def _summarise(measured: Measured, page: Path) -> None:
    _log.info(
        "Fréchet distance %.4f, of as many real images %.4f; copies %.2f %%; %s",
        measured.synthetic.frechet,
        measured.reference.frechet,
        100 * measured.copy_rate,
        page,
    )
