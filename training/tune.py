r"""Look for better settings of a training by one command that may be stopped and gone on with.

    nice -n 10 python -m training.tune segmentation_3d --data-dir data/Task04_Hippocampus \
        --trials 30 --most-epochs 40 --out-dir runs/tuning

Each trial trains one network with settings that Optuna draws (tree-structured Parzen estimator,
Bergstra et al., NIPS 2011) and scores it by its best validation; the first trial has the defaults.
Every other flag of the room's training holds for all trials. The study lies in `study.db`: the same
command goes on where the last one ended, until there are `--trials` finished ones. The test part
takes no part.

Writes `tuning.json`, `tuning.csv` and `tuning.html`: the trials, how much each setting mattered,
and the command that trains with the best.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
from matplotlib.figure import Figure
from optuna.exceptions import ExperimentalWarning
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as plots

import models
from medserve.errors import ConfigError
from medserve.spec import Task
from training.classification.fit import SCORE as ERRORS
from training.core.config import Setting, run, write
from training.core.files import write_csv, write_json
from training.core.fit import Fitted, Score
from training.core.report import Section, Table, write_sections
from training.core.rooms import parse_for_room, training_settings
from training.frames.module import SCORE as FRAME_DICE
from training.volumes.module import SCORE as VOLUME_DICE

__all__ = ["Range", "main", "read", "suggest", "tune_config"]

_log = logging.getLogger(__name__)

_STUDY = "settings"
_INTERRUPTED, _AGAIN = "interrupted", "made_again"  # notes in the study
_LEAST_FOR_IMPORTANCE = 4  # trials; with fewer the forest has nothing to grow on


@dataclass(frozen=True)
class Range:
    """Values that a setting may have in a trial.

    Attributes:
        low: Smallest.
        high: Largest.
        log: Whether factors are drawn, not differences.
        choices: The only values there are, instead of a range.
    """

    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[int, ...] = ()

    def draw(self, trial: optuna.Trial, name: str) -> float:
        """Return the value of the setting in this trial."""
        if self.choices:
            return int(trial.suggest_categorical(name, self.choices))
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def nearest(self, value: float) -> float:
        """Return the value that is nearest to a default; 0 of a width means the largest."""
        if self.choices:
            return (
                min(self.choices, key=lambda each: abs(each - value))
                if value
                else max(self.choices)
            )
        return min(max(value, self.low), self.high)


_RATE = Range(3e-4, 1e-2, log=True)
_SPACES: Mapping[Task, tuple[Score, Mapping[str, Range]]] = {
    Task.CLASSIFICATION: (
        ERRORS,
        {
            "learning_rate": Range(5e-4, 2e-2, log=True),
            "batch_size": Range(choices=(64, 128, 256)),
            "width": Range(choices=(8, 16, 24, 32, 48)),
            "weight_decay": Range(1e-3, 1e-1, log=True),
            "label_smoothing": Range(0.0, 0.15),
        },
    ),
    Task.VOLUMES: (
        VOLUME_DICE,
        {
            "learning_rate": _RATE,
            "batch_size": Range(choices=(1, 2, 4)),
            "width": Range(choices=(8, 16, 24)),  # multiples of 8, which every network takes
            "dropout": Range(0.0, 0.3),
            "l1": Range(1e-9, 1e-5, log=True),
            "weight_decay": Range(1e-4, 1e-1, log=True),
        },
    ),
    Task.FRAMES: (
        FRAME_DICE,
        {
            "learning_rate": Range(1e-4, 1e-2, log=True),
            "batch_size": Range(choices=(4, 8, 16)),
            "dropout": Range(0.0, 0.5),
            "weight_decay": Range(1e-7, 1e-2, log=True),
            "dice_weight": Range(0.25, 4.0, log=True),
            "zoom": Range(0.0, 0.5),
        },
    ),
}


def tune_config(model: str) -> type[Any]:
    """Return the settings of a search: those of the room's training, and how trials are drawn."""
    base = importlib.import_module(f"training.{model}").TrainConfig
    made = dataclasses.make_dataclass(
        "TuneConfig",
        [
            ("model", Annotated[str, Setting("name of a room", positional=True)], model),
            ("out_dir", Annotated[Path, Setting("folder of study, trials and report")],
             Path("runs/tuning")),
            ("trials", Annotated[int, Setting("finished ones that end the study", minimum=1)], 30),
            ("least_epochs", Annotated[int, Setting("fewest that a trial draws", minimum=1)], 10),
            ("most_epochs", Annotated[int, Setting("most that a trial draws", minimum=1)], 40),
        ],
        bases=(base,),
        frozen=True,
    )  # fmt: skip
    made.__doc__ = f"Look for better settings of the training of {model}."
    return made


