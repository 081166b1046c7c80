"""From a network for pictures to the archive that serves it, proven equal on the way."""

from __future__ import annotations

import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from medserve.archive.build import archive_path
from medserve.cores import available_cores
from medserve.errors import ConfigError
from medserve.imaging import Image
from medserve.importing import golden, report
from medserve.importing.package import (
    LEAST_AGREEMENT,
    Agreement,
    Content,
    Imported,
    chosen,
    export,
    reference,
    tolerance_of,
    write_archive,
)
from medserve.importing.source import Described
from medserve.inference.engines import load_engine
from medserve.inference.fit import fit_image
from medserve.inference.frame_pipeline import FramePipeline
from medserve.inference.scores import are_present, as_logits, probabilities
from medserve.results.files.overlay import blend
from medserve.spec import EngineName, ModelSpec, Task
from medserve.spec.frames import Activation
from medserve.spec.volumes import ScoreKind
from medserve.tasks.classification import as_finding
from medserve.tasks.regression import estimates

__all__ = ["import_pictures"]

_Scores = npt.NDArray[np.float32]

_ROUNDING = 1e-3  # of probabilities
_OF_SPAN = 1e-3  # of the numbers of the compared pictures, that an engine may be off
_OF_SIZE = 1e-5  # of the largest of them: where all are alike, single precision decides
_ENOUGH = 8  # scores; fewer logits may all lie between 0 and 1 by chance
_ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg", b"II": ".tif", b"MM": ".tif"}


def import_pictures(
    source: Described,
    store: Path,
    version: str,
    example: Sequence[Path] = (),
    progress: Callable[[str], None] = lambda step: None,
) -> Imported:
    """Export, compare, describe and pack a network that tells something of pictures.

    Args:
        source: The model as it was read.
        store: Where the archive goes; a file of its name there is replaced.
        version: Of the archive.
        example: Pictures with which engines are compared; the first one travels in the archive.
        progress: Told what is being done.

    Raises:
        ArchiveError: no engine answers as the network that was read.
        ConfigError: the description contradicts the network.
    """
    spec = ModelSpec.from_mapping(source.config(version, EngineName.ONNXRUNTIME.value))
    pictures = golden.read_pictures(example, spec) if example else golden.computed_pictures(spec)
    way = _way(spec)
    rows = np.stack([way.row(each) for each in pictures.images])
    with tempfile.TemporaryDirectory(prefix="medserve-import-") as temporary:
        folder = Path(temporary)
        progress("computing the golden answer with the network as it was read")
        scores = reference(source.network, folder)(rows)
        _refuse_shape(scores, (len(rows), *way.shape))
        way.refuse_other(scores)
        progress("writing what engines execute")
        agreements = []
        for engine in export(source.network, rows[:1], folder):
            progress(f"comparing {engine}")
            agreements.append(_compare(engine, folder, way, rows, scores))
        engine = chosen(agreements, way.compared)
        progress("packing the archive")
        config = source.config(version, engine.value)
        spec = ModelSpec.from_mapping(config)
        content = Content(
            way.handler,
            config,
            report.card_of_pictures(source, spec, agreements, way.compared),
            (f"golden_input{_suffix(pictures.payloads[0])}", pictures.payloads[0]),
            scores[:1],
            way.tolerance(scores),
            {f"same_{way.compared}_{each.engine}": round(each.share, 6) for each in agreements},
        )
        archive = write_archive(spec, content, folder, store)
    written = archive_path(spec, store).with_suffix(".report.html")
    outcome = Imported(archive, written, engine, tuple(agreements))
    golden_input = "computed" if pictures.is_computed else "given"
    report.write_pictures(
        written, source, spec, outcome, golden_input, list(way.told(pictures.images, scores))
    )
    return outcome


class _Way(ABC):
    """What differs between tasks: how a picture is fed, and what its scores say."""

    compared: ClassVar[str]
    handler: ClassVar[tuple[str, str]]

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of the scores of one picture."""

    @abstractmethod
    def row(self, image: Image) -> _Scores:
        """Image -> one row (C, H, W) of the network's input."""

    @abstractmethod
    def refuse_other(self, scores: _Scores) -> None:
        """Refuse scores of another kind than described."""

    @abstractmethod
    def same(self, found: _Scores, scores: _Scores) -> npt.NDArray[np.bool_]:
        """Tell of each picture, label or pixel whether two scores say the same of it."""

    def tolerance(self, scores: _Scores) -> npt.NDArray[np.float32]:
        """Return how far an engine may be from these scores; one number, or one for each output."""
        return np.asarray(tolerance_of(scores), dtype=np.float32)

    @abstractmethod
    def told(self, images: Sequence[Image], scores: _Scores) -> Iterator[tuple[bytes, str]]:
        """Each picture as a PNG, and what was found in it."""


