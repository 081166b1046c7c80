"""Compare a room's versions on the same images: `python -m training.comparison --data-dir DIR`.

The shipped artifacts answer for the images that none of them was trained on, through the engine
that serves each; with `--artifact`, so does that of a training that no room ships. Writes
`comparison.json`, `comparison.md` and `comparison.html`, which shows every error of every version;
`--install` copies the first two into the room.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from rich.progress import track
from scipy.special import softmax

import models
from medserve.errors import ConfigError
from medserve.inference.engines import Engine, load_engine
from medserve.spec import ModelSpec, Precision
from training.classification import metrics
from training.classification.data import decoded, labelled_files, read_split, to_images
from training.classification.report import confusion_matrix
from training.core.config import Setting, run
from training.core.export import sha256
from training.core.files import require_folder, write_json
from training.core.report import Picture, Section, Table, data_uri, encode_png, write_sections
from training.core.ship import install_files
from training.evaluate import folders_of

__all__ = ["ComparisonConfig", "Held", "as_markdown", "main", "write"]

_log = logging.getLogger(__name__)

_BATCH = 64  # images a call when answering
_TIMED = (1, 16)  # images a call when timing: a lone request, and a gathered batch
_REPEATS = 7  # of which the median counts
_INSTALLED = ("comparison.json", "comparison.md")
_VERSION: Mapping[str, Callable[[Any], object]] = {
    "version": lambda row: f"`{row['version']}`",
    "errors": lambda row: f"{row['errors']} of {row['n']}",
    "accuracy": lambda row: f"{100 * row['accuracy']:.3f} %",
    "exact 95 % interval": lambda row: "{:.3f} to {:.3f} %".format(
        *(100 * each for each in row["accuracy_interval_95_exact"])
    ),
    "macro F1": lambda row: f"{row['macro_f1']:.5f}",
    "calibration error": lambda row: f"{row['ece']:.5f}",
    "for review": lambda row: row["reviewed"],
    "errors among them": lambda row: sum(each["review"] for each in row["wrong"]),
    "MB": lambda row: f"{row['artifact_bytes'] / 1e6:.2f}",
    "core-ms an image, alone / of 16": lambda row: (
        f"{row['core_ms']['1']:.2f} / {row['core_ms']['16']:.2f}"
    ),
    "engine": lambda row: row["engine"],
}
_PAIR: Mapping[str, Callable[[Any], object]] = {
    "pair": lambda each: f"`{each['first']}` and `{each['second']}`",
    "only the first right": lambda each: each["only_first"],
    "only the second right": lambda each: each["only_second"],
    "both wrong": lambda each: each["both_wrong"],
    "McNemar's p, exact": lambda each: f"{each['p_value']:.4f}",
}


@dataclass(frozen=True)
class ComparisonConfig:
    """Compare a room's own network with its variants on held-out images."""

    data_dir: Annotated[Path, Setting("folder with one folder of images per class")] = Path(
        "data/MedNIST"
    )
    out_dir: Annotated[Path, Setting("receives the comparison")] = Path("outputs/comparison")
    room: Annotated[str, Setting("room whose versions are compared")] = "mednist"
    part: Annotated[str, Setting("of the room's split: test or validation")] = "test"
    artifact: Annotated[
        Path | None, Setting("folder of a further artifact, such as out_dir/artifact of a training")
    ] = None
    install: Annotated[bool, Setting("copy figures and table into the room")] = False


@dataclass(frozen=True, eq=False)
class Held:
    """The images that every version answers for.

    Attributes:
        names: Path of each, relative to the data folder.
        planes: float32 (N, C, H, W), as every version sees them.
        label_ids: int64 (N,), the truth.
    """

    names: tuple[str, ...]
    planes: npt.NDArray[np.float32]
    label_ids: npt.NDArray[np.int64]


def main(config: ComparisonConfig) -> None:
    """Let every version answer, then write figures, table and page."""
    own, versions = models.spec(config.room), _versions(config)
    held = _held(config)
    rows, answers = [], []
    for spec, weights in versions:
        engine = load_engine(spec.engine.name, weights, precision=Precision.F32, threads=1)
        probabilities, novelty = _answer(engine, held, spec.version)
        answers.append(probabilities)
        rows.append(_row(spec, weights, engine, held, (probabilities, novelty)))
        _log.info("%s: %d errors in %d", spec.version, rows[-1]["errors"], len(held.names))
    content = {
        "room": config.room,
        "part": config.part,
        "n": len(held.names),
        "labels": list(own.labels),
        "versions": rows,
        "pairs": _pairs(rows, answers, held),
    }
    write(config.out_dir, content, _pictures(rows, held))
    if config.install:
        install_files({models.room(config.room): [config.out_dir / name for name in _INSTALLED]})


