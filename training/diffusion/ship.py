"""From a trained diffusion network to everything that its room ships, proven on the way."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from medserve.errors import ArchiveError
from medserve.inference.engines import load_engine
from medserve.inference.fingerprints import FINGERPRINTS_FILE, FingerprintIndex
from medserve.inference.generation import OUTPUT, DiffusionPipeline, SampleSettings, to_pixels
from medserve.inference.samplers import SamplerKind
from medserve.spec import EngineName, ModelSpec, Precision
from training.classification.data import LabelledImages
from training.core import export
from training.core.files import write_json
from training.core.fit import Fitted
from training.core.ship import install_files
from training.diffusion.copies import copy_threshold
from training.diffusion.settings import DiffusionConfig

__all__ = ["ARTIFACT_FILES", "NAME", "Shipment", "install", "room_config", "ship"]

_log = logging.getLogger(__name__)

NAME = "diffusion_sampler"
ARTIFACT_FILES = (
    "model.onnx", "model.pt", "golden_input.json", "golden_output.npz", "fingerprints.npz",
    "extractor.pt", "metrics.json", "config.json", "split.csv",
)  # fmt: skip
_LOCAL = frozenset(
    {"data_dir", "out_dir", "model", "resume", "install", "variant", "threads", "devices"}
)
_GOLDEN_SEED = 7
_GOLDEN_SEEDS = 64  # that are tried
_TOLERANCE = 1e-3  # of the golden image, in [-1, 1]: a seventh of a grey level
_PROOF_SEED = 11


@dataclass(frozen=True, eq=False)
class Shipment:
    """What is shipped, and where it is gathered.

    Attributes:
        config: Of the training.
        train: Images that the network learned from.
        validation: Images that chose its epoch; they set the threshold of a copy.
        labels: Names of the classes that it was told; none without condition.
    """

    config: DiffusionConfig
    train: LabelledImages
    validation: LabelledImages
    labels: tuple[str, ...]


def ship(fitted: Fitted, shipment: Shipment) -> dict[str, Any]:
    """Write `artifact/` below the training's folder; returns what `metrics.json` says of it.

    Raises:
        ArchiveError: an exported form draws another image than eager torch, or all are copies.
    """
    config = shipment.config
    folder = config.out_dir / "artifact"
    exported = export.export_network(
        fitted.network, folder, _examples(shipment), (OUTPUT,), export.TOLERANCE
    )
    (folder / "model-config.yaml").write_text(
        room_config(config, shipment.labels), encoding="utf-8"
    )
    spec = ModelSpec.from_file(folder / "model-config.yaml")
    known = _fingerprints(shipment)
    known.save(folder / FINGERPRINTS_FILE)
    eager = _eager(fitted, spec)
    _write_golden(eager, known, folder)
    farthest = _prove(eager, folder)
    for name in ("split.csv", "extractor.pt"):
        shutil.copyfile(config.out_dir / name, folder / name)
    settings = json.loads((config.out_dir / "config.json").read_text(encoding="utf-8"))
    kept = {name: value for name, value in settings.items() if name not in _LOCAL}
    write_json(folder / "config.json", kept)
    return {
        "train_images": len(shipment.train),
        "validation_images": len(shipment.validation),
        "best_epoch": fitted.epoch,
        "validation_frechet_distance": round(fitted.score, 4),
        "parameters": sum(each.numel() for each in fitted.network.parameters()),
        "largest_export_difference": exported.largest_difference,
        "largest_difference_of_an_image": farthest,
    }


def room_config(config: DiffusionConfig, labels: tuple[str, ...]) -> str:
    """The `model-config.yaml` of a room that serves this training's artifact."""
    size = config.image_size
    # Work is counted in pictures of the default size and step: about ten seconds on one core.
    content = {
        "minWorkers": 1,
        "maxWorkers": 8,
        "batchSize": 1,
        "maxBatchDelay": 1,
        "responseTimeout": 120,
        "startupTimeout": 120,
        "jobQueueSize": 100,
        "deviceType": "cpu",
        "medserve": {
            "name": NAME,
            "version": f"1.0-{config.variant}" if config.variant else "1.0",
            "title": "Synthetic images",
            "task": "generation",
            "labels": list(labels),
            "input": {"kinds": [], "size": [size, size], "channels": config.channels},
            "engine": {"name": "openvino", "precision": "f32"},
            "generation": {
                "schedule": config.schedule.value,
                "prediction": config.prediction.value,
                "sizes": [size],
                "steps": config.steps,
                "min_beta": config.min_beta,
                "max_beta": config.max_beta,
                "default_steps": min(20, config.steps),
            },
        },
    }
    return yaml.safe_dump(content, sort_keys=False)


