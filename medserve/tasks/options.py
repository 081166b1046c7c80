"""The options of a call: declared once a task, read and written here for every face.

A task declares its options as the fields of a `msgspec.Struct`. From that declaration the handler
reads the JSON input `params`, and the command line, the REST query, the parameters of the Open
Inference Protocol, the typed messages and the form of the page take names, types, bounds and help.

Errors never quote values: a caller may have put anything there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Self, get_type_hints

import msgspec
from msgspec import inspect

from medserve.errors import InvalidRequestError
from medserve.spec import ModelSpec
from medserve.spec.section import unwrapped

__all__ = ["Option", "Options", "declared"]

_COUNTS = {2: "two", 3: "three"}


class Options(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """What a caller may ask of one task; a field that is left out is up to the model."""

    @classmethod
    def from_params(cls, params: Mapping[str, object], spec: ModelSpec | None = None) -> Self:
        """Read the JSON object `params` of a call.

        Args:
            params: The object.
            spec: The model, where it is known: what it cannot do is refused, and what the caller
                left out and the model decides is filled.

        Raises:
            InvalidRequestError: a key is unknown (the known ones are named), or a value is not of
                the type or within the bounds that its option declares or the model has, or two
                contradict each other.
        """
        known = {option.key: option for option in cls.of_model(spec)}
        if set(params) - set(known):
            allowed = f"only known keys: {', '.join(sorted(known))}" if known else "no keys"
            raise InvalidRequestError(f"params: expected {allowed}; got another one")
        options = cls(**{known[key].name: known[key].read(each) for key, each in params.items()})
        options.check()
        return options if spec is None else options.filled(spec)

    @classmethod
    def of_model(cls, spec: ModelSpec | None) -> tuple[Option, ...]:
        """Return every option, with the bounds of one model where that is given."""
        narrower = {} if spec is None else cls.bounds(spec)
        return tuple(replace(each, **narrower.get(each.name, {})) for each in declared(cls))

    @classmethod
    def bounds(cls, spec: ModelSpec) -> Mapping[str, Mapping[str, Any]]:
        """Name the members of `Option` that a model narrows, by the names of options."""
        return {}

    def check(self) -> None:
        """Refuse options that contradict each other."""

    def filled(self, spec: ModelSpec) -> Self:
        """Fill what the model decides, and refuse what it cannot do."""
        return self

    def given(self, *names: str) -> dict[str, Any]:
        """Return those of the named fields that the caller did not leave out."""
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def to_params(self) -> dict[str, Any]:
        """Return the options as the JSON object `params`, without those that are left out."""
        content: dict[str, Any] = msgspec.to_builtins(self)
        return content


@dataclass(frozen=True)
class Option:
    """One declared option.

    Attributes:
        name: Name of the field in Python.
        key: Name on the wire: in `params`, in a query, among parameters.
        kind: bool, int, float or str; of a tuple the kind of its members.
        help: One sentence for people.
        default: Where neither caller nor model says anything; None: the model decides.
        count: Number of values of a tuple; 1 for a single value.
        choices: The words that are allowed; empty where any value of the kind is.
        least: Smallest number; None: unbounded.
        most: Largest number; None: unbounded.
        above: Number that a value must exceed; None: unbounded.
        type: The declared type, for converting a value.
    """

    name: str
    key: str
    kind: type[bool] | type[int] | type[float] | type[str]
    help: str
    default: Any
    count: int
    choices: tuple[str, ...]
    least: float | None
    most: float | None
    above: float | None
    type: Any

    def read(self, value: object) -> Any:
        """Convert a JSON value; InvalidRequestError says what the option takes."""
        try:
            read = msgspec.convert(value, self.type)
        except msgspec.ValidationError:
            raise self._refusal(value) from None
        if not all(map(self._fits, read if isinstance(read, tuple) else (read,))):
            raise self._refusal(value)
        return read

    def from_text(self, text: str) -> Any:
        """Read a value written as text: `true`, `7`, `nifti`, or `1,1,2.5` for several numbers."""
        try:
            pieces = [text] if self.kind is str and self.count == 1 else text.split(",")
            parts = [_plain(self.kind, part) for part in pieces] if text else []
        except ValueError:
            parts = []
        return self.read(parts if self.count > 1 else parts[0] if len(parts) == 1 else object())

    @property
    def expected(self) -> str:
        """What the option takes, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return "text"
        if self.count > 1:
            return f"{_COUNTS.get(self.count, self.count)} numbers{self._bounds}"
        return f"{'a whole number' if self.kind is int else 'a number'}{self._bounds}"

    @property
    def _bounds(self) -> str:
        if self.above is not None:
            return f" above {_written(self.above)}"
        if self.least is None:
            return ""
        most = "" if self.most is None else f" to {_written(self.most)}"
        return f" from {_written(self.least)}{most}"

    def _fits(self, value: Any) -> bool:
        """Tell whether a value of the right type lies within the bounds of the model."""
        if isinstance(value, str):
            return not self.choices or value in self.choices
        if value is None or isinstance(value, bool):
            return True
        least = -math.inf if self.least is None else self.least
        most = math.inf if self.most is None else self.most
        return math.isfinite(value) and least <= value <= most

    def _refusal(self, value: object) -> InvalidRequestError:
        """Tell what the option takes, and less from more where a number came."""
        came = "something else"
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if is_whole or (isinstance(value, float) and self.kind is float):
            if self.least is not None and value < self.least:  # type: ignore[operator]
                came = "less"
            elif self.most is not None and value > self.most:  # type: ignore[operator]
                came = "more"
        return InvalidRequestError(f"params: {self.key}: expected {self.expected}, got {came}")


@cache
def declared(options: type[Options]) -> tuple[Option, ...]:
    """Return every option of a task, in the order of its declaration."""
    described = inspect.type_info(options)
    assert isinstance(described, inspect.StructType)
    hints = get_type_hints(options, include_extras=True)
    return tuple(_option(field, hints[field.name]) for field in described.fields)


def _option(field: inspect.Field, hint: Any) -> Option:
    found, text = unwrapped(field.type)
    count = 1
    if isinstance(found, inspect.TupleType):
        count = len(found.item_types)
        found, _ = unwrapped(found.item_types[0])
    choices: tuple[str, ...] = ()
    if isinstance(found, inspect.EnumType):
        choices = tuple(member.value for member in found.cls)
    return Option(
        name=field.name,
        key=field.encode_name,
        kind=_KINDS[type(found)],
        help=text,
        default=None if field.default is msgspec.NODEFAULT else field.default,
        count=count,
        choices=choices,
        least=getattr(found, "ge", None),
        most=getattr(found, "le", None),
        above=getattr(found, "gt", None),
        type=hint,
    )


_KINDS: dict[type[inspect.Type], Any] = {
    inspect.BoolType: bool,
    inspect.IntType: int,
    inspect.FloatType: float,
    inspect.StrType: str,
    inspect.EnumType: str,
}


def _plain(kind: Any, text: str) -> Any:
    if kind is bool:
        return {"true": True, "false": False}.get(text.strip().lower(), text)
    return kind(text.strip())


def _written(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"
