"""Commands that take a room's name, and beside their own flags every flag of its training."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import models
from medserve.errors import ConfigError
from medserve.spec import Task
from training.core.config import parse

__all__ = ["parse_for_room", "training_settings"]


def parse_for_room(
    config_of: Callable[[str], type[Any]],
    arguments: Sequence[str] | None,
    tasks: Container[Task],
    what: str,
) -> Any:
    """Parse the flags of a command and of the training of the room that is named among them.

    Args:
        config_of: Name of a room -> the settings of the command, which extend its `TrainConfig`.
        arguments: Of the command line; those of the process where None.
        tasks: Of the rooms that the command takes.
        what: What the name should have been of, for the error.

    Raises:
        ConfigError: no such room is named.
    """
    given = sys.argv[1:] if arguments is None else arguments
    rooms = [name for name in models.names() if models.spec(name).task in tasks]
    named = next((each for each in given if each in rooms), None)
    if named is None:
        raise ConfigError(f"expected the name of {what}: {', '.join(rooms)}")
    return parse(config_of(named), arguments)


def training_settings(config: Any, changed: Mapping[str, object]) -> Any:
    """Return the `TrainConfig` of the room `config.model`: what is given, and what is changed."""
    base = importlib.import_module(f"training.{config.model}").TrainConfig
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(base)}
    return base(**given | dict(changed))
