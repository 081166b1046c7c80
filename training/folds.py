"""Judge a training by all of its images: `python -m training.folds blood_cell --data-dir DIR`.

The images are dealt to `--folds` parts with the same share of every class; images of the same
pixels stay together. Each part is answered by a network that was trained on the others, of which
the room's share chose its epoch, so that every image is answered once and none by a network that
has seen it. Every other flag is one of the room's training. The same command goes on where the last
one ended.

Writes `answers.csv` (every image with its probabilities), `folds.json`, `folds.md`, `folds.html`
and `doubtful.csv`: images whose label is probably not theirs, by confident learning.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import importlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import StratifiedGroupKFold, train_test_split
from torch import Tensor, nn

from medserve.errors import ConfigError
from medserve.spec import Task
from training.classification import metrics
from training.classification.calibration import fit_temperature
from training.classification.data import LabelledImages, to_planes
from training.classification.report import confusion_matrix
from training.core.config import Setting, run, write
from training.core.files import write_csv, write_json, write_rows
from training.core.fit import checkpoints_of
from training.core.report import Picture, Section, Table, data_uri, encode_png, write_sections
from training.core.rooms import parse_for_room, training_settings

__all__ = ["Answered", "deal_out", "doubtful", "folds_config", "main", "read"]

_log = logging.getLogger(__name__)

_BATCH = 256  # images a pass
_SHOWN = 60  # doubtful pictures on the page
_MAY_DIFFER = frozenset({"data_dir", "out_dir", "threads", "devices", "resume", "install"})
_FOLD: Mapping[str, Callable[[Any], object]] = {
    "fold": lambda row: row["fold"],
    "images": lambda row: row["n"],
    "errors": lambda row: row["errors"],
    "accuracy": lambda row: f"{row['accuracy']:.4f}",
    "macro F1": lambda row: f"{row['macro_f1']:.4f}",
    "best epoch": lambda row: row["best_epoch"],
}


@dataclass(frozen=True, eq=False)
class Answered:
    """What the network of a fold said of the images that it did not see.

    Attributes:
        paths: Of the images, relative to the data folder.
        label_ids: int64 (N,), as the folders say.
        probabilities: float64 (N, K), calibrated on the images that chose the epoch.
    """

    paths: tuple[str, ...]
    label_ids: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]


def folds_config(model: str) -> type[Any]:
    """Return the settings of a cross-validation: those of the room's training, and the folds."""
    made = dataclasses.make_dataclass(
        "FoldsConfig",
        [
            ("model", Annotated[str, Setting("room of a classifier", positional=True)], model),
            ("out_dir", Annotated[Path, Setting("folder of folds and report")],
             Path(f"runs/{model}_folds")),
            ("folds", Annotated[int, Setting("parts; a network is trained for each", minimum=2)],
             5),
        ],
        bases=(importlib.import_module(f"training.{model}").TrainConfig,),
        frozen=True,
    )  # fmt: skip
    made.__doc__ = f"Cross-validate the training of {model}."
    return made


def main(config: Any) -> None:
    """Train and ask every fold that is not finished, then write the report."""
    room = importlib.import_module(f"training.{config.model}")
    _require_the_same_settings(config)
    images: LabelledImages = room.read_images(config)
    write(config, config.out_dir / "config.json")
    parts = deal_out(images, config.folds, config.seed)
    answered = []
    for number, test in enumerate(parts):
        folder = config.out_dir / f"fold_{number}"
        if not (folder / "answers.csv").is_file():
            rest = np.setdiff1d(np.arange(len(images)), test)
            resume = (checkpoints_of(folder) / "last.ckpt").is_file()
            settings = training_settings(config, {"out_dir": folder, "resume": resume})
            _ask(settings, room, images, (rest, test))
        answered.append(_read_answers(folder / "answers.csv", images.labels))
        _log.info("fold %d: %d errors in %d", number, *_errors(answered[-1]))
    _report(config, images, answered)


