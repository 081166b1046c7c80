r"""Look for better settings of a training by one command that may be stopped and gone on with.

    nice -n 10 python -m training.volumes.tuning --data-dir data/Task04_Hippocampus \
        --trials 30 --most-epochs 40 --out-dir runs/tuning

Each trial trains one network with settings that Optuna draws (tree-structured Parzen estimator,
Bergstra et al., NIPS 2011) and scores it by its best validation Dice; the first trial has the
defaults. The study lies in `study.db`: the same command goes on where the last one ended, until
there are `--trials` finished ones. The test part takes no part.

Writes `tuning.json`, `tuning.csv` and `tuning.html`: the trials, how much each setting mattered,
and the command that trains with the best.
"""

from __future__ import annotations

import csv
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

import models
from medserve.errors import ConfigError
from medserve.inference.volume_pipeline import VolumePipeline
from models.segmentation_3d.network import NetworkName
from training import segmentation_3d as training
from training.core.config import Setting, TrainPrecision, run, write
from training.core.files import require_folder
from training.core.split import write_split
from training.volumes import tuning_report
from training.volumes.data import find_cases, load_cases, split_cases

__all__ = ["TuneConfig", "main", "suggest"]

_log = logging.getLogger(__name__)

_STUDY = "segmentation"
_INTERRUPTED, _AGAIN = "interrupted", "made_again"  # notes in the study
_WIDTHS = (8, 16, 24)  # multiples of 8, which every network takes
_LEAST_FOR_IMPORTANCE = 4  # trials; with fewer the forest has nothing to grow on


@dataclass(frozen=True)
class TuneConfig:
    """Look for better settings of the segmentation's training."""

    data_dir: Annotated[Path, Setting("labelled volumes, as for the training")] = Path(
        "data/Task04_Hippocampus"
    )
    out_dir: Annotated[Path, Setting("folder of the study, its trials and its report")] = Path(
        "runs/tuning"
    )
    room: Annotated[str, Setting("room whose model-config.yaml states labels and window")] = (
        training.NAME
    )
    network: Annotated[NetworkName, Setting("which of the room's networks")] = NetworkName.UNET
    trials: Annotated[int, Setting("finished ones after which the study ends", minimum=1)] = 30
    least_epochs: Annotated[int, Setting("fewest that a trial may draw", minimum=1)] = 10
    most_epochs: Annotated[int, Setting("most that a trial may draw", minimum=1)] = 40
    precision: Annotated[TrainPrecision, Setting("arithmetic of the trials")] = TrainPrecision.BF16
    threads: Annotated[int, Setting("CPU threads; 0 leaves torch's choice", minimum=0)] = 0
    folds: Annotated[int, Setting("parts of which the first validates", minimum=2)] = 11
    test_share: Annotated[
        float, Setting("share of the subjects that no trial sees", minimum=0.0, maximum=0.9)
    ] = 0.154
    seed: Annotated[int, Setting("of split, weights and of what is drawn", minimum=0)] = 0


def main(config: TuneConfig) -> None:
    """Run trials until there are enough, then write the report."""
    if config.least_epochs > config.most_epochs:
        raise ConfigError(
            f"expected --least-epochs up to --most-epochs, got {config.least_epochs} and "
            f"{config.most_epochs}"
        )
    pipeline = VolumePipeline(models.spec(config.room))
    cases = find_cases(require_folder(config.data_dir, "--data-dir"))
    split = split_cases(cases, config.folds, config.test_share, config.seed)
    study = _open(config)
    write(config, config.out_dir / "config.json")
    write_split(config.out_dir / "split.csv", split)
    missing = config.trials - len(_finished(study))
    if missing > 0:
        used = [case for case in cases if case.name not in split.test]
        loaded = {case.name: case for case in load_cases(used, pipeline)}

        def objective(trial: optuna.Trial) -> float:
            settings = suggest(config, trial)
            started = time.perf_counter()
            try:
                fitted = training.train_member(settings, 0, pipeline, split, loaded)
            except KeyboardInterrupt:
                trial.set_user_attr(_INTERRUPTED, True)
                raise
            trial.set_user_attr("minutes", round((time.perf_counter() - started) / 60, 2))
            trial.set_user_attr("best_epoch", fitted.epoch)
            return fitted.score

        study.optimize(objective, n_trials=missing, catch=(RuntimeError, ValueError))
    _report(config, study)