def _versions(config: ComparisonConfig) -> list[tuple[ModelSpec, Path]]:
    """Return what describes each version, and the folder of its artifact."""
    own = models.spec(config.room)
    versions = []
    for variant in ("", *models.variants(config.room)):
        spec = models.spec(config.room, variant)
        if (spec.labels, spec.input) != (own.labels, own.input):
            raise ConfigError(
                f"{spec.version}: expected labels and input of {own.version}, got others"
            )
        versions.append((spec, models.room(config.room, variant) / "weights"))
    if config.artifact is not None:
        named = msgspec.structs.replace(own, version=str(config.artifact))
        versions.append((named, require_folder(config.artifact, "--artifact")))
    if len(versions) == 1:
        raise ConfigError(f"expected variants in models/{config.room}/variants, found none")
    return versions


def _held(config: ComparisonConfig) -> Held:
    """Decode one part of the split by the code of serving."""
    spec = models.spec(config.room)
    if config.part not in ("test", "validation"):
        raise ConfigError(f"expected --part to be test or validation, got {config.part!r}")
    split_of = read_split(models.room(config.room) / "weights" / "split.csv")
    label_of = labelled_files(config.data_dir, spec.labels, folders=folders_of(config.room))
    chosen = [
        path
        for path in label_of
        if split_of.get(path.relative_to(config.data_dir).as_posix()) == config.part
    ]
    if not chosen:
        raise ConfigError(
            f"{config.data_dir}: expected the images that models/{config.room}/weights/split.csv "
            "holds out, found none of them"
        )
    skipped: list[Path] = []
    found = list(decoded(track(chosen, description="Reading images"), spec, skipped))
    if skipped:
        raise ConfigError(f"{skipped[0]}: expected an image that serving accepts")
    names = tuple(path.relative_to(config.data_dir).as_posix() for path, _ in found)
    label_ids = [spec.labels.index(label_of[path]) for path, _ in found]
    planes = np.stack([plane for _, plane in found])
    return Held(names, planes, np.array(label_ids, dtype=np.int64))


def _answer(
    engine: Engine, held: Held, title: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
    """Probabilities (N, K) and novelty (N,)."""
    starts = range(0, len(held.names), _BATCH)
    outputs = [
        engine.run(held.planes[start : start + _BATCH])
        for start in track(starts, description=title)
    ]
    logits = np.concatenate([each["logits"] for each in outputs]).astype(np.float64)
    return softmax(logits, axis=1), np.concatenate([each["novelty"] for each in outputs])


def _row(
    spec: ModelSpec,
    weights: Path,
    engine: Engine,
    held: Held,
    answered: tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]],
) -> dict[str, Any]:
    """Everything that is told about one version."""
    probabilities, novelty = answered
    measured = metrics.measure(probabilities, held.label_ids, spec.labels)
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != held.label_ids)
    recorded = json.loads((weights / "metrics.json").read_text(encoding="utf-8"))["training"]
    return {
        "version": spec.version,
        "title": spec.title,
        "engine": spec.engine.name.value,
        "artifact_sha256": sha256(weights / "model.onnx"),
        "artifact_bytes": (weights / "model.onnx").stat().st_size,
        "core_ms": {str(count): _core_ms(engine, held, count) for count in _TIMED},
        "reviewed": int((probabilities.max(axis=1) < spec.classifier.review_below).sum()),
        "unlike": int((novelty > 1.0).sum()),
        **measured.to_json(),
        "wrong": [
            {
                "name": held.names[i],
                "truth": spec.labels[held.label_ids[i]],
                "answer": spec.labels[probabilities[i].argmax()],
                "probability": round(float(probabilities[i].max()), 4),
                "review": bool(probabilities[i].max() < spec.classifier.review_below),
            }
            for i in wrong
        ],
        "training": recorded,
    }


