"""Evaluate a shipped model: `python -m training.evaluate mednist --data-dir DIR --out DIR`.

Every room of classification and of volumes can be named. A `training/<name>.py` may bring a
function `evaluate(request)` of its own; one that asks for more than the flags here names a
configuration, `EVALUATION`, which extends `EvaluateConfig` and is handed over as it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import models
from medserve.errors import ConfigError
from medserve.spec import EngineName, Task
from training.classification.evaluation import EvaluationRequest, evaluate_classifier
from training.core.config import Setting, parse, run
from training.volumes.evaluation import evaluate_segmentation

__all__ = ["EvaluateConfig", "main"]

_BY_TASK: Mapping[Task, Callable[[str, EvaluationRequest], object]] = {
    Task.CLASSIFICATION: evaluate_classifier,
    Task.VOLUMES: evaluate_segmentation,
}


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate a shipped artifact on labelled images, by the code that serving uses."""

    model: Annotated[str, Setting("name of a room", positional=True)]
    data_dir: Annotated[Path, Setting("folder with one folder of images per label")] = Path("data")
    out: Annotated[Path, Setting("folder for metrics.json and report.html")] = Path(
        "outputs/evaluation"
    )
    weights: Annotated[Path | None, Setting("folder of another artifact than the shipped")] = None
    split: Annotated[Path | None, Setting("split.csv of a training: evaluate a part only")] = None
    part: Annotated[str, Setting("which part of --split: train, validation or test")] = "test"
    foreign_dir: Annotated[
        Path | None, Setting("images it should call unlike, one folder per kind")
    ] = None
    engine: Annotated[EngineName | None, Setting("what runs it, if not the room's choice")] = None
    threads: Annotated[int, Setting("of the engine; 0 takes every core", minimum=0)] = 0
    variant: Annotated[str, Setting("of the room, such as svm of mednist")] = ""


def main(config: EvaluateConfig) -> None:
    """Hand the request to the room's own training module, or to its task's."""
    models.room(config.model, config.variant)  # names those there are where it is not one
    own = _own(config.model, "evaluate")
    if own is not None:
        own(config if type(config) is not EvaluateConfig else _request(config))
        return
    task = models.spec(config.model, config.variant).task
    if task not in _BY_TASK:
        raise ConfigError(
            f"{config.model}: expected a function evaluate in training/{config.model}.py, as "
            f"models of {task} are measured in a way of their own; there is none"
        )
    _BY_TASK[task](config.model, _request(config))


def _own(name: str, attribute: str) -> Any:
    """What the module of a room's training brings of this name, or None."""
    module = f"training.{name}"
    if importlib.util.find_spec(module) is None:
        return None
    return getattr(importlib.import_module(module), attribute, None)


def _request(config: EvaluateConfig) -> EvaluationRequest:
    return EvaluationRequest(
        data_dir=config.data_dir,
        out_dir=config.out,
        weights=config.weights,
        split=config.split,
        part=config.part,
        foreign_dir=config.foreign_dir,
        engine=config.engine,
        threads=config.threads,
        variant=config.variant,
    )


def _read(config: type[EvaluateConfig], arguments: Sequence[str] | None) -> EvaluateConfig:
    """The flags of the model that is named, where it has its own."""
    given = sys.argv[1:] if arguments is None else arguments
    named = next((each for each in given if each in models.names()), None)
    own = None if named is None else _own(named, "EVALUATION")
    return parse(own or config, arguments)


if __name__ == "__main__":
    sys.exit(run(main, EvaluateConfig, read=_read))
