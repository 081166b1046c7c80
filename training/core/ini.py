"""Settings from a config.ini, between the defaults and the flags.

    python -m training.diffusion_sampler --config config.ini --epochs 5

Every value of such a file is text ("False" is a true string in Python): it is read as the type of
its field and within the bounds of its flag, and an error names file, section, key and value.
"""

from __future__ import annotations

import argparse
import configparser
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from medserve.errors import ConfigError
from training.core.config import parse_flags, parse_value

__all__ = ["parse_with_file", "read_ini"]

_log = logging.getLogger(__name__)

Config = TypeVar("Config")


def parse_with_file(
    config: type[Config],
    arguments: Sequence[str] | None = None,
    aliases: Mapping[str, str] | None = None,
    implies: Callable[[Mapping[str, object]], Mapping[str, object]] | None = None,
) -> Config:
    """Build the config from `--config FILE` and the other flags, which beat the file.

    One line of the log says which values came from where.

    Args:
        config: The dataclass of the settings.
        arguments: Of the command line; those of this process where there are none.
        aliases: Key in the file -> field, where they differ.
        implies: Takes what is given and returns the defaults that it changes.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    found, rest = finder.parse_known_args(arguments)
    stated = read_ini(found.config, config, aliases) if found.config else {}
    flags = parse_flags(config, rest)
    given = stated | flags
    meant = {} if implies is None else dict(implies(given))
    sources = {
        str(found.config): {name: each for name, each in stated.items() if name not in flags},
        "flags": flags,
        "meant by these": {name: each for name, each in meant.items() if name not in given},
    }
    told = [
        f"{source}: {', '.join(f'{name}={value}' for name, value in values.items())}"
        for source, values in sources.items()
        if values
    ]
    _log.info("%s", "; ".join([*told, "the rest: defaults"]))
    return config(**meant | given)


def read_ini(
    path: Path, config: type[Any], aliases: Mapping[str, str] | None = None
) -> dict[str, object]:
    """Field name -> value of every key in the file, whatever its section.

    Raises:
        ConfigError: no such file, no INI, a key that no field has, or a value it cannot take.
    """
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        reason = str(error).replace("\n", " ")
        raise ConfigError(f"{path}: expected an INI file, got none that reads ({reason})") from None
    known = {field.name: field.name for field in dataclasses.fields(config)} | dict(aliases or {})
    values: dict[str, object] = {}
    for section in parser.sections():
        for key, text in parser.items(section):
            if key not in known:
                raise ConfigError(
                    f"{path}: [{section}] {key}: no such key; known are {', '.join(sorted(known))}"
                )
            try:
                values[known[key]] = parse_value(config, known[key], text)
            except ConfigError as error:
                raise ConfigError(f"{path}: [{section}] {key}: {error}") from None
    return values
