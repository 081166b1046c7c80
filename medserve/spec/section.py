"""One section of a model's description, read from YAML and checked by msgspec.

msgspec rather than pydantic: a worker imports it with every archive, and it costs 2 MiB there
instead of 17; it also reads the answers of models, base64 included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from medserve.errors import ConfigError

__all__ = ["Section", "read_section", "unwrapped"]

_Section = TypeVar("_Section", bound="Section")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_MISSING = re.compile(r"Object missing required field `(.*)`")


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all sections: frozen values, and no key that is not declared."""


def read_section(kind: type[_Section], content: Mapping[str, Any], source: str) -> _Section:
    """Convert parsed YAML into a section.

    Raises:
        ConfigError: a key is unknown or missing, or a value has another type or lies outside its
            bounds; the message names `source`, the key and what is known or allowed there.
    """
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        path = path.rstrip("`")
        told = _told(problem, _type_at(inspect.type_info(kind), path))
        raise ConfigError(f"{source}{path}: {told}") from error


def _told(problem: str, found: inspect.Type) -> str:
    """Tell a problem in the words of a configuration."""
    if (unknown := _UNKNOWN.fullmatch(problem)) and isinstance(found, inspect.StructType):
        known = ", ".join(sorted(field.encode_name for field in found.fields))
        return f"unknown key {unknown[1]!r}; known keys: {known}"
    if missing := _MISSING.fullmatch(problem):
        return f"missing key {missing[1]!r}"
    if isinstance(found, inspect.EnumType):
        allowed = ", ".join(str(member.value) for member in found.cls)
        return f"expected one of {allowed}, got {problem.removeprefix('Invalid enum value ')}"
    return problem[:1].lower() + problem[1:]


def _type_at(found: inspect.Type, path: str) -> inspect.Type:
    """Follow a path such as `.volume.roi` or `.labels[2]` from a type to the type of its value."""
    for name, index in re.findall(r"\.(\w+)|\[([^]]*)\]", path):
        found, _ = unwrapped(found)
        if name and isinstance(found, inspect.StructType):
            fields = {field.encode_name: field.type for field in found.fields}
            found = fields.get(name, inspect.AnyType())
        elif index and isinstance(found, inspect.VarTupleType):
            found = found.item_type
        elif index and isinstance(found, inspect.DictType):
            found = found.value_type
    return unwrapped(found)[0]


def unwrapped(found: inspect.Type) -> tuple[inspect.Type, str]:
    """Strip a description, and the None of an optional value; return the type and its help."""
    text = ""
    while isinstance(found, inspect.Metadata | inspect.UnionType):
        if isinstance(found, inspect.Metadata):
            text = text or (found.extra_json_schema or {}).get("description", "")
            found = found.type
        else:
            found = next(each for each in found.types if not isinstance(each, inspect.NoneType))
    return found, text