def suggest(config: TuneConfig, trial: optuna.Trial) -> training.TrainConfig:
    """The settings of one trial: all that a training can be told and that bears on its result."""
    return training.TrainConfig(
        data_dir=config.data_dir,
        out_dir=config.out_dir / f"trial_{trial.number:03d}",
        room=config.room,
        network=config.network,
        learning_rate=trial.suggest_float("learning_rate", 3e-4, 1e-2, log=True),
        batch_size=trial.suggest_categorical("batch_size", (1, 2, 4)),
        epochs=trial.suggest_int("epochs", config.least_epochs, config.most_epochs),
        width=trial.suggest_categorical("width", _WIDTHS),
        dropout=trial.suggest_float("dropout", 0.0, 0.3),
        l1=trial.suggest_float("l1", 1e-9, 1e-5, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True),
        precision=config.precision,
        threads=config.threads,
        folds=config.folds,
        test_share=config.test_share,
        seed=config.seed,
    )


def _open(config: TuneConfig) -> optuna.Study:
    """The study of `out_dir`; what an interruption cut short is drawn once more."""
    config.out_dir.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{(config.out_dir / 'study.db').absolute()}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # our own lines say the same
    study = optuna.create_study(
        study_name=_STUDY, storage=storage, direction="maximize", load_if_exists=True
    )
    # Another seed after each interruption, or the same draws would come again.
    study.sampler = optuna.samplers.TPESampler(seed=config.seed + len(study.trials))
    if not study.trials:
        study.enqueue_trial(_defaults(config))
    for trial in study.get_trials(states=(TrialState.RUNNING,)):  # its process was killed
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
    again = list(study.user_attrs.get(_AGAIN, []))
    for trial in study.get_trials(states=(TrialState.FAIL,)):
        if _INTERRUPTED in trial.user_attrs and trial.number not in again:
            study.enqueue_trial(trial.params)
            again.append(trial.number)
    study.set_user_attr(_AGAIN, again)
    return study


def _defaults(config: TuneConfig) -> dict[str, Any]:
    """The first trial: what a training does that is told nothing."""
    default = training.TrainConfig()
    return {
        "learning_rate": default.learning_rate,
        "batch_size": default.batch_size,
        "epochs": config.most_epochs,
        "width": default.width or _WIDTHS[-1],
        "dropout": default.dropout,
        "l1": default.l1 or 1e-9,
        "weight_decay": default.weight_decay,
    }


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(states=(TrialState.COMPLETE,))


def _report(config: TuneConfig, study: optuna.Study) -> None:
    trials = _finished(study)
    if not trials:
        raise ConfigError("expected a finished trial to report on, but every one failed; see above")
    best = study.best_trial
    rows = [
        {"trial": trial.number, "validation_dice": trial.value, **trial.params, **trial.user_attrs}
        for trial in trials
    ]
    content = {
        "network": config.network.value,
        "trials": len(trials),
        "failed": len(study.get_trials(states=(TrialState.FAIL,))),
        "best_trial": best.number,
        "best_validation_dice": best.value,
        "best": best.params,
        "default_validation_dice": trials[0].value if trials[0].number == 0 else None,
        "importance": _importance(study, trials),
        "command": _command(config, best),
        "rows": rows,
    }
    text = json.dumps(content, indent=1)
    (config.out_dir / "tuning.json").write_text(text + "\n", encoding="utf-8")
    with (config.out_dir / "tuning.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    page = tuning_report.write(config.out_dir, content)
    _log.info("best of %d trials: Dice %.4f with %s; %s", len(trials), best.value, best.params,
              page)  # fmt: skip


def _importance(study: optuna.Study, trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Share of the score's variance that each setting explains (fANOVA, Hutter et al., 2014)."""
    values = [float(trial.values[0]) for trial in trials]
    if len(trials) < _LEAST_FOR_IMPORTANCE or max(values) == min(values):
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: round(float(share), 4) for name, share in shares.items()}


def _command(config: TuneConfig, best: FrozenTrial) -> str:
    spoken: dict[type, Callable[[Any], str]] = {float: lambda value: f"{value:.4g}"}
    flags = " ".join(
        f"--{name.replace('_', '-')} {spoken.get(type(value), str)(value)}"
        for name, value in best.params.items()
    )
    return (
        f"python -m training.segmentation_3d --data-dir {config.data_dir} "
        f"--network {config.network} {flags}"
    )


if __name__ == "__main__":
    sys.exit(run(main, TuneConfig))
