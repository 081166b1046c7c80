"""Evaluate a model: `python -m training.evaluate mednist --data-dir DIR --out DIR`.

The model is a room, a model in the store (`liver`, imported or packaged; its newest version), or an
archive (`model_store/liver-1.0.mar`). A room whose evaluation asks for more than the flags here
names a configuration in its `training/<name>.py`, `EVALUATION`, which extends `EvaluateConfig`, and
a function `evaluate` that takes it; `FOLDERS` there names the label of each folder of images that
has another name.
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
from training.classification.evaluation import evaluate_classifier
from training.core.config import Setting, parse, run
from training.core.evaluation import MODEL, EvaluationRequest, measured_model
from training.frames.evaluation import evaluate_frames
from training.regression.evaluation import evaluate_regression
from training.volumes.evaluation import evaluate_segmentation

__all__ = ["EvaluateConfig", "folders_of", "main"]

_BY_TASK: Mapping[Task, Callable[[EvaluationRequest], object]] = {
    Task.CLASSIFICATION: evaluate_classifier,
    Task.REGRESSION: evaluate_regression,
    Task.VOLUMES: evaluate_segmentation,
    Task.FRAMES: evaluate_frames,
}


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate a shipped artifact on labelled images, by the code that serving uses."""

    model: Annotated[str, Setting(MODEL, positional=True)]
    data_dir: Annotated[
        Path, Setting("one folder of images per label, an npz, or images with masks")
    ] = Path("data")
    out: Annotated[Path, Setting("folder for metrics.json and report.html")] = Path(
        "outputs/evaluation"
    )
    weights: Annotated[Path | None, Setting("folder of another artifact than the shipped")] = None
    split: Annotated[Path | None, Setting("split.csv of a training: evaluate a part only")] = None
    part: Annotated[
        str, Setting("which part of --split or of an npz: train, validation or test")
    ] = "test"
    foreign_dir: Annotated[
        Path | None, Setting("images it should call unlike, one folder per kind")
    ] = None
    engine: Annotated[EngineName | None, Setting("what runs it, if not the room's choice")] = None
    threads: Annotated[int, Setting("of the engine; 0 takes every core", minimum=0)] = 0
    variant: Annotated[str, Setting("of the room, such as svm of mednist")] = ""


def main(config: EvaluateConfig) -> None:
    """Hand the request to the task of the model, or to what its own training module brings."""
    if type(config) is not EvaluateConfig:
        _own(config.model, "evaluate")(config)
        return
    with measured_model(config.model, config.variant, config.weights) as (spec, weights):
        if spec.task not in _BY_TASK:
            raise ConfigError(
                f"{config.model}: expected a model that answers images, got one of "
                f"{spec.task}; it is measured by the name of its room"
            )
        request = EvaluationRequest(
            spec, weights, config.data_dir, config.out, config.split, config.part,
            config.foreign_dir, config.engine, config.threads,
            folders=folders_of(config.model),
        )  # fmt: skip
        _BY_TASK[spec.task](request)


def folders_of(model: str) -> Mapping[str, str]:
    """Return the label of each folder of images that a room names otherwise."""
    found: Mapping[str, str] | None = _own(model, "FOLDERS")
    return found or {}


def _own(name: str, attribute: str) -> Any:
    """Return what the module of a room's training brings of this name, or None."""
    module = f"training.{name}"
    if name not in models.names() or importlib.util.find_spec(module) is None:
        return None
    return getattr(importlib.import_module(module), attribute, None)


def _read(config: type[EvaluateConfig], arguments: Sequence[str] | None) -> EvaluateConfig:
    """The flags of the model that is named, where it has its own."""
    given = sys.argv[1:] if arguments is None else arguments
    named = next((each for each in given if each in models.names()), None)
    own = None if named is None else _own(named, "EVALUATION")
    return parse(own or config, arguments)


if __name__ == "__main__":
    sys.exit(run(main, EvaluateConfig, read=_read))
