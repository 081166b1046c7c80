"""Compare networks for blood cells: `python -m training.cells.compare --data-dir DIR`.

Each network gets the same processor time, the same pictures and the same changes to them; all
answer for the same held-out pictures. Writes `comparison.json`, `comparison.md` and
`comparison.html` after each network, and its weights as `NAME/network.pt`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import dataclass
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
from training.cells import budget, comparison_report
from training.cells.augment import CellAugment
from training.cells.budget import Budget, BudgetedClassifier
from training.cells.comparison_report import Row
from training.cells.data import BarcelonaDataModule, BarcelonaDataset, SourceConfig
from training.classification import metrics
from training.core.config import Setting, run, write
from training.core.files import require_folder
from training.core.fit import expected_remarks, loggers

__all__ = ["NETWORKS", "CompareConfig", "main"]

_log = logging.getLogger(__name__)

SCRATCH = "blood_cell"  # the room's own network, from random weights
NETWORKS = (SCRATCH, *Backbone)
# Without batch norm a network cannot take the steps of the others.
_CAREFUL = {Backbone.ALEXNET: 3e-4, Backbone.VGG16: 2e-4}
_BATCH = 256  # images a pass when answering
_TIMED = 20  # answers to one image; the median counts


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
        page = comparison_report.write(config.out_dir, rows, _about(config, module))
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
    settings = json.loads((config.out_dir / "config.json").read_text(encoding="utf-8"))
    kept = (
        "weights",
        "seconds",
        "batch_size",
        "learning_rate",
        "window",
        "side",
        "threads",
        "seed",
    )
    return {"images": counts, **{name: settings[name] for name in kept}}


if __name__ == "__main__":
    sys.exit(run(main, CompareConfig))
