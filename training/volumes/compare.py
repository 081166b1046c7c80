r"""Train every network of the room under one equal budget and put the results into one table.

    nice -n 10 python -m training.volumes.compare --data-dir data/Task04_Hippocampus \
        --minutes 8 --threads 2 --out-dir runs/compare --install

Equal for all: data, split, loss, augmentation, optimiser, schedule, batch, patch, seed and either
`--minutes` of wall time each (the schedule ends with them) or, with `--minutes 0`, `--epochs`.
Scored on volumes that no training and no choice of an epoch saw (`--part test`), through the
exported ONNX file and the code of serving, on the volumes' own grids.

A network that is done is not trained again: the same command goes on after an interruption.
`--retime` measures the speed of finished ones once more, best on an otherwise idle machine;
`--install` copies `comparison.json`, `comparison.csv` and `comparison.md` into the room.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

import models
from medserve.errors import ConfigError
from medserve.inference.engines import load_engine
from medserve.inference.volume_pipeline import VolumePipeline
from medserve.spec import EngineName, Precision
from training.core.config import Setting, run, write
from training.core.evaluation import predict_by
from training.core.export import export_network, sha256
from training.core.files import require_folder, write_json
from training.core.segmentation import Material
from training.core.ship import install_files
from training.core.split import PARTS, Split, write_split
from training.volumes import comparison_report, train
from training.volumes.config import VolumesConfig
from training.volumes.data import Case, LoadedCase, find_cases, load_cases, split_cases
from training.volumes.evaluation import measure_cases
from training.volumes.metrics import summarise

__all__ = ["CompareConfig", "main"]

_log = logging.getLogger(__name__)

_ENGINES = (EngineName.OPENVINO, EngineName.ONNXRUNTIME)
_TIMED = 3  # volumes, the median one counts
_REPEATS = 3  # of each, the fastest counts: what slows a run down is another process
_TOLERANCE = 2e-3  # of logits in a batch of noise; V-Net's differ by 2e-4 between engines
_RESULT = "result.json"
_INSTALLED = ("comparison.json", "comparison.csv", "comparison.md")


@dataclass(frozen=True)
class CompareConfig(VolumesConfig):
    """Train and compare the networks of a room under one equal budget."""

    data_dir: Annotated[Path, Setting("labelled volumes, as for the training")] = Path(
        "data/Task04_Hippocampus"
    )
    out_dir: Annotated[Path, Setting("folder for a folder per network and the table")] = Path(
        "runs/compare"
    )
    room: Annotated[str, Setting("room whose model-config.yaml states labels and window")] = (
        "segmentation_3d"
    )
    minutes: Annotated[float, Setting("wall time for each; 0: count epochs", minimum=0.0)] = 8.0
    epochs: Annotated[int, Setting("passes over the volumes, at most", minimum=1)] = 500
    patience: Annotated[int, Setting("validations without a better one", minimum=1)] = 10_000
    threads: Annotated[int, Setting("of training and engines", minimum=1)] = 2
    install: Annotated[bool, Setting("copy the table into the room when done")] = False
    networks: Annotated[str, Setting("names, with commas between; or all")] = "all"
    part: Annotated[str, Setting("which part is scored: test or validation")] = "test"
    retime: Annotated[bool, Setting("measure the speed of finished networks again")] = False


def main(config: CompareConfig) -> None:
    """Train what is not trained yet, then write the table of all that is."""
    chosen = _networks(config)
    if config.part not in PARTS[1:]:
        raise ConfigError(f"expected --part test or validation, got {config.part!r}")
    pipeline = VolumePipeline(models.spec(config.room))
    cases = find_cases(require_folder(config.data_dir, "--data-dir"))
    split = split_cases(cases, config.folds, config.test_share, config.seed)
    config.out_dir.mkdir(parents=True, exist_ok=True)
    write(config, config.out_dir / "config.json")
    write_split(config.out_dir / "split.csv", split)
    names = split.parts(config.fold)[config.part]
    scored = [case for case in cases if case.name in names]
    learned = [case for case in cases if case.name not in split.test]
    study = _Study(config, pipeline, cases, split, learned, scored)
    failed = []
    for network in chosen:
        try:
            study.compare(network)
        except Exception:  # hours of the others are worth more than an early end
            _log.exception("%s failed", network)
            failed.append(network)
    rows = [json.loads(study.result(network).read_text(encoding="utf-8")) for network in
            models.networks(config.room) if study.result(network).is_file()]  # fmt: skip
    if rows:
        comparison_report.write(config.out_dir, rows, study.budget())
    if config.install and rows:
        install_files({models.room(config.room): [config.out_dir / name for name in _INSTALLED]})
    if failed:
        raise ConfigError(f"{', '.join(failed)} failed, see above; run again for these alone")


def _networks(config: CompareConfig) -> list[str]:
    known = list(models.networks(config.room))
    if config.networks == "all":
        return known
    names = [each.strip() for each in config.networks.split(",") if each.strip()]
    if unknown := [each for each in names if each not in known]:
        raise ConfigError(f"expected --networks among {', '.join(known)}, got {', '.join(unknown)}")
    return names


@dataclass(frozen=True)
class _Study:
    """What all networks have in common."""

    config: CompareConfig
    pipeline: VolumePipeline
    cases: Sequence[Case]
    split: Split
    learned: Sequence[Case]
    scored: Sequence[Case]

    @functools.cached_property
    def material(self) -> Material[Case, LoadedCase]:
        """What is trained on and validated, read once and only if a network is to be trained."""
        loaded = {case.name: case for case in load_cases(self.learned, self.pipeline)}
        return Material(self.cases, self.split, loaded)

    def result(self, network: str) -> Path:
        """Where the row of a finished network lies."""
        return self.config.out_dir / network / _RESULT

    def budget(self) -> dict[str, Any]:
        """What is equal for all; a row made under another one is made anew."""
        config = self.config
        parts = self.split.parts(config.fold)
        return {
            "minutes": config.minutes or None,
            "epochs": None if config.minutes else config.epochs,
            "batch_size": config.batch_size,
            "learning_rate": config.learning_rate,
            "precision": str(config.precision),
            "threads": config.threads,
            "seed": config.seed,
            "window": list(self.pipeline.window.size),
            "train_volumes": len(parts["train"]),
            "scored_part": config.part,
            "scored_volumes": len(self.scored),
            "flips": self.pipeline.defaults().flips,
        }

    def compare(self, network: str) -> None:
        """Train, export, score and time one network, unless its row is there."""
        path = self.result(network)
        row: dict[str, Any] = {}
        if path.is_file():
            row = json.loads(path.read_text(encoding="utf-8"))
        folder = path.parent / "artifact"
        if row.get("budget") != self.budget():
            row = self._train(network)
            row |= {"artifact_mb": round((folder / "model.onnx").stat().st_size / 1e6, 3)}
            row |= self._score(folder)
        elif not self.config.retime:
            _log.info("%s is done: %s", network, path)
            return
        row["ms_per_volume"] = {name.value: self._milliseconds(folder, name) for name in _ENGINES}
        write_json(path, row)
        _log.info("%s: Dice %s, %s ms", network, row["dice"], row["ms_per_volume"])

    def _train(self, network: str) -> dict[str, Any]:
        config = self.config
        folder = config.out_dir / network
        if config.minutes and folder.is_dir():
            shutil.rmtree(folder)  # a half-used budget of minutes cannot be gone on with fairly
        settings = dataclasses.replace(
            config, network=network, out_dir=folder, resume=not config.minutes
        )
        material = self.material  # read before the clock starts
        started, spent = time.perf_counter(), time.process_time()
        fitted = train.train_member(settings, 0, self.pipeline, material)
        minutes = [round((clock() - since) / 60, 2) for clock, since in
                   ((time.perf_counter, started), (time.process_time, spent))]  # fmt: skip
        example = torch.rand(
            2, self.pipeline.spec.input.channels, *self.pipeline.window.size,
            generator=torch.Generator().manual_seed(config.seed),
        )  # fmt: skip
        exported = export_network(
            fitted.network, folder / "artifact", example, ["logits"], _TOLERANCE
        )
        return {
            "network": network,
            "budget": self.budget(),
            "parameters": sum(each.numel() for each in fitted.network.parameters()),
            "epochs": fitted.epoch if config.minutes else config.epochs,
            "best_epoch": fitted.epoch,
            "validation_dice": round(fitted.score, 5),
            "minutes": minutes[0],
            "cpu_minutes": minutes[1],
            "largest_export_difference": exported.largest_difference,
            "onnx_sha256": sha256(exported.onnx),
        }  # fmt: skip

    def _score(self, folder: Path) -> dict[str, Any]:
        """Dice and the rest over the scored part, by the ONNX file."""
        engine = load_engine(
            EngineName.ONNXRUNTIME, folder, precision=Precision.F32, threads=self.config.threads
        )
        measured = measure_cases(self.pipeline, predict_by(engine), self.scored)
        scores = [score for each in measured for score in each.scores]
        content = summarise(scores).to_json()
        content["dice_per_case"] = {
            each.case.name: [round(score.dice, 5) for score in each.scores] for each in measured
        }
        return content

    def _milliseconds(self, folder: Path, name: EngineName) -> float:
        """From the file's bytes to the mask on its grid, threads as stated."""
        engine = load_engine(name, folder, precision=Precision.F32, threads=self.config.threads)
        predict = predict_by(engine)
        timed = self.scored[:_TIMED]
        measure_cases(self.pipeline, predict, timed[:1])  # the first call builds the engine
        runs = [measure_cases(self.pipeline, predict, timed) for _ in range(_REPEATS)]
        fastest = [min(each.seconds for each in repeats) for repeats in zip(*runs, strict=True)]
        return round(1000.0 * statistics.median(fastest), 1)


if __name__ == "__main__":
    sys.exit(run(main, CompareConfig))