def deal_out(images: LabelledImages, folds: int, seed: int) -> list[npt.NDArray[np.intp]]:
    """Return the indices of every part; depends on paths, pixels and seed, not on their order.

    Raises:
        ConfigError: a class has fewer different images than there are folds.
    """
    order = np.argsort(np.array(images.paths))
    label_ids = images.label_ids[order]
    digests = [hashlib.sha256(images.images[i].tobytes()).hexdigest() for i in order]
    distinct = Counter(
        label_id for label_id, _ in set(zip(label_ids.tolist(), digests, strict=True))
    )
    label_id = min(range(len(images.labels)), key=lambda each: distinct[each])
    if distinct[label_id] < folds:
        raise ConfigError(
            f"expected at least {folds} different images of every class, one for each fold, got "
            f"{distinct[label_id]} of {images.labels[label_id]}; fewer --folds take fewer"
        )
    dealt = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    parts = dealt.split(order, label_ids, digests)
    return [np.sort(order[test]) for _, test in parts]


def doubtful(answered: Answered) -> npt.NDArray[np.intp]:
    """Return which images probably carry a label that is not theirs, the surest first.

    Confident learning (Northcutt, Jiang and Chuang, JAIR 70, 2021, arXiv:1911.00068, section 3.1):
    an image counts for a label where the probability of it reaches the mean that images of that
    label give to it, and is doubtful where the most probable of those is not its own.
    """
    label_ids, shares = answered.label_ids, answered.probabilities
    own = shares[np.arange(len(shares)), label_ids]
    thresholds = np.array(
        [own[label_ids == k].mean() if (label_ids == k).any() else np.inf
         for k in range(shares.shape[1])]
    )  # fmt: skip
    confident = np.where(shares >= thresholds, shares, -np.inf)
    found = np.isfinite(confident).any(axis=1) & (confident.argmax(axis=1) != label_ids)
    indices = np.flatnonzero(found)
    return indices[np.argsort(own[indices], kind="stable")]


def _require_the_same_settings(config: Any) -> None:
    """Refuse to mix networks of other settings with those that the folder holds."""
    path = config.out_dir / "config.json"
    if not path.is_file():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    asked = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    if other := [
        name for name in asked if name not in _MAY_DIFFER and before.get(name) != asked[name]
    ]:
        raise ConfigError(
            f"{config.out_dir} holds folds of other settings ({', '.join(other)}): expected the "
            "same, or another --out-dir"
        )


def _ask(
    settings: Any, room: Any, images: LabelledImages, parts: tuple[npt.NDArray[np.intp], ...]
) -> None:
    """Train on all but the part of the fold, and write what its network says of that part."""
    rest, test = parts
    share = getattr(settings, "validation_share", 0.1)
    chosen, validated = train_test_split(
        rest, test_size=share, random_state=settings.seed, stratify=images.label_ids[rest]
    )
    validation = images.take(np.sort(validated))
    write(settings, settings.out_dir / "config.json")
    fitted = room.fit(settings, images.take(np.sort(chosen)), validation)
    held_out = images.take(test)
    temperature = fit_temperature(
        _logits(fitted.network, validation), torch.from_numpy(validation.label_ids)
    )
    shares = torch.softmax(_logits(fitted.network, held_out) / temperature, dim=1).numpy()
    write_json(settings.out_dir / "fold.json", {"best_epoch": fitted.epoch})
    _write_answers(settings.out_dir / "answers.csv",
                   Answered(held_out.paths, held_out.label_ids, shares), images.labels)  # fmt: skip


@torch.inference_mode()
def _logits(network: nn.Module, images: LabelledImages) -> Tensor:
    """Return the logits float64 (N, K) of a trained network."""
    network.eval()
    planes = to_planes(images.images)
    found = [network(part.float() / 255.0) for part in torch.split(planes, _BATCH)]
    return torch.cat(found).double()


def _errors(answered: Answered) -> tuple[int, int]:
    wrong = answered.probabilities.argmax(axis=1) != answered.label_ids
    return int(wrong.sum()), len(wrong)


def _write_answers(path: Path, answered: Answered, labels: Sequence[str]) -> None:
    rows = (
        (name, labels[label_id], *(f"{share:.6f}" for share in shares))
        for name, label_id, shares in zip(
            answered.paths, answered.label_ids, answered.probabilities, strict=True
        )
    )
    beside = path.with_suffix(".part")
    write_rows(beside, ("path", "label", *labels), rows)
    beside.replace(path)  # whole, for a fold that has its answers is finished