def main(config: Any) -> None:
    """Run trials until there are enough, then write the report."""
    if config.least_epochs > config.most_epochs:
        raise ConfigError(
            f"expected --least-epochs up to --most-epochs, got {config.least_epochs} and "
            f"{config.most_epochs}"
        )
    module = importlib.import_module(f"training.{config.model}")
    config.out_dir.mkdir(parents=True, exist_ok=True)
    write(config, config.out_dir / "config.json")
    study = _open(config)
    missing = config.trials - len(_finished(study))
    if missing > 0:
        train: Callable[[Any], Fitted] = module.prepare_training(training_settings(config, {}))

        def objective(trial: optuna.Trial) -> float:
            settings = suggest(config, trial)
            started = time.perf_counter()
            try:
                fitted = train(settings)
            except KeyboardInterrupt:
                trial.set_user_attr(_INTERRUPTED, True)
                raise
            trial.set_user_attr("minutes", round((time.perf_counter() - started) / 60, 2))
            trial.set_user_attr("best_epoch", fitted.epoch)
            return fitted.score

        study.optimize(objective, n_trials=missing, catch=(RuntimeError, ValueError))
    _report(config, study)


def suggest(config: Any, trial: optuna.Trial) -> Any:
    """Return the settings of one trial: those given, and those of the task that bear on the score.

    The type is the room's `TrainConfig`.
    """
    drawn: dict[str, Any] = {
        "epochs": trial.suggest_int("epochs", config.least_epochs, config.most_epochs),
        "out_dir": config.out_dir / f"trial_{trial.number:03d}",
    }
    drawn |= {name: each.draw(trial, name) for name, each in _space(config).items()}
    return training_settings(config, drawn)


def _score(config: Any) -> Score:
    return _SPACES[models.spec(config.model).task][0]


def _space(config: Any) -> dict[str, Range]:
    """What is drawn: the settings of the task that the room's training has."""
    known = {field.name for field in dataclasses.fields(config)}
    space = _SPACES[models.spec(config.model).task][1]
    return {name: each for name, each in space.items() if name in known}


def _open(config: Any) -> optuna.Study:
    """The study of `out_dir`; what an interruption cut short is drawn once more."""
    storage = f"sqlite:///{(config.out_dir / 'study.db').absolute()}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # our own lines say the same
    study = optuna.create_study(
        study_name=_STUDY, storage=storage, load_if_exists=True,
        direction="maximize" if _score(config).higher_is_better else "minimize",
    )  # fmt: skip
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


def _defaults(config: Any) -> dict[str, Any]:
    """Return the first trial: what a training does that is told nothing else."""
    space = _space(config)
    nearest = {name: each.nearest(getattr(config, name)) for name, each in space.items()}
    return {"epochs": config.most_epochs, **nearest}


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(states=(TrialState.COMPLETE,))


def _report(config: Any, study: optuna.Study) -> None:
    trials = _finished(study)
    if not trials:
        raise ConfigError("expected a finished trial to report on, but every one failed; see above")
    best = study.best_trial
    rows = [
        {"trial": trial.number, "score": trial.value, **trial.params, **trial.user_attrs}
        for trial in trials
    ]
    content = {
        "model": config.model,
        "score": _score(config).name.replace("_", " "),
        "higher_is_better": _score(config).higher_is_better,
        "trials": len(trials),
        "failed": len(study.get_trials(states=(TrialState.FAIL,))),
        "best_trial": best.number,
        "best_score": best.value,
        "best": best.params,
        "default_score": trials[0].value if trials[0].number == 0 else None,
        "importance": _importance(study, trials),
        "command": _command(config, best),
        "rows": rows,
    }
    write_json(config.out_dir / "tuning.json", content, indent=1)
    write_csv(config.out_dir / "tuning.csv", rows)
    page = _page(config.out_dir, content, study)
    _log.info("best of %d trials: %s %.4f with %s; %s", len(trials), content["score"], best.value,
              best.params, page)  # fmt: skip


