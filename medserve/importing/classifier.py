"""From a classifier that was read to the archive that serves it, proven equal on the way."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medserve.archive.build import archive_path
from medserve.cores import available_cores
from medserve.errors import ConfigError
from medserve.importing import golden, report
from medserve.importing.package import (
    Agreement,
    Content,
    Imported,
    chosen,
    export,
    reference,
    tolerance_of,
    write_archive,
)
from medserve.importing.source import Classifier
from medserve.inference.engines import load_engine
from medserve.inference.fit import fit_image
from medserve.inference.scores import as_logits, probabilities
from medserve.spec import EngineName, ModelSpec
from medserve.spec.volumes import ScoreKind

__all__ = ["import_classifier"]

_Scores = npt.NDArray[np.float32]

_ROUNDING = 1e-3  # of probabilities
_ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg", b"II": ".tif", b"MM": ".tif"}


def import_classifier(
    source: Classifier,
    store: Path,
    version: str,
    example: Sequence[Path] = (),
    progress: Callable[[str], None] = lambda step: None,
) -> Imported:
    """Export, compare, describe and pack a classifier of pictures.

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
    rows = np.stack([fit_image(each, spec.input) for each in pictures.images])
    with tempfile.TemporaryDirectory(prefix="medserve-import-") as temporary:
        folder = Path(temporary)
        progress("computing the golden answer with the network as it was read")
        scores = reference(source.network, folder)(rows)
        _refuse_other_scores(spec, scores, len(rows))
        progress("writing what engines execute")
        agreements = []
        for engine in export(source.network, rows[:1], folder):
            progress(f"comparing {engine}")
            agreements.append(_compare(engine, folder, rows, scores))
        tolerance = tolerance_of(scores)
        engine = chosen(agreements, tolerance, "pictures")
        progress("packing the archive")
        config = source.config(version, engine.value)
        spec = ModelSpec.from_mapping(config)
        content = Content(
            ("classification", "ClassificationHandler"),
            config,
            report.card_of_classes(source, spec, agreements),
            (f"golden_input{_suffix(pictures.payloads[0])}", pictures.payloads[0]),
            scores[:1],
            tolerance,
            {f"same_class_{each.engine}": round(each.share, 6) for each in agreements},
        )
        archive = write_archive(spec, content, folder, store)
    written = archive_path(spec, store).with_suffix(".report.html")
    outcome = Imported(archive, written, engine, tuple(agreements))
    report.write_classes(written, source, spec, outcome, pictures, _classes(spec, scores))
    return outcome


def _refuse_other_scores(spec: ModelSpec, scores: _Scores, count: int) -> None:
    """Refuse scores of another shape, and logits told to be probabilities or the reverse."""
    wanted = (count, len(spec.labels))
    if scores.shape != wanted:
        raise ConfigError(
            f"expected scores of shape {wanted} for {count} pictures and {len(spec.labels)} "
            f"labels, got {scores.shape}; the description contradicts the network"
        )
    if not np.isfinite(scores).all():
        raise ConfigError("expected finite scores for the compared pictures, got others")
    low, high = float(scores.min()), float(scores.max())
    is_softmax = low >= -_ROUNDING and bool(np.abs(scores.sum(axis=1) - 1).max() <= _ROUNDING)
    if spec.classifier.scores is ScoreKind.LOGITS and is_softmax:
        raise ConfigError(
            "expected logits, as output.scores says, got scores that are not negative and sum to "
            "1, as a softmax at the end of a network gives; set output.scores to probabilities"
        )
    if spec.classifier.scores is ScoreKind.PROBABILITIES and not is_softmax:
        raise ConfigError(
            f"expected probabilities that sum to 1, as output.scores says, got scores from {low:g} "
            f"to {high:g}; set output.scores to logits (a network whose labels do not exclude each "
            "other cannot be imported)"
        )


def _compare(engine: EngineName, folder: Path, rows: _Scores, scores: _Scores) -> Agreement:
    loaded = load_engine(engine, folder, threads=available_cores())
    started = time.perf_counter()
    found = loaded.run(rows)["logits"]
    seconds = time.perf_counter() - started
    same = found.argmax(axis=1) == scores.argmax(axis=1)
    return Agreement(engine, float(np.abs(found - scores).max()), float(same.mean()), seconds)


def _classes(spec: ModelSpec, scores: _Scores) -> list[tuple[str, float]]:
    found = probabilities(as_logits(scores, spec.classifier.scores))
    return [(spec.labels[int(row.argmax())], float(row.max())) for row in found]


def _suffix(payload: bytes) -> str:
    """Return the ending of a file with these bytes, for those who look into the archive."""
    return next((name for magic, name in _ENDINGS.items() if payload.startswith(magic)), ".dcm")