def _core_ms(engine: Engine, held: Held, count: int) -> float:
    """Milliseconds of one core for an image, in calls of `count`; other processes do not count."""
    batch = held.planes[:count]
    calls = max(1, 64 // len(batch))
    engine.run(batch)  # the first call builds what the next ones use
    seconds = []
    for _ in range(_REPEATS):
        started = time.process_time()
        for _ in range(calls):
            engine.run(batch)
        seconds.append((time.process_time() - started) / (calls * len(batch)))
    return round(1000.0 * statistics.median(seconds), 3)


def _pairs(
    rows: list[dict[str, Any]], answers: list[npt.NDArray[np.float64]], held: Held
) -> list[dict[str, Any]]:
    """McNemar's test of every two versions."""
    right = [each.argmax(axis=1) == held.label_ids for each in answers]
    pairs = []
    for second in range(len(rows)):
        for first in range(second):
            test = metrics.mcnemar(right[first], right[second])
            pairs.append(
                {
                    "first": rows[first]["version"],
                    "second": rows[second]["version"],
                    "only_first": test.only_first,
                    "only_second": test.only_second,
                    "both_wrong": int((~right[first] & ~right[second]).sum()),
                    "p_value": test.p_value,
                }
            )
    return pairs


def _pictures(rows: list[dict[str, Any]], held: Held) -> dict[str, npt.NDArray[np.uint8]]:
    """The images that any version errs on, uint8 (H, W), by name."""
    names = {each["name"] for row in rows for each in row["wrong"]}
    places = [place for place, name in enumerate(held.names) if name in names]
    return {held.names[i]: to_images(held.planes[i : i + 1])[0] for i in places}


def write(
    out_dir: Path, content: Mapping[str, Any], pictures: Mapping[str, npt.NDArray[np.uint8]]
) -> None:
    """Write `comparison.json`, `comparison.md` and `comparison.html`.

    Args:
        out_dir: Receives them.
        content: What `main` measured.
        pictures: The images of all errors, uint8 (H, W), by name; only the page shows them.
    """
    write_json(out_dir / "comparison.json", content, indent=1)
    (out_dir / "comparison.md").write_text(as_markdown(content), encoding="utf-8")
    _, pairs, _ = _tables(content)
    versions = Table.of({**_VERSION, "unlike": lambda row: row["unlike"]}, content["versions"])
    shown = {name: data_uri(encode_png(each)) for name, each in pictures.items()}
    sections = (
        Section("Errors and cost", table=versions),
        Section("McNemar's test", "Exact, two-sided, on the images that only one of the two "
                "classifies rightly.", table=pairs),
        Section("Per class", "F1 of each class.", table=_classes(content),
                figures={"confusion": lambda: _confusion(content)}),
        *(_gallery(row, shown) for row in content["versions"]),
    )  # fmt: skip
    title = f"{content['room']}: {len(content['versions'])} versions compared"
    note = (
        f"{content['n']} images of the {content['part']} part, which no version was trained on, "
        "each answered by the shipped artifact through the engine that serves it."
    )
    write_sections(out_dir / "comparison.html", title, note, sections)


def as_markdown(content: Mapping[str, Any]) -> str:
    """Three tables: errors and cost, the paired tests, every image that any version errs on."""
    return "\n".join(each.markdown() for each in _tables(content))


def _tables(content: Mapping[str, Any]) -> tuple[Table, Table, Table]:
    names = tuple(f"`{row['version']}`" for row in content["versions"])
    errors = Table(("error", "truth", *names), tuple(_errors(content)))
    return Table.of(_VERSION, content["versions"]), Table.of(_PAIR, content["pairs"]), errors


def _errors(content: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Name, truth and each version's wrong answer ("" where it is right), by name."""
    wrong = [{each["name"]: each for each in row["wrong"]} for row in content["versions"]]
    truths = {name: each["truth"] for row in wrong for name, each in row.items()}
    return [
        (f"`{name}`", truth, *(_spoken(own.get(name)) for own in wrong))
        for name, truth in sorted(truths.items())
    ]


def _spoken(error: Mapping[str, Any] | None) -> str:
    return f"{error['answer']} ({error['probability']:.3f})" if error else ""


def _classes(content: Mapping[str, Any]) -> Table:
    versions = content["versions"]
    rows = [
        (label, *(f"{row['per_class'][label]['f1']:.5f}" for row in versions))
        for label in content["labels"]
    ]
    return Table(("class", *(row["version"] for row in versions)), tuple(rows))


def _gallery(row: Mapping[str, Any], shown: Mapping[str, str]) -> Section:
    """Every error of one version as a picture."""
    pictures = tuple(
        Picture(
            shown[each["name"]],
            (
                each["name"],
                f"{each['truth']}, answered {_spoken(each)}{', for review' * each['review']}",
            ),
        )
        for each in row["wrong"]
    )
    return Section(f"{row['version']}: every error, {len(pictures)}", gallery=pictures)


def _confusion(content: Mapping[str, Any]) -> Figure:
    """One matrix a version, side by side."""
    versions = content["versions"]
    figure = Figure(figsize=(4.2 * len(versions), 4.2), layout="constrained")
    for axes, row in zip(np.atleast_1d(figure.subplots(1, len(versions))), versions, strict=True):
        confusion_matrix(row["confusion_matrix"], content["labels"], row["version"], axes)
    return figure


if __name__ == "__main__":
    sys.exit(run(main, ComparisonConfig))