def install(config: DiffusionConfig, room: Path) -> None:
    """Copy artifact and example pictures into the room, where packaging takes them from."""
    pictures = ("samples.png", "denoising.png")  # synthetic, and marked so
    artifact = config.out_dir / "artifact"
    install_files(
        {
            room / "examples": [config.out_dir / name for name in pictures],
            room / "weights": [artifact / name for name in ARTIFACT_FILES],
        }
    )
    if not (room / "model-config.yaml").is_file():
        shutil.copyfile(config.out_dir / "artifact/model-config.yaml", room / "model-config.yaml")


def _examples(shipment: Shipment) -> dict[str, torch.Tensor]:
    """Real images on their way to noise, with their classes and with none."""
    config, count = shipment.config, min(8, len(shipment.validation))
    images = shipment.validation.images[:: len(shipment.validation) // count][:count]
    clean = torch.from_numpy(images).float() / 127.5 - 1.0
    draws = torch.Generator().manual_seed(_PROOF_SEED)
    step = torch.linspace(0, config.steps - 1, count).long()
    schedule = config.noise_schedule
    signal, noise = (
        torch.tensor([factor(int(each)) for each in step])[:, None, None, None].float()
        for factor in (schedule.signal, schedule.noise)
    )
    noisy = signal * clean + noise * torch.randn(clean.shape, generator=draws)
    label = torch.arange(count) % (len(shipment.labels) + 1)
    return {"image": noisy, "step": step, "label": label}


def _golden_run(spec: ModelSpec, seed: int) -> tuple[dict[str, Any], SampleSettings]:
    """Golden params as a caller would send them, and what they mean."""
    assert spec.generation is not None  # `room_config` wrote it
    steps = min(4, spec.generation.steps)
    kind = SamplerKind.DPM_SOLVER
    params = {"n": 1, "seed": seed, "steps": steps, "sampler": kind.value, "guidance": 1.0}
    if spec.labels:
        params["class"] = spec.labels[0]
    return params, SampleSettings(steps, kind, 1.0, spec.generation.sizes[0])


def _write_golden(pipeline: DiffusionPipeline, known: FingerprintIndex, folder: Path) -> None:
    """Write the golden pair: of the first seed whose image serving would hand out."""
    for seed in range(_GOLDEN_SEED, _GOLDEN_SEED + _GOLDEN_SEEDS):
        params, settings = _golden_run(pipeline.spec, seed)
        outputs = pipeline.golden(seed, 0, settings)
        if not known.is_copy(to_pixels(outputs["image"])).any():
            break
    else:
        raise ArchiveError(
            f"{_GOLDEN_SEEDS} images of {settings.steps} steps all lie nearer to a training image "
            "than unseen images do; expected a network that draws others"
        )
    (folder / "golden_input.json").write_text(json.dumps(params) + "\n", encoding="utf-8")
    arrays: dict[str, Any] = dict(outputs)
    np.savez(folder / "golden_output.npz", tolerance=np.float32(_TOLERANCE), **arrays)


def _prove(eager: DiffusionPipeline, folder: Path) -> float:
    """Draw one image with every engine; the largest difference to eager torch, in [-1, 1]."""
    settings = SampleSettings.default(eager.generation)
    expected = eager.golden(_PROOF_SEED, 0, settings)["image"]
    farthest = 0.0
    for name in EngineName:
        engine = load_engine(name, folder, precision=Precision.F32, threads=1)
        drawn = DiffusionPipeline(eager.spec, engine.run).golden(_PROOF_SEED, 0, settings)["image"]
        difference = float(np.abs(drawn - expected).max())
        if not difference <= _TOLERANCE:
            raise ArchiveError(
                f"expected {name} to draw the image of eager torch within {_TOLERANCE:g}, but it "
                f"differs by {difference:g}; do not ship this export"
            )
        farthest = max(farthest, difference)
    _log.info("every engine draws the same image within %.1e", farthest)
    return farthest


def _eager(fitted: Fitted, spec: ModelSpec) -> DiffusionPipeline:
    @torch.inference_mode()
    def run(inputs: Any) -> dict[str, Any]:
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in
                   ("image", "step", "label")]  # fmt: skip
        return {OUTPUT: fitted.network(*tensors).numpy()}

    return DiffusionPipeline(spec, run)


def _fingerprints(shipment: Shipment) -> FingerprintIndex:
    """Of the training images; what is nearer than 99 % of unseen real images are is a copy."""
    index = FingerprintIndex.build(shipment.train.images, threshold=1.0)
    distances = index.nearest(shipment.validation.images).astype(np.float64)
    threshold = copy_threshold(distances[np.isfinite(distances)])
    return FingerprintIndex.build(shipment.train.images, threshold)
