"""Compare networks for blood cells: `python -m training.classification.compare --data-dir DIR`.

Each network gets the same processor time, the same pictures and the same changes to them; all
answer for the same held-out pictures. Writes `comparison.json`, `comparison.md` and
`comparison.html` after each network, and its weights as `NAME/network.pt`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medserve.errors import ConfigError
from models.blood_cell.network import BloodCellNet
from models.blood_cell.transfer import Backbone, TransferNet, Weights
from training.classification import budget, metrics
from training.classification.barcelona import BarcelonaDataModule, BarcelonaDataset, SourceConfig
from training.classification.budget import Budget, BudgetedClassifier
from training.classification.cells import CellAugment
from training.classification.report import confusion_matrix, reliability_curve
from training.core.config import Setting, run, write
from training.core.files import require_folder, write_json
from training.core.fit import expected_remarks, loggers
from training.core.report import Section, Table, write_sections

__all__ = ["NETWORKS", "CompareConfig", "Row", "best_two", "main", "markdown"]

_log = logging.getLogger(__name__)

SCRATCH = "blood_cell"  # the room's own network, from random weights
NETWORKS = (SCRATCH, *Backbone)
# Without batch norm a network cannot take the steps of the others.
_CAREFUL = {Backbone.ALEXNET: 3e-4, Backbone.VGG16: 2e-4}
_BATCH = 256  # images a pass when answering
_TIMED = 20  # answers to one image; the median counts
_STATED = (
    "weights", "seconds", "batch_size", "learning_rate", "window", "side", "threads", "seed",
)  # fmt: skip
_COLUMNS: Mapping[str, Callable[[Any], object]] = {
    "network": lambda row: row["name"],
    "first weights": lambda row: row["start"],
    "accuracy (95 %)": lambda row: "{:.2f} % ({:.2f} to {:.2f})".format(
        *(100 * each for each in (row["accuracy"], *row["accuracy_interval_95_exact"]))
    ),
    "macro F1": lambda row: f"{row['macro_f1']:.4f}",
    "ECE": lambda row: f"{row['ece']:.4f}",
    "passes": lambda row: f"{row['passes']:.1f}",
    "parameters": lambda row: f"{row['parameters']:,}",
    "MB": lambda row: f"{row['megabytes']:.1f}",
    "ms an image": lambda row: f"{row['image_ms']:.1f}",
}
_CLASS_COLUMNS: Mapping[str, Callable[[tuple[str, metrics.ClassFigures]], object]] = {
    "class": lambda each: each[0],
    "images": lambda each: each[1].n,
    "precision": lambda each: f"{each[1].precision:.4f}",
    "recall": lambda each: f"{each[1].recall:.4f}",
    "F1": lambda each: f"{each[1].f1:.4f}",
}


@dataclass(frozen=True)
class CompareConfig:
    """Train and compare all networks for blood cells under one budget."""

    data_dir: Annotated[
        Path, Setting("class folders, a CSV path,label,split or the npz of BloodMNIST")
    ] = Path("data/PBC")
    out_dir: Annotated[Path, Setting("receives comparison.json, .md and .html")] = Path(
        "runs/blood_cell_comparison"
    )
    split: Annotated[Path | None, Setting("split.csv of a training, to hold out the same")] = None
    networks: Annotated[str, Setting(f"names with commas between, of {', '.join(NETWORKS)}")] = (
        ",".join(NETWORKS)
    )
    weights: Annotated[
        str, Setting("none: from random; imagenet: by torchvision; else a folder of NAME.pth")
    ] = "none"
    seconds: Annotated[
        float, Setting("processor time of each network's training", minimum=0.001)
    ] = 150.0
    batch_size: Annotated[int, Setting("images a step", minimum=2)] = 64
    learning_rate: Annotated[
        float, Setting("peak; AlexNet and VGG16 take a third and a fifth of it", minimum=0.0)
    ] = 1e-3
    window: Annotated[int, Setting("pixels of the middle square that is shown", minimum=8)] = 84
    side: Annotated[int, Setting("pixels that it is shown at; AlexNet needs 64", minimum=16)] = 64
    threads: Annotated[int, Setting("CPU threads; 0 leaves torch's choice", minimum=0)] = 1
    seed: Annotated[int, Setting("of split, weights, order and augmentation", minimum=0)] = 0


@dataclass(frozen=True, eq=False)
class Row:
    """One network of a comparison.

    Attributes:
        name: Of the network.
        start: Where its first weights came from.
        measured: On the test part.
        probabilities: float64 (N, K) on the test part.
        label_ids: int64 (N,), the truth.
        passes: How often each training image was seen, on average.
        parameters: Number of them.
        megabytes: Of the parameters.
        image_ms: Median time of one answer, in torch.
    """

    name: str
    start: str
    measured: metrics.ClassificationMetrics
    probabilities: npt.NDArray[np.float64]
    label_ids: npt.NDArray[np.int64]
    passes: float
    parameters: int
    megabytes: float
    image_ms: float

    @property
    def is_right(self) -> npt.NDArray[np.bool_]:
        """Bool (N,): which test images got their label."""
        return self.probabilities.argmax(axis=1) == self.label_ids

    def to_json(self) -> dict[str, Any]:
        """Members of `comparison.json`."""
        return {
            "name": self.name,
            "start": self.start,
            "passes": round(self.passes, 3),
            "parameters": self.parameters,
            "megabytes": round(self.megabytes, 2),
            "image_ms": round(self.image_ms, 2),
            **self.measured.to_json(),
        }


def main(config: CompareConfig) -> None:
    """Train each network, answer the test part, write the reports."""
    names = _names(config.networks)
    weights = _weights(config.weights)
    if config.threads:
        torch.set_num_threads(config.threads)
    write(config, config.out_dir / "config.json")
    source = SourceConfig(config.data_dir, config.split, config.seed)
    module = BarcelonaDataModule(source, config.batch_size)
    module.setup()
    rows: list[Row] = []
    for name in names:
        rows.append(_row(name, weights, module, config))
        page = _write(config.out_dir, rows, _about(config, module))
    _log.info("best: %s; %s", max(rows, key=lambda row: row.measured.accuracy).name, page)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in NETWORKS]
    if unknown or not names:
        raise ConfigError(
            f"expected --networks to name some of {', '.join(NETWORKS)}, "
            f"got {unknown[0] if unknown else 'none'!r}"
        )
    return names


def _weights(text: str) -> Weights | Path:
    if text in list(Weights):
        return Weights(text)
    require_folder(Path(text), "--weights")
    return Path(text)


def _row(
    name: str, weights: Weights | Path, data: BarcelonaDataModule, config: CompareConfig
) -> Row:
    """Train one network and measure it on the test part."""
    L.seed_everything(config.seed, verbose=False)
    classes = len(data.parts["test"].labelled.labels)
    rate = config.learning_rate
    network: nn.Module
    if name == SCRATCH:
        network = BloodCellNet(window=config.side, side=config.side)
    else:
        network = TransferNet(Backbone(name), classes, weights)
        rate *= _CAREFUL.get(Backbone(name), 1e-3) / 1e-3
    module = BudgetedClassifier(
        network.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        Budget(config.seconds, rate),
        CellAugment(window=config.window, side=config.side),
        config.seed,
    )
    trainer = L.Trainer(
        max_epochs=-1,
        accelerator="cpu",
        logger=loggers(config.out_dir / name),
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,  # it counts epochs, and a budget has none
        gradient_clip_val=1.0,
        limit_val_batches=0,
        log_every_n_steps=20,
        default_root_dir=config.out_dir,
    )
    with expected_remarks(*budget.EXPECTED):
        trainer.fit(module, data.train_dataloader())
    torch.save(network.state_dict(), config.out_dir / name / "network.pt")
    test = data.parts["test"]
    probabilities = _answers(module, test)
    label_ids = test.labelled.label_ids
    row = Row(
        name=name,
        start="random" if module.transfer is None else str(config.weights),
        measured=metrics.measure(probabilities, label_ids, test.labelled.labels),
        probabilities=probabilities,
        label_ids=label_ids,
        passes=module.images_seen / len(data.parts["train"]),
        parameters=sum(each.numel() for each in network.parameters()),
        megabytes=sum(each.numel() * each.element_size() for each in network.parameters()) / 1e6,
        image_ms=_image_ms(module, test),
    )
    _log.info("%s: %.2f %% after %.2f passes", name, 100.0 * row.measured.accuracy, row.passes)
    return row


def _answers(module: BudgetedClassifier, test: BarcelonaDataset) -> npt.NDArray[np.float64]:
    module.eval()
    answers = []
    for start in range(0, len(test), _BATCH):
        frames = test.planes[start : start + _BATCH].float() / 255.0
        answers.append(module.probabilities(frames))
    return torch.cat(answers).double().numpy()


def _image_ms(module: BudgetedClassifier, test: BarcelonaDataset) -> float:
    """Median wall time of one answer to one picture, in torch, in milliseconds."""
    frame = test.planes[:1].float() / 255.0
    module.probabilities(frame)
    times = []
    for _ in range(_TIMED):
        began = time.perf_counter()
        module.probabilities(frame)
        times.append(time.perf_counter() - began)
    return 1000.0 * float(np.median(times))


def _about(config: CompareConfig, data: BarcelonaDataModule) -> dict[str, Any]:
    """What all rows share."""
    counts = {name: len(part) for name, part in data.parts.items()}
    return {"images": counts, **{name: getattr(config, name) for name in _STATED}}


def _write(out_dir: Path, rows: list[Row], about: dict[str, Any]) -> Path:
    """Write the three forms of the comparison; returns the page."""
    content: dict[str, Any] = {
        "about": about,
        "rows": [row.to_json() for row in rows],
        "mcnemar": _tested(rows),
    }
    write_json(out_dir / "comparison.json", content)
    (out_dir / "comparison.md").write_text(markdown(content), encoding="utf-8")
    note = (
        f"Each learnt for {about['seconds']} s of processor time on {about['images']['train']} "
        f"pictures, the middle {about['window']} pixels shown at {about['side']}; all answered for "
        f"the same {about['images']['test']} pictures. Erythroblasts and platelets are no white "
        "blood cells."
    )
    networks = Section("All networks", _spoken(content), table=Table.of(_COLUMNS, content["rows"]))
    return write_sections(
        out_dir / "comparison.html", "Networks for blood cells under one budget", note,
        [networks, *map(_section, rows)],
    )  # fmt: skip


def best_two(rows: list[Row]) -> tuple[Row, Row] | None:
    """The two rows with the fewest errors, or None where there is but one."""
    ordered = sorted(rows, key=lambda row: (row.measured.errors, row.measured.ece))
    return (ordered[0], ordered[1]) if len(ordered) > 1 else None


def markdown(content: dict[str, Any]) -> str:
    """The table of `comparison.json`, and what McNemar's test says of the best two."""
    table, tested = Table.of(_COLUMNS, content["rows"]).markdown(), _spoken(content)
    return f"{table}\n{tested}\n" if tested else table


def _tested(rows: list[Row]) -> dict[str, Any] | None:
    best = best_two(rows)
    if best is None:
        return None
    found = metrics.mcnemar(best[0].is_right, best[1].is_right)
    return {"first": best[0].name, "second": best[1].name, **asdict(found)}


def _spoken(content: dict[str, Any]) -> str:
    if not (test := content["mcnemar"]):
        return ""
    return (
        f"Of the best two, only {test['first']} is right on {test['only_first']} images "
        f"and only {test['second']} on {test['only_second']}: McNemar's exact p = "
        f"{test['p_value']:.2g}."
    )


def _section(row: Row) -> Section:
    """Return the classes of one network, its confusion matrix and its reliability."""
    measured = row.measured
    return Section(
        row.name,
        table=Table.of(_CLASS_COLUMNS, list(zip(measured.labels, measured.per_class, strict=True))),
        figures={
            f"{row.name}/confusion_matrix": partial(
                confusion_matrix, measured.confusion, measured.labels
            ),
            f"{row.name}/reliability": partial(reliability_curve, row.probabilities, row.label_ids),
        },
    )


if __name__ == "__main__":
    sys.exit(run(main, CompareConfig))
