"""Evaluate a shipped model: `python -m training.evaluate mednist --data-dir DIR --out DIR`.

Every room that has a `training/<name>.py` with a function `evaluate(request)` can be named. One
that asks for more than the flags here names a configuration of its own, `EVALUATION`, which
extends `EvaluateConfig` and is handed over as it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import models
from medserve.errors import ConfigError
from medserve.spec import EngineName
from training.classification.evaluation import EvaluationRequest
from training.core.config import Setting, parse, run

__all__ = ["EvaluateConfig", "main"]


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
    """Hand the request to the room's own training module."""
    models.room(config.model, config.variant)  # names those there are where it is not one
    module = f"training.{config.model}"
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"expected {module} to evaluate {config.model}, but there is no such file"
        )
    own = type(config) is not EvaluateConfig
    importlib.import_module(module).evaluate(config if own else _request(config))


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
    module = f"training.{named}"
    if named is not None and importlib.util.find_spec(module) is not None:
        config = getattr(importlib.import_module(module), "EVALUATION", config)
    return parse(config, arguments)


if __name__ == "__main__":
    sys.exit(run(main, EvaluateConfig, read=_read))
