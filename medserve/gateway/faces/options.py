"""The options of a call, as every face of the gateway reads them: by the declaration of the task.

A face brings what its callers send into one mapping from the options' keys to JSON values. Here the
task of the model checks it, before any file of the request is taken in.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from medserve.errors import InvalidRequestError
from medserve.gateway.core.calls import ModelInfo
from medserve.spec import Task
from medserve.tasks import OPTIONS, Option, declared

__all__ = ["describe_option", "options_of", "read_options", "within_json"]

_EVERY_KEY = frozenset(option.key for each in OPTIONS.values() for option in declared(each))


def options_of(info: ModelInfo) -> tuple[Option, ...]:
    """Return the options of a model, with the bounds that its description has."""
    return OPTIONS[info.task].of_model(info.spec)


def read_options(info: ModelInfo, params: Mapping[str, Any]) -> dict[str, Any]:
    """Check what a caller asks of a model, and return it as the model takes it.

    Several numbers may come as a list or as one text such as `1,1,2.5`.

    Raises:
        InvalidRequestError: the task has no such option (those that it has are named), the value
            is not what the option takes, or the model cannot do it.
    """
    known = {option.key: option for option in options_of(info)}
    for key in params:
        if key not in known and key in _EVERY_KEY:
            raise InvalidRequestError(
                f"{key} is no option of {info.name}, whose task is {info.task}; it takes "
                f"{', '.join(sorted(known))}"
            )
    options = OPTIONS[info.task]
    values = {key: _value(known.get(key), value) for key, value in params.items()}
    options.from_params(values, info.spec)  # the model leaves what is open to its own archive
    return options.from_params(values).to_params()


def within_json(info: ModelInfo, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return params of a model that segments which ask for the same files in one JSON answer.

    That answer always holds the measurements and the mask as NIfTI, of a single frame as PNG, too.
    """
    if not info.task.segments:
        return dict(params)
    wanted = dict(params)
    output, mask_format = wanted.pop("output", None), wanted.pop("format", None)
    if output is None and mask_format == "png" and info.task is Task.VOLUMES:
        output = "overlay"  # the only picture of a volume
    if output in (None, "mask", "json"):
        formats = ("nifti", "json", *(("png",) if info.task is Task.FRAMES else ()))
        return wanted | {"output": "json"} | _unless(mask_format, formats)
    fitting = "png" if output == "overlay" else "nifti"
    return wanted | {"output": output, "format": "json"} | _unless(mask_format, (fitting,))


def describe_option(option: Option) -> dict[str, Any]:
    """Return an option as a JSON object, for whoever offers it to people."""
    default = option.default
    return {
        "name": option.key,
        "type": option.kind.__name__,
        "count": option.count,
        "choices": list(option.choices),
        "least": option.least,
        "most": option.most,
        "above": option.above,
        "default": default.value if isinstance(default, enum.Enum) else default,
        "help": option.help,
    }


def _value(option: Option | None, value: Any) -> Any:
    if option is None:  # the task refuses the key
        return value
    if value is None:
        raise InvalidRequestError(
            f"params: {option.key}: expected {option.expected}, got nothing; leave it out"
        )
    return option.from_text(value) if isinstance(value, str) and option.count > 1 else value


def _unless(mask_format: Any, held: tuple[str, ...]) -> dict[str, Any]:
    """Keep a format, unless the answer holds the file anyway."""
    return {} if mask_format is None or mask_format in held else {"format": mask_format}
