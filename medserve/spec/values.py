"""The part of a model's description that says which numbers it tells of an image."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from medserve.errors import ConfigError
from medserve.spec.section import Section
from medserve.spec.seen import Range

__all__ = ["ValueSpec", "check_values"]

# Of DICOM PS3.5, table 6.2-1: a code value is a short string (SH), its meaning a long one (LO).
_MOST_CODE, _MOST_MEANING = 16, 64
_UCUM = re.compile(r"[!-~]+")  # UCUM, section 1: printable ASCII without blanks


class ValueSpec(Section, frozen=True, kw_only=True):
    """One number of the network's output, in the order of the outputs."""

    name: Annotated[str, Meta(description="What is told, as `bone age`.")]
    unit: Annotated[str, Meta(description="UCUM code of its unit: `mo`, `%`; `1` for none.")]
    unit_name: Annotated[str, Meta(description="The unit in words: `months`, `percent`.")]
    offset: Annotated[
        float, Meta(description="In the unit; is added after `scale`: the mean of the targets.")
    ] = 0.0
    scale: Annotated[
        float,
        Meta(
            description="In the unit; multiplies the network's output: the standard deviation of "
            "the targets, where they were standardised."
        ),
    ] = 1.0
    range: Annotated[
        Range | None,
        Meta(
            description="Least and most that is plausible, in the unit; a value outside of it is "
            "told as it is, and a person should look."
        ),
    ] = None


def check_values(values: Sequence[ValueSpec], model: str) -> None:
    """Refuse values that cannot be told apart, computed or written into a report.

    Raises:
        ConfigError: no value is named, two have one name, or a number or text of one cannot work.
    """
    if not values:
        raise ConfigError(f"{model}: values: expected at least one value, got none")
    name, count = Counter(value.name for value in values).most_common(1)[0]
    if count > 1:
        raise ConfigError(f"{model}: values: names must differ, got {name!r} {count} times")
    for place, value in enumerate(values):
        if problem := _problem(value):
            raise ConfigError(f"{model}: values[{place}]: {problem}")


def _problem(value: ValueSpec) -> str:
    """Return what is wrong with a value, or nothing."""
    for key, text, most in (
        ("name", value.name, _MOST_MEANING),
        ("unit", value.unit, _MOST_CODE),
        ("unit_name", value.unit_name, _MOST_MEANING),
    ):
        if not text.strip() or len(text) > most:
            return f"expected {key} of 1 to {most} characters, as DICOM keeps it, got {text!r}"
    if not _UCUM.fullmatch(value.unit):
        return f"expected unit as a UCUM code such as mo, % or 1, got {value.unit!r}"
    if not math.isfinite(value.offset) or not math.isfinite(value.scale) or value.scale == 0:
        return (
            "expected a finite offset and a finite scale that is not 0, got "
            f"{value.offset:g} and {value.scale:g}"
        )
    if value.range is not None:
        low, high = value.range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            return f"expected range as two finite numbers, the lower first, got [{low:g}, {high:g}]"
    return ""