class _Classes(_Way):
    compared = "pictures"
    handler = ("classification", "ClassificationHandler")

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.spec.labels),)

    def row(self, image: Image) -> _Scores:
        return fit_image(image, self.spec.input)

    def refuse_other(self, scores: _Scores) -> None:
        kind = self.spec.classifier.scores
        low, high = float(scores.min()), float(scores.max())
        is_softmax = low >= -_ROUNDING and bool(np.abs(scores.sum(axis=1) - 1).max() <= _ROUNDING)
        if kind is ScoreKind.LOGITS and is_softmax:
            raise ConfigError(
                "expected logits, as output.scores says, got scores that are not negative and sum "
                "to 1, as a softmax at the end of a network gives; set output.scores to "
                "probabilities"
            )
        if kind is ScoreKind.PROBABILITIES and not is_softmax:
            raise ConfigError(
                f"expected probabilities that sum to 1, as output.scores says, got scores from "
                f"{low:g} to {high:g}; set output.scores to logits or, where labels do not exclude "
                "each other, output.classes to independent"
            )
        if kind is ScoreKind.LOGITS and low >= 0 and high <= 1 and scores.size >= _ENOUGH:
            raise ConfigError(
                f"expected logits, as output.scores says, got scores from {low:g} to {high:g}, as "
                "sigmoids at the end of a network give; set output.classes to independent and "
                "output.scores to probabilities"
            )

    def same(self, found: _Scores, scores: _Scores) -> npt.NDArray[np.bool_]:
        return np.asarray(found.argmax(axis=1) == scores.argmax(axis=1))

    def told(self, images: Sequence[Image], scores: _Scores) -> Iterator[tuple[bytes, str]]:
        for image, row in zip(images, self.shares(scores), strict=True):
            found = self.spec.labels[int(row.argmax())]
            yield golden.as_png(np.rint(255 * image.array)), f"{found} {row.max():.4f}"

    def shares(self, scores: _Scores) -> npt.NDArray[np.float64]:
        """Scores -> probabilities (N, K)."""
        output = self.spec.classifier
        return probabilities(as_logits(scores, output), output)


class _Independent(_Classes):
    compared = "labels"

    def refuse_other(self, scores: _Scores) -> None:
        kind = self.spec.classifier.scores
        low, high = float(scores.min()), float(scores.max())
        is_share = low >= 0 and high <= 1
        if kind is ScoreKind.LOGITS and is_share and scores.size >= _ENOUGH:
            raise ConfigError(
                f"expected logits, as output.scores says, got scores from {low:g} to {high:g}, as "
                "sigmoids at the end of a network give; set output.scores to probabilities"
            )
        if kind is ScoreKind.PROBABILITIES and not is_share:
            raise ConfigError(
                f"expected probabilities from 0 to 1, as output.scores says, got scores from "
                f"{low:g} to {high:g}; set output.scores to logits"
            )
        if is_share and bool(np.abs(scores.sum(axis=1) - 1).max() <= _ROUNDING):
            raise ConfigError(
                "expected probabilities of independent classes, got scores that sum to 1 for each "
                "picture, as a softmax at the end of a network gives; set output.classes to "
                "exclusive"
            )
        self._refuse_untrained(scores)

    def _refuse_untrained(self, scores: _Scores) -> None:
        """Refuse a label that would be present in every image; some tools write one half so."""
        is_same = np.ptp(scores, axis=0) == 0
        shares = self.shares(scores[:1])[0]
        is_present = are_present(shares, self.spec.classifier) & (shares < 1 - _ROUNDING)
        if len(scores) > 1 and (is_same & is_present).any():
            place = int(np.argmax(is_same & is_present))
            raise ConfigError(
                f"expected probabilities of {self.spec.labels[place]!r} that differ between "
                f"pictures, got {shares[place]:g} for all {len(scores)}, so it would be present in "
                "every image; where the network was not trained on it, set its output.threshold "
                "higher"
            )

    def same(self, found: _Scores, scores: _Scores) -> npt.NDArray[np.bool_]:
        return np.asarray(self.present(found) == self.present(scores))

    def present(self, scores: _Scores) -> npt.NDArray[np.bool_]:
        """Scores -> which labels each picture has (N, K)."""
        return are_present(self.shares(scores), self.spec.classifier)

    def told(self, images: Sequence[Image], scores: _Scores) -> Iterator[tuple[bytes, str]]:
        named = [
            [
                f"{label} {share:.4f}"
                for label, share, there in zip(self.spec.labels, *row, strict=True)
                if there
            ]
            for row in zip(self.shares(scores), self.present(scores), strict=True)
        ]
        for image, found in zip(images, named, strict=True):
            yield golden.as_png(np.rint(255 * image.array)), as_finding(found)