def _importance(study: optuna.Study, trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Share of the score's variance that each setting explains (fANOVA, Hutter et al., 2014)."""
    values = [float(trial.values[0]) for trial in trials]
    if len(trials) < _LEAST_FOR_IMPORTANCE or max(values) == min(values):
        return {}
    evaluator = FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: round(float(share), 4) for name, share in shares.items()}


def _page(out_dir: Path, content: Mapping[str, Any], study: optuna.Study) -> Path:
    """Write `tuning.html`: the best, Optuna's own plots of the study, and every trial."""
    score = content["score"]
    best = [(f"best {score}", f"{content['best_score']:.4f}", str(content["best_trial"]))]
    if content["default_score"] is not None:
        best.append(("with the defaults", f"{content['default_score']:.4f}", "0"))
    figures = {"history": lambda: _plot(plots.plot_optimization_history, study, target_name=score)}
    if content["importance"]:
        evaluator = FanovaImportanceEvaluator(seed=0)
        figures["importance"] = lambda: _plot(
            plots.plot_param_importances, study, evaluator=evaluator
        )
    figures["settings"] = lambda: _plot(plots.plot_slice, study, target_name=score)
    shown = {"trial": lambda row: row["trial"], score: lambda row: f"{row['score']:.4f}"}
    for name in content["best"]:
        shown[name.replace("_", " ")] = functools.partial(_setting, name)
    shown["best epoch"] = lambda row: row["best_epoch"]
    shown["minutes"] = lambda row: row["minutes"]
    rows = sorted(content["rows"], key=lambda row: row["score"],
                  reverse=content["higher_is_better"])  # fmt: skip
    sections = (
        Section("Best", table=Table(("", score, "trial"), tuple(best))),
        Section("Train with the best", command=content["command"]),
        Section("Scores and settings", "" if content["importance"] else
                "Too few trials to say which setting mattered.", figures=figures),
        Section("Trials", table=Table.of(shown, rows)),
    )  # fmt: skip
    note = (
        f"{content['trials']} finished trials, {content['failed']} ended early. Scored on the "
        "validation part: the best of many is better there than it is."
    )
    return write_sections(out_dir / "tuning.html", f"Tuning of {content['model']}", note, sections)


def _setting(name: str, row: Mapping[str, Any]) -> str:
    return f"{row[name]:.3g}"


def _plot(plot: Callable[..., Any], study: optuna.Study, **options: Any) -> Figure:
    """Return a plot of Optuna's as a figure that pyplot does not keep."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", "Attempting to set identical")  # one value of a setting
        axes = np.atleast_1d(plot(study, **options))
    figure: Figure = axes.flat[0].get_figure()
    plt.close(figure)
    return figure


def _command(config: Any, best: FrozenTrial) -> str:
    """Return the command that trains with the best, and with what was given for all trials."""
    base = importlib.import_module(f"training.{config.model}").TrainConfig
    default, given = base(), training_settings(config, {"out_dir": base().out_dir})
    changed = {
        field.name: getattr(given, field.name)
        for field in dataclasses.fields(base)
        if getattr(given, field.name) != getattr(default, field.name)
    }
    flags = " ".join(_flag(name, value) for name, value in (changed | best.params).items())
    return f"python -m training.{config.model} {flags}"


def _flag(name: str, value: object) -> str:
    spoken = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{spoken}" if value else f"--no-{spoken}"
    return f"--{spoken} {value:.4g}" if isinstance(value, float) else f"--{spoken} {value}"


def read(_: type[Any], arguments: Sequence[str] | None) -> Any:
    """Return the flags of the search and of the training of the room that is named."""
    return parse_for_room(tune_config, arguments, _SPACES, "a room to tune")


if __name__ == "__main__":
    sys.exit(run(main, object, read=read))