def _read_answers(path: Path, labels: Sequence[str]) -> Answered:
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return Answered(
        tuple(row["path"] for row in rows),
        np.array([labels.index(row["label"]) for row in rows], dtype=np.int64),
        np.array([[float(row[name]) for name in labels] for row in rows]),
    )


def _report(config: Any, images: LabelledImages, answered: Sequence[Answered]) -> None:
    """Write the figures of the folds and of all of them together."""
    labels = images.labels
    whole = Answered(
        tuple(name for each in answered for name in each.paths),
        np.concatenate([each.label_ids for each in answered]),
        np.concatenate([each.probabilities for each in answered]),
    )
    measured = metrics.measure(whole.probabilities, whole.label_ids, labels)
    rows = list(_rows(config, answered, labels))
    doubts = list(_doubts(whole, labels))
    _write_answers(config.out_dir / "answers.csv", whole, labels)
    write_json(config.out_dir / "folds.json", {**measured.to_json(), "folds": rows,
                                               "doubtful": len(doubts)})  # fmt: skip
    table = Table.of(_FOLD, rows)
    (config.out_dir / "folds.md").write_text(table.markdown(), encoding="utf-8")
    if doubts:
        write_csv(config.out_dir / "doubtful.csv", doubts)
    page = _page(config, images, measured, (table, doubts))
    _log.info("%d errors in %d images (%.2f %%), %d labels are doubtful; %s",
              measured.errors, measured.n, 100 * measured.accuracy, len(doubts), page)  # fmt: skip


def _rows(
    config: Any, answered: Sequence[Answered], labels: Sequence[str]
) -> Iterator[dict[str, Any]]:
    for number, each in enumerate(answered):
        path = config.out_dir / f"fold_{number}" / "fold.json"
        measured = metrics.measure(each.probabilities, each.label_ids, labels)
        yield {
            "fold": number, "n": measured.n, "errors": measured.errors,
            "accuracy": round(measured.accuracy, 5), "macro_f1": round(measured.macro_f1, 5),
            **json.loads(path.read_text(encoding="utf-8")),
        }  # fmt: skip


def _doubts(answered: Answered, labels: Sequence[str]) -> Iterator[dict[str, str]]:
    for i in doubtful(answered):
        shares = answered.probabilities[i]
        yield {
            "path": answered.paths[i],
            "label": labels[answered.label_ids[i]],
            "probability": f"{shares[answered.label_ids[i]]:.4f}",
            "answer": labels[shares.argmax()],
            "its probability": f"{shares.max():.4f}",
        }


def _page(
    config: Any,
    images: LabelledImages,
    measured: metrics.ClassificationMetrics,
    found: tuple[Table, Sequence[Mapping[str, str]]],
) -> Path:
    """Write `folds.html`: figures, confusion, and the pictures whose labels are doubtful."""
    table, doubts = found
    place = {path: i for i, path in enumerate(images.paths)}
    gallery = tuple(
        Picture(
            data_uri(encode_png(images.images[place[each["path"]]])),
            (each["path"], f"label {each['label']}, answer {each['answer']}"),
        )
        for each in doubts[:_SHOWN]
    )
    low, high = measured.accuracy_interval_95_exact
    note = (
        f"{measured.errors} errors in {measured.n} images, each answered by a network that did not "
        f"see it: {100 * measured.accuracy:.2f} % ({100 * low:.2f} to {100 * high:.2f} %, exact)."
    )
    drawn = {"confusion": lambda: confusion_matrix(measured.confusion, measured.labels)}
    sections = (
        Section("Folds", table=table),
        Section("Confusion", figures=drawn),
        Section(
            "Labels that are doubtful",
            f"{len(doubts)} images that networks which did not see them are sure to be another "
            f"kind; the first {len(gallery)}. A person decides.", gallery=gallery,
        ),
    )  # fmt: skip
    title = f"Cross-validation of {config.model}"
    return write_sections(config.out_dir / "folds.html", title, note, sections)


def read(_: type[Any], arguments: Sequence[str] | None) -> Any:
    """Return the flags of the folds and of the training of the room that is named."""
    classifiers = {Task.CLASSIFICATION}
    return parse_for_room(folds_config, arguments, classifiers, "a classifier's room")


if __name__ == "__main__":
    sys.exit(run(main, object, read=read))