class _Numbers(_Way):
    compared = "values"
    handler = ("regression", "RegressionHandler")

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.spec.values),)

    def row(self, image: Image) -> _Scores:
        return fit_image(image, self.spec.input)

    def refuse_other(self, scores: _Scores) -> None:
        constant = np.flatnonzero(np.ptp(scores, axis=0) == 0)
        if len(scores) > 1 and constant.size:
            name = self.spec.values[int(constant[0])].name
            raise ConfigError(
                f"expected numbers of {name!r} that differ between pictures, got "
                f"{scores[0, constant[0]]:g} for all {len(scores)}; name the values in the order "
                "of the network's outputs, or give pictures of your own with --example"
            )

    def same(self, found: _Scores, scores: _Scores) -> npt.NDArray[np.bool_]:
        return np.asarray(np.abs(found - scores) <= self.tolerance(scores))

    def tolerance(self, scores: _Scores) -> npt.NDArray[np.float32]:
        """Each output has a range of its own: what is nothing in months is much in a ratio."""
        span, size = np.ptp(scores, axis=0), np.abs(scores).max(axis=0)
        return np.asarray(np.maximum(_OF_SPAN * span, _OF_SIZE * size), dtype=np.float32)

    def told(self, images: Sequence[Image], scores: _Scores) -> Iterator[tuple[bytes, str]]:
        for image, row in zip(images, scores, strict=True):
            found = estimates(row.tolist(), self.spec.values)
            yield golden.as_png(np.rint(255 * image.array)), found.text


class _Masks(_Way):
    compared = "pixels"
    handler = ("frames", "FrameHandler")

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._pipeline = FramePipeline(spec)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._pipeline.outputs, *self.spec.input.size)

    def row(self, image: Image) -> _Scores:
        return self._pipeline.prepare(image, image.aspect).plane

    def refuse_other(self, scores: _Scores) -> None:
        low, high = float(scores.min()), float(scores.max())
        frame = self._pipeline.frame
        are_shares = low >= -_ROUNDING and high <= 1 + _ROUNDING
        if are_shares and frame.activation is Activation.SOFTMAX:
            are_shares = bool(np.abs(scores.sum(axis=1) - 1).max() <= _ROUNDING)
        if are_shares is (frame.scores is ScoreKind.PROBABILITIES):
            return
        ending = "softmax" if frame.activation is Activation.SOFTMAX else "sigmoid"
        raise ConfigError(
            f"expected {frame.scores} with the activation {ending}, as the section frame says, got "
            f"scores from {low:g} to {high:g}, which "
            + (
                f"are probabilities; set frame.scores to probabilities (a {ending} stands at the "
                "end of the network)"
                if are_shares
                else "are none; set frame.scores to logits, or correct frame.activation"
            )
        )

    def same(self, found: _Scores, scores: _Scores) -> npt.NDArray[np.bool_]:
        return np.asarray(self._labels(found) == self._labels(scores))

    def _labels(self, scores: _Scores) -> npt.NDArray[np.int64]:
        logits = list(np.moveaxis(self._pipeline.as_logits(scores), 1, 0))
        return self._pipeline.decided(logits, self._pipeline.frame.threshold).astype(np.int64)

    def told(self, images: Sequence[Image], scores: _Scores) -> Iterator[tuple[bytes, str]]:
        for image, logits in zip(images, self._pipeline.as_logits(scores), strict=True):
            prepared = self._pipeline.prepare(image, image.aspect)
            mask = self._pipeline.find(logits, prepared).mask
            sizes = (f"{label}: {int((mask == place).sum())} pixels"
                     for place, label in enumerate(self.spec.labels[1:], start=1))  # fmt: skip
            yield golden.as_png(blend(image.array, mask)), ", ".join(sizes)


def _way(spec: ModelSpec) -> _Way:
    if spec.task is Task.FRAMES:
        return _Masks(spec)
    if spec.task is Task.REGRESSION:
        return _Numbers(spec)
    return _Independent(spec) if spec.has_independent_labels else _Classes(spec)


def _refuse_shape(scores: _Scores, wanted: tuple[int, ...]) -> None:
    if scores.shape != wanted:
        raise ConfigError(
            f"expected scores of shape {wanted} for {wanted[0]} pictures, got {scores.shape}; the "
            "description contradicts the network"
        )
    if not np.isfinite(scores).all():
        raise ConfigError("expected finite scores for the compared pictures, got others")


def _compare(
    engine: EngineName, folder: Path, way: _Way, rows: _Scores, scores: _Scores
) -> Agreement:
    loaded = load_engine(engine, folder, threads=available_cores())
    started = time.perf_counter()
    found = loaded.run(rows)["logits"]
    seconds = time.perf_counter() - started
    difference, share = np.abs(found - scores), float(way.same(found, scores).mean())
    holds = share >= LEAST_AGREEMENT and bool((difference <= way.tolerance(scores)).all())
    return Agreement(engine, float(difference.max()), share, seconds, holds)


def _suffix(payload: bytes) -> str:
    """Return the ending of a file with these bytes, for those who look into the archive."""
    if payload[:2] == b"\x1f\x8b":
        return ".nii.gz"
    return next((name for magic, name in _ENDINGS.items() if payload.startswith(magic)), ".dcm")
