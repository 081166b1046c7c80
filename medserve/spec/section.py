"""One section of a model's description, read from YAML and checked by msgspec.

msgspec rather than pydantic: a worker imports it with every archive, and it costs 2 MiB there
instead of 17; it also reads the gateway's and the client's answers, base64 included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from medserve.errors import ConfigError

__all__ = ["Section", "read_section"]

_Section = TypeVar("_Section", bound="Section")


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all sections: frozen values, and no key that is not declared."""


def read_section(kind: type[_Section], content: Mapping[str, Any], source: str) -> _Section:
    """Convert parsed YAML into a section.

    Raises:
        ConfigError: a key is unknown or missing, or a value has another type or lies outside its
            bounds; the message names `source` and the key.
    """
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        where = f"{source}{path.rstrip('`')}"
        raise ConfigError(f"{where}: {problem[:1].lower()}{problem[1:]}") from error
