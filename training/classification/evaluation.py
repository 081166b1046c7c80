"""Run a shipped classifier over a folder of labelled images, exactly as serving would."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import track
from scipy.stats import binomtest

from medserve.errors import ConfigError
from medserve.imaging.image import Image
from medserve.inference.engines import Engine, Outputs
from medserve.inference.fit import fit_image
from medserve.inference.scores import as_logits, probabilities
from medserve.spec import ModelSpec
from training.classification import independent, metrics, report
from training.classification.data import (
    SPLITS,
    decoded,
    display_planes,
    labelled_files,
    read_npz,
    read_npz_part,
    read_split,
    to_images,
)
from training.core.evaluation import EvaluationRequest, engine_of, refuse_foreign
from training.core.export import sha256
from training.core.files import files_below, write_json
from training.core.references import Reference, read_references

__all__ = [
    "Answers",
    "answer_files",
    "chosen_files",
    "evaluate_classifier",
    "logits_of",
    "references_of",
]

_log = logging.getLogger(__name__)

_Readable = tuple[Path, npt.NDArray[np.float32]]

_BATCH = 64  # images a call of the engine
_LOOKED_AT = 0.05  # share of the images that a person looks at first


@dataclass(frozen=True, eq=False)
class Answers:
    """What the artifact said about each file that serving would accept.

    Attributes:
        paths: Of those files, in the order asked.
        pixels: uint8 (N, H, W) or (N, H, W, 3), what the network saw.
        probabilities: float64 (N, K), calibrated.
        novelty: float32 (N,); None of a model that does not tell it.
        skipped: Number of files that serving would refuse.
    """

    paths: tuple[Path, ...]
    pixels: npt.NDArray[np.uint8]
    probabilities: npt.NDArray[np.float64]
    novelty: npt.NDArray[np.float32] | None
    skipped: int

    @property
    def is_unlike(self) -> npt.NDArray[np.bool_]:
        """Return which images (N,) are called unlike the training data."""
        if self.novelty is None:
            return np.zeros(len(self.paths), dtype=np.bool_)
        return self.novelty > 1.0


def evaluate_classifier(request: EvaluationRequest) -> dict[str, Any]:
    """Write `metrics.json`, `report.html` and figures of the artifact; return the metrics.

    The data are one folder of images per label, some of which may be missing, or an npz as that of
    MedMNIST, whose label ids are the model's. Of labels that are independent they are a folder with
    a table (`training.classification.independent`), or an npz as that of ChestMNIST.

    Raises:
        ConfigError: a folder that is no label, no image that serving would accept, or foreign
            images for a model that tells no novelty.
    """
    spec = request.spec
    if spec.has_independent_labels:
        return _evaluate_labels(request)
    if not spec.classifier.novelty:
        refuse_foreign(request)
    engine = engine_of(request)
    names, label_ids, answers = _answered(request, engine)
    measured = metrics.measure(answers.probabilities, label_ids, spec.labels)
    content = {
        **_measured(request),
        **measured.to_json(),
        "skipped": answers.skipped,
        "review": _review(answers, label_ids, spec.classifier.review_below),
        "novelty": _novelty(engine, request, answers) if spec.classifier.novelty else None,
    }
    request.out_dir.mkdir(parents=True, exist_ok=True)
    write_json(request.out_dir / "metrics.json", content)
    findings = report.Findings(
        tuple(each.as_posix() for each in names),
        answers.pixels,
        answers.probabilities,
        answers.novelty,
        label_ids,
    )
    page = report.write(request.out_dir, spec, measured, findings)
    _log.info(
        "%d errors in %d images (%.3f %%); %s",
        measured.errors,
        measured.n,
        100.0 * measured.accuracy,
        page,
    )
    return content


def _measured(request: EvaluationRequest) -> dict[str, str]:
    """Return what was measured: the model, and what ran it."""
    return {
        "model": request.spec.name,
        "version": request.spec.version,
        "engine": str(request.engine_name),
        "artifact_sha256": sha256(request.weights / "model.onnx"),
    }


def _evaluate_labels(request: EvaluationRequest) -> dict[str, Any]:
    """Judge each of several labels by itself; files and errors as for exclusive classes."""
    spec = request.spec
    refuse_foreign(request)
    if request.split is not None:
        raise ConfigError("expected no --split for independent labels, got one")
    engine = engine_of(request)
    if request.data_dir.suffix == ".npz":
        pixels, stored = read_npz_part(request.data_dir, request.part)
        references = stored.astype(np.float64)
        if references.shape != (len(pixels), len(spec.labels)) or not np.isin(stored, (0, 1)).all():
            raise ConfigError(
                f"{request.data_dir}: expected 0 or 1 for each of {len(spec.labels)} labels of "
                f"each image, got labels of shape {stored.shape}"
            )
        answers = _answers(engine, spec, _stored(map(str, range(len(pixels))), pixels, spec))
    else:
        known = references_of(request)
        answers = answer_files(engine, spec, list(known), progress="Evaluating")
        references = np.array([known[path].answers for path in answers.paths])
    if not answers.paths:
        raise ConfigError(f"{request.data_dir}: expected images, found none that can be decoded")
    measured = independent.measure_labels(answers.probabilities, references, spec)
    content = {
        **_measured(request),
        "n": len(answers.paths),
        "skipped": answers.skipped,
        **independent.content_of(measured),
    }
    request.out_dir.mkdir(parents=True, exist_ok=True)
    write_json(request.out_dir / "metrics.json", content)
    page = independent.write_report(
        request.out_dir, spec, measured, answers.probabilities, references
    )
    _log.info("mean AUROC %s in %d images; %s", content["mean_auroc"], content["n"], page)
    return content


def references_of(request: EvaluationRequest) -> dict[Path, Reference]:
    """Return which labels each image of a folder has, by its table; errors as of reading it."""
    return read_references(
        request.data_dir / independent.LABELS_CSV,
        *(request.spec.labels, independent.present_or_not, "1, 0 or nothing"),
    )


def _stored(
    names: Iterable[str], images: npt.NDArray[np.uint8], spec: ModelSpec
) -> Iterator[_Readable]:
    """Yield name and planes of each image of an npz."""
    for name, pixels in track(zip(names, images, strict=True), "Evaluating", len(images)):
        image = Image(pixels.astype(np.float32) / np.float32(255))
        yield Path(name), fit_image(image, spec.input)


def _answered(
    request: EvaluationRequest, engine: Engine
) -> tuple[tuple[Path, ...], npt.NDArray[np.int64], Answers]:
    """Return the name and the true label of every image, and what the artifact said of it."""
    spec = request.spec
    if request.data_dir.suffix == ".npz":
        stored = read_npz(request.data_dir, request.part, spec.labels)
        answers = _answers(engine, spec, _stored(stored.paths, stored.images, spec))
        return answers.paths, stored.label_ids, answers
    label_of = chosen_files(request)
    answers = answer_files(engine, spec, list(label_of), progress="Evaluating")
    if not answers.paths:
        raise ConfigError(f"{request.data_dir}: expected images, found none that can be decoded")
    names = tuple(path.relative_to(request.data_dir) for path in answers.paths)
    label_ids = [spec.labels.index(label_of[path]) for path in answers.paths]
    return names, np.array(label_ids, dtype=np.int64), answers


def chosen_files(request: EvaluationRequest) -> dict[Path, str]:
    """Return the files to evaluate with their labels: all, or one part of a split."""
    files = labelled_files(request.data_dir, request.spec.labels, folders=request.folders)
    if request.split is None:
        return files
    if request.part not in SPLITS:
        raise ConfigError(f"expected --part to be one of {', '.join(SPLITS)}, got {request.part!r}")
    split_of = read_split(request.split)
    chosen = {
        path: label
        for path, label in files.items()
        if split_of.get(path.relative_to(request.data_dir).as_posix(), "train") == request.part
    }
    if not chosen:
        raise ConfigError(f"{request.split}: expected rows about the files in {request.data_dir}")
    return chosen


def answer_files(
    engine: Engine, spec: ModelSpec, paths: list[Path], *, progress: str = ""
) -> Answers:
    """Decode, preprocess and infer as the handler does; `progress` is the title of a bar."""
    skipped: list[Path] = []
    shown: Iterable[Path] = track(paths, description=progress) if progress else paths
    answers = _answers(engine, spec, decoded(shown, spec, skipped))
    return dataclasses.replace(answers, skipped=len(skipped))


def _answers(engine: Engine, spec: ModelSpec, images: Iterator[_Readable]) -> Answers:
    kept: list[Path] = []
    height, width = spec.input.size
    nothing = np.zeros((0, spec.input.channels, height, width), np.float32)
    pixels = [to_images(nothing)]
    shares = [np.zeros((0, len(spec.labels)))]
    novelty = [np.zeros(0, np.float32)]
    for batch in _batches(images):
        tensor = np.stack([planes for _, planes in batch])  # (N, C, H, W)
        outputs = engine.run(tensor)
        kept += [path for path, _ in batch]
        pixels.append(to_images(display_planes(tensor, spec.input)))
        shares.append(probabilities(logits_of(outputs, spec), spec.classifier))
        if spec.classifier.novelty:
            novelty.append(outputs["novelty"])
    return Answers(
        tuple(kept), np.concatenate(pixels), np.concatenate(shares),
        np.concatenate(novelty) if spec.classifier.novelty else None, skipped=0,
    )  # fmt: skip


def logits_of(outputs: Outputs, spec: ModelSpec) -> npt.NDArray[Any]:
    """Return the logits (N, K) in an engine's outputs, also of a network that ends in a softmax."""
    return as_logits(outputs["logits"], spec.classifier)


