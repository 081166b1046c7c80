"""Regression: numbers that a network tells of an image, each in its unit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

from medserve.errors import ServerFailedError
from medserve.spec.values import ValueSpec
from medserve.tasks.options import Options
from medserve.tasks.result import Value, as_html

__all__ = ["Estimate", "Regression", "RegressionOptions", "estimates"]


class RegressionOptions(Options, frozen=True, kw_only=True):
    """What a caller may ask beside the image: nothing."""


class Estimate(Value, frozen=True):
    """One number with its unit, as the network tells it: nothing is cut to a range.

    Attributes:
        name: What is told.
        value: The number, in the unit; always finite.
        unit: UCUM code of the unit.
        unit_name: The unit in words.
        doubt: Why a person should look, in a sentence; empty where the value is plausible.
    """

    spoken: ClassVar[str] = "a number with its unit"

    name: str
    value: float
    unit: str
    unit_name: str
    doubt: str = ""

    @property
    def shown(self) -> str:
        """The number with its unit, as `106.5 mo`; a number without one alone."""
        return f"{self.value:g}" if self.unit == "1" else f"{self.value:g} {self.unit}"


class Regression(Value, frozen=True):
    """What a network tells of one image; it names no class and no probability.

    Attributes:
        values: The numbers, in the order of the specification.
    """

    spoken: ClassVar[str] = "a list of numbers with their units"

    values: tuple[Estimate, ...]

    @property
    def review(self) -> bool:
        """Whether a person should look, for any of the values is not plausible."""
        return bool(self.doubts)

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why a person should look, a sentence for each value that is not plausible."""
        return tuple(each.doubt for each in self.values if each.doubt)

    @property
    def text(self) -> str:
        """The values in one text, as `bone age 106.5 mo; ejection fraction 60 %`."""
        return "; ".join(f"{each.name} {each.shown}" for each in self.values)

    def _repr_html_(self) -> str:
        """Return the values as a notebook shows them."""
        lines = [("value", "", "unit", "")]
        lines += [
            (each.name, f"{each.value:g}", each.unit_name, each.doubt) for each in self.values
        ]
        return as_html("let a person look" if self.review else "estimated", lines, ())

    def to_json(self) -> dict[str, Any]:
        """Return the values and `review` as the members of a JSON answer for one image."""
        return {**super().to_json(), "review": self.review}


def estimates(numbers: Iterable[float], values: tuple[ValueSpec, ...]) -> Regression:
    """Bring the network's numbers to their units, one for each of the specification's values.

    Raises:
        ServerFailedError: a number is not finite, before or after it is brought to its unit.
    """
    return Regression(
        tuple(_estimate(number, spec) for number, spec in zip(numbers, values, strict=True))
    )


def _estimate(number: float, spec: ValueSpec) -> Estimate:
    value = spec.offset + spec.scale * float(number)
    if not math.isfinite(value):
        raise ServerFailedError(
            f"the network gave a number that is not finite for {spec.name!r} of this image"
        )
    doubt = ""
    if spec.range is not None and not spec.range[0] <= value <= spec.range[1]:
        low, high = spec.range
        doubt = (
            f"{spec.name} is {value:g} {spec.unit_name}, outside of the plausible range from "
            f"{low:g} to {high:g} {spec.unit_name}"
        )
    return Estimate(spec.name, value, spec.unit, spec.unit_name, doubt)
