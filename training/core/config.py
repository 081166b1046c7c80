"""One way to configure every training: a frozen dataclass whose fields become command-line flags.

    @dataclass(frozen=True)
    class TrainConfig(FitConfig):
        width: Annotated[int, Setting("channels of the first stage", minimum=1)] = 16

    if __name__ == "__main__":
        sys.exit(run(main, TrainConfig))

Flag beats default; only a training that asks for it reads a file between the two
(`training.core.ini`). The resolved values are written beside the checkpoint by `write`.
"""

from __future__ import annotations

import argparse
import configparser
import dataclasses
import enum
import json
import logging
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from medserve.errors import ConfigError, MedserveError

__all__ = [
    "FitConfig",
    "Setting",
    "TrainPrecision",
    "parse",
    "parse_flags",
    "parse_value",
    "refuse_to_overwrite",
    "run",
    "write",
]

Config = TypeVar("Config")
_LAST = "checkpoints/last.ckpt"


class TrainPrecision(enum.StrEnum):
    """Arithmetic of the training, in Lightning's words."""

    F32 = "32-true"
    BF16 = "bf16-mixed"


@dataclass(frozen=True)
class Setting:
    """What a field is and why it has its default; the values that can work; how it is given."""

    why: str
    minimum: float | None = None
    maximum: float | None = None
    positional: bool = False


@dataclass(frozen=True)
class FitConfig:
    """What every training by gradient has; a model's own config extends it."""

    data_dir: Annotated[Path, Setting("folder of the training data")] = Path("data")
    out_dir: Annotated[Path, Setting("folder for checkpoints, logs and artifact")] = Path("runs")
    epochs: Annotated[int, Setting("passes over the training images", minimum=1)] = 40
    batch_size: Annotated[int, Setting("images a step", minimum=1)] = 256
    learning_rate: Annotated[float, Setting("peak of the one-cycle schedule", minimum=0.0)] = 4e-3
    weight_decay: Annotated[float, Setting("AdamW's, apart from the gradient", minimum=0.0)] = 0.02
    ema_decay: Annotated[
        float, Setting("memory of the weight average that is exported", minimum=0.0, maximum=1.0)
    ] = 0.998
    patience: Annotated[int, Setting("epochs without a better validation", minimum=1)] = 15
    precision: Annotated[TrainPrecision, Setting("arithmetic")] = TrainPrecision.F32
    threads: Annotated[int, Setting("CPU threads; 0 leaves torch's choice", minimum=0)] = 0
    devices: Annotated[int, Setting("accelerators in parallel; 0 takes all", minimum=0)] = 0
    seed: Annotated[int, Setting("of split, weights, order and augmentation", minimum=0)] = 0
    resume: Annotated[bool, Setting("go on from the last checkpoint in out_dir")] = False


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def parse(
    config: type[Config],
    arguments: Sequence[str] | None = None,
    given: Mapping[str, object] | None = None,
) -> Config:
    """Build the config from command-line flags; an impossible value exits with one line.

    Values in `given` (field name -> value) take the place of the defaults.
    """
    return config(**dict(given or {}) | parse_flags(config, arguments))


def parse_flags(config: type[Any], arguments: Sequence[str] | None = None) -> dict[str, object]:
    """Return field name -> value of the flags that are given; an impossible value exits."""
    description = (config.__doc__ or "").strip().splitlines()[0]
    parser = _OneLineParser(
        description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    hints = typing.get_type_hints(config, include_extras=True)
    for field in dataclasses.fields(config):
        kind, setting = typing.get_args(hints[field.name])
        _add_flag(parser, field, kind, setting)
    return vars(parser.parse_args(arguments))


def parse_value(config: type[Any], name: str, text: str) -> object:
    """Return the text as a value of the field `name`; empty is None where it may be left out.

    Raises:
        ConfigError: says what was expected.
    """
    stated, setting = typing.get_args(typing.get_type_hints(config, include_extras=True)[name])
    kind = _kind(stated)
    if not text and kind is not stated:
        return None
    if kind is bool:
        if text.lower() not in configparser.ConfigParser.BOOLEAN_STATES:
            raise ConfigError(f"expected true or false, got {text!r}")
        return configparser.ConfigParser.BOOLEAN_STATES[text.lower()]
    try:
        return _converter(kind, setting)(text)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(str(error)) from None


def _kind(stated: Any) -> Any:
    """Return Path for `Path | None`: a value, where one is given, is a Path."""
    return next((each for each in typing.get_args(stated) if each is not type(None)), stated)


def _add_flag(
    parser: argparse.ArgumentParser, field: dataclasses.Field[Any], kind: Any, setting: Setting
) -> None:
    kind = _kind(kind)
    flag = "--" + field.name.replace("_", "-")
    why = setting.why.replace("%", "%%")
    if setting.positional:
        parser.add_argument(field.name, type=kind, help=why)
    elif kind is bool:
        action = argparse.BooleanOptionalAction
        parser.add_argument(flag, action=action, help=why)
    else:
        shown = "" if field.default is None else f" (default: {field.default})"
        parser.add_argument(
            flag,
            type=_converter(kind, setting),
            metavar=kind.__name__.upper(),
            help=why + shown,
        )


def _converter(kind: Any, setting: Setting) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        if issubclass(kind, enum.Enum):
            allowed = [str(member.value) for member in kind]
            if text not in allowed:
                expected = ", ".join(allowed)
                raise argparse.ArgumentTypeError(f"expected one of {expected}, got {text!r}")
            return kind(text)
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {kind.__name__}, got {text!r}") from None
        low, high = setting.minimum, setting.maximum
        # Written so that NaN fails too.
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            bounds = f">= {low:g}" if high is None else f"between {low:g} and {high:g}"
            raise argparse.ArgumentTypeError(f"expected a value {bounds}, got {text}")
        return value

    return convert


def write(config: Any, path: Path) -> None:
    """Write the resolved config as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = dataclasses.asdict(config)
    path.write_text(json.dumps(values, indent=2, default=str) + "\n", encoding="utf-8")


def refuse_to_overwrite(config: Any) -> None:
    """Keep the training that lies in the output folder of a config.

    Raises:
        ConfigError: it has checkpoints there, and the config neither resumes nor finishes it.
    """
    folder: Path | None = getattr(config, "out_dir", None)
    goes_on = getattr(config, "resume", True) or getattr(config, "finish", False)
    if folder is None or goes_on:
        return
    kept = [*folder.glob(_LAST), *folder.glob(f"member_*/{_LAST}")]
    if kept:
        raise ConfigError(
            f"--out-dir {folder} holds a training ({kept[0].relative_to(folder)}), which a new one "
            "would overwrite: give --resume to go on with it (more --epochs train further), or "
            "another --out-dir"
        )


def run(
    main: Callable[[Config], object],
    config: type[Config],
    arguments: Sequence[str] | None = None,
    read: Callable[[type[Config], Sequence[str] | None], Config] = parse,
) -> int:
    """Parse the flags, call `main`, and turn an expected error into one line and exit code 2.

    `read` is another way than `parse` to come from the flags to a config.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    for name in ("annotation", "simulation", "training", "__main__"):  # not every library's chatter
        logging.getLogger(name).setLevel(logging.INFO)
    for name in ("lightning.pytorch", "lightning.fabric"):  # they recommend services at each start
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        resolved = read(config, arguments)
        refuse_to_overwrite(resolved)
        main(resolved)
    except MedserveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