def _batches(items: Iterator[_Readable]) -> Iterator[list[_Readable]]:
    while batch := list(islice(items, _BATCH)):
        yield batch


def _review(
    answers: Answers, label_ids: npt.NDArray[np.int64], review_below: float
) -> dict[str, float | int | list[float]]:
    """How many images a person should look at, and how many errors that would catch.

    The last three say what the order of `medserve review` is worth: the errors among the first 5 %
    of the images, the share that they are of all errors with its exact 95 % interval, and how many
    images in that order hold all errors.
    """
    is_review = answers.probabilities.max(axis=1) < review_below
    is_error = answers.probabilities.argmax(axis=1) != label_ids
    rank = np.where(answers.is_unlike, 0, np.where(is_review, 1, 2))
    order = np.lexsort((answers.probabilities.max(axis=1), rank))
    places = 1 + np.flatnonzero(is_error[order])  # of the errors, the most doubtful first
    found, errors = int((places <= math.ceil(_LOOKED_AT * len(order))).sum()), len(places)
    interval = binomtest(found, errors).proportion_ci(0.95, method="exact") if errors else ()
    return {
        "below": review_below,
        "images": int(is_review.sum()),
        "errors_among_them": int((is_review & is_error).sum()),
        "errors_in_first_5_percent": found,
        "share_in_first_5_percent_interval_95_exact": [float(each) for each in interval],
        "images_until_the_last_error": int(places.max(initial=0)),
    }


def _novelty(engine: Engine, request: EvaluationRequest, answers: Answers) -> dict[str, Any]:
    """Count the images that are called unlike, also for each folder of `foreign_dir`."""
    foreign = {}
    for folder in _folders(request.foreign_dir):
        found = answer_files(engine, request.spec, files_below(folder), progress=folder.name)
        foreign[folder.name] = {"n": len(found.paths), "flagged": int(found.is_unlike.sum())}
    return {"flagged": int(answers.is_unlike.sum()), "foreign": foreign}


def _folders(parent: Path | None) -> list[Path]:
    return [] if parent is None else sorted(path for path in parent.iterdir() if path.is_dir())
