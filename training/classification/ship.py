"""From the best weights of a classifier to everything that its room ships."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as PillowImage
from torch import Tensor, nn

import models
from medserve.imaging.codecs import sniff
from medserve.inference.fit import fit_image
from medserve.spec import ModelSpec
from training.classification import exemplars
from training.classification.calibration import fit_temperature
from training.classification.data import ImagesConfig, LabelledImages, to_planes
from training.classification.evaluation import evaluate_classifier
from training.classification.novelty import BLANK, describe, fit_novelty
from training.core import export
from training.core.evaluation import EvaluationRequest
from training.core.files import write_json
from training.core.fit import Fitted
from training.core.ship import install_files

__all__ = ["Shipment", "calibrate", "install", "ship_classifier"]

_log = logging.getLogger(__name__)

ARTIFACT_FILES = (
    "model.onnx", "model.pt", "golden_input.png", "golden_output.npz", "metrics.json",
    "config.json", "split.csv",
)  # fmt: skip
_BATCH_PIXELS = 2**18  # a pass: the maps of more leave the cache, which takes twice the time
_SURE = 0.99  # probability that an example picture must reach


@dataclass(frozen=True)
class Shipment:
    """What is shipped, and where it is gathered.

    Attributes:
        spec: The room.
        train: Images trained on.
        validation: Images for temperature, limits and the choice of the epoch.
        config: Of the training: its `data_dir` holds both, with `out_dir/split.csv` saying what is
            test; its `out_dir` receives `artifact/`, `examples/` and `report/`.
        folders: Label by folder, for folders that carry another name than their label.
        fp16_weights: Whether kernels are stored in 16 bits; the rounded network is what is
            calibrated, exported and measured.
        examples: Folder of example pictures that there are, for a variant those of its room; None
            makes `examples/` from the training images.
    """

    spec: ModelSpec
    train: LabelledImages
    validation: LabelledImages
    config: ImagesConfig
    folders: Mapping[str, str] = field(default_factory=dict)
    fp16_weights: bool = False
    examples: Path | None = None


def ship_classifier(fitted: Fitted, shipment: Shipment) -> Path:
    """Calibrate, export, prove and report; returns the folder of the artifact.

    The held-out test images play no part before this.
    """
    spec, places = shipment.spec, shipment.config
    folder = places.out_dir / "artifact"
    network = export.stored_in_fp16(fitted.network) if shipment.fp16_weights else fitted.network
    artifact = calibrate(network, shipment.train, shipment.validation)
    examples = _tensor(shipment.validation.images[:: max(1, len(shipment.validation) // 32)])
    exported = export.export_classifier(artifact, folder, examples)
    write_golden_input(_example(artifact, shipment), folder / "golden_input.png")
    golden = sniff.decode((folder / "golden_input.png").read_bytes(), spec.input)
    export.write_golden(folder, fit_image(golden, spec.input)[np.newaxis], artifact)
    for name in ("config.json", "split.csv"):
        shutil.copyfile(places.out_dir / name, folder / name)
    measured = evaluate_classifier(
        EvaluationRequest(
            spec, folder, places.data_dir, places.out_dir / "report", folder / "split.csv",
            foreign_dir=places.foreign_dir, folders=shipment.folders,
        )
    )  # fmt: skip
    measured["training"] = {
        "train_images": len(shipment.train),
        "validation_images": len(shipment.validation),
        "validation_errors": int(fitted.score),
        "best_epoch": fitted.epoch,
        "parameters": sum(each.numel() for each in fitted.network.parameters()),
        "temperature": float(artifact.temperature),
        "novelty_limit": float(artifact.novelty.get_buffer("limit")),
        "largest_export_difference": exported.largest_difference,
    }
    write_json(folder / "metrics.json", measured)
    return folder


def write_golden_input(picture: npt.NDArray[np.uint8], path: Path) -> None:
    """Write a picture at other sides than the network's, so that serving has to resample it.

    One of the network's size would prove the network alone; this one also proves that the worker
    brings an image to the network as the training did.
    """
    height, width = picture.shape[:2]
    sides = (round(1.4 * width) + 1, round(1.2 * height) + 1)
    resized = PillowImage.fromarray(picture).resize(sides, PillowImage.Resampling.BICUBIC)
    resized.save(path, optimize=True)


def install(folder: Path, name: str, variant: str = "", further: Sequence[str] = ()) -> None:
    """Copy an artifact into its room with the example pictures, or into a variant of the room.

    Args:
        folder: Of the artifact, in the folder of the training.
        name: The room.
        variant: Its variant, which has the examples of the room, and the split where that is the
            same; one that was trained on other images keeps its own.
        further: Files beside the folder of the artifact that go along.
    """
    files = [folder / each for each in ARTIFACT_FILES]
    files += [folder.parent / each for each in further]
    if not variant:
        room = models.room(name)
        examples = (folder.parent / "examples").glob("*.png")
        install_files({room / "weights": files, room / "examples": examples})
        return
    weights = models.room(name, variant) / "weights"
    known = models.room(name) / "weights" / "split.csv"
    is_known = (folder / "split.csv").read_bytes() == known.read_bytes()
    if is_known:
        files.remove(folder / "split.csv")
    install_files({weights: files})
    if is_known:
        (weights / "split.csv").unlink(missing_ok=True)  # of an earlier training


def calibrate(
    network: nn.Module, train: LabelledImages, validation: LabelledImages
) -> export.ClassifierArtifact:
    """The network with the temperature and the novelty that fit its held-out images."""
    network = network.eval()
    described, _ = _describe_all(network, train.images)
    held_out, logits = _describe_all(network, validation.images)
    temperature = fit_temperature(logits, torch.from_numpy(validation.label_ids))
    contrast = _contrast(train.images)
    shows_something = contrast >= BLANK
    label_ids = torch.from_numpy(train.label_ids)[shows_something]
    shown = _contrast(validation.images) >= BLANK
    novelty = fit_novelty(
        described[shows_something],
        label_ids,
        (held_out[shown], logits[shown]),
        least_contrast=float(contrast[shows_something].min()),
    )
    return export.ClassifierArtifact(network, novelty, temperature).eval()


@torch.no_grad()
def _describe_all(network: nn.Module, images: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """What novelty sees (N, D) and logits (N, K) of uint8 images (N, H, W) or (N, H, W, 3)."""
    described, logits = [], []
    classifier = export.classifier_of(network)
    for batch in _batches(images):
        maps = classifier.features(batch)
        described.append(describe(maps))
        logits.append(classifier.classify(maps))
    return torch.cat(described), torch.cat(logits)


def _tensor(images: npt.NDArray[np.uint8]) -> Tensor:
    """Pixels uint8 (N, H, W) or (N, H, W, 3) -> float32 (N, C, H, W) in [0, 1]."""
    return to_planes(images).contiguous().float() / 255.0


def _contrast(images: npt.NDArray[np.uint8]) -> Tensor:
    """Standard deviation of the intensities of each image (N,)."""
    return torch.cat([batch.flatten(1).std(dim=1) for batch in _batches(images)])


def _batches(images: npt.NDArray[np.uint8]) -> Iterator[Tensor]:
    """Yield pixels uint8 (N, H, W) or (N, H, W, 3) a few at a time (n, C, H, W) in [0, 1]."""
    height, width = images.shape[1:3]
    step = max(1, _BATCH_PIXELS // (height * width))
    for start in range(0, len(images), step):
        yield _tensor(images[start : start + step])


def _example(artifact: export.ClassifierArtifact, shipment: Shipment) -> npt.NDArray[np.uint8]:
    """Return an example picture, uint8 (H, W) or (H, W, 3); the pictures are made if need be."""
    if shipment.examples is not None:
        return np.asarray(PillowImage.open(min(shipment.examples.glob("*.png"))))
    pictures = _write_examples(artifact, shipment)
    shape = shipment.train.images.shape[1:]
    return next(iter(pictures.values()), exemplars.computed_picture(shape))


def _write_examples(
    artifact: export.ClassifierArtifact, shipment: Shipment
) -> dict[str, npt.NDArray[np.uint8]]:
    """Write `examples/<label>.png` for each class of enough images; returns the pictures."""
    folder = shipment.config.out_dir / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for label_id, label in enumerate(shipment.spec.labels):
        images = shipment.train.images[shipment.train.label_ids == label_id]
        picture = exemplars.mean_picture(images, _certainty(artifact, label_id), _SURE)
        if picture is None:
            _log.warning("%s: too few images that differ for an example picture of nobody", label)
            continue
        pictures[label] = picture
        PillowImage.fromarray(picture).save(folder / f"{label}.png", optimize=True)
    return pictures


def _certainty(
    artifact: export.ClassifierArtifact, label_id: int
) -> Callable[[npt.NDArray[np.uint8]], float]:
    """Probability of the class, or 0 for a picture that is unlike the training data."""

    @torch.no_grad()
    def score(picture: npt.NDArray[np.uint8]) -> float:
        logits, novelty = artifact(_tensor(picture[np.newaxis]))
        return float(logits.softmax(dim=1)[0, label_id]) * float(novelty[0] < 1.0)

    return score
