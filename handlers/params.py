"""Checks on single values of the input `params`, alike for every task.

Errors never quote values: a caller may have put anything there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from medserve.errors import InvalidRequestError

__all__ = ["flag", "length", "lengths", "one_of", "refuse_unknown"]


def refuse_unknown(params: Mapping[str, object], known: Collection[str]) -> None:
    """InvalidRequestError names the known keys where there is another one."""
    if set(params) - set(known):
        raise InvalidRequestError(
            f"params: expected only known keys: {', '.join(known)}; got another one"
        )


def one_of(params: Mapping[str, object], key: str, allowed: Collection[str]) -> str | None:
    """One of the words that are allowed; None where the key is left out."""
    value = params.get(key)
    if value is None or (isinstance(value, str) and value in allowed):
        return value
    raise InvalidRequestError(
        f"params: {key}: expected one of {', '.join(allowed)}, got something else"
    )


def flag(params: Mapping[str, object], key: str, default: bool) -> bool:
    """True or false."""
    value = params.get(key, default)
    if not isinstance(value, bool):
        raise InvalidRequestError(f"params: {key}: expected true or false, got something else")
    return value


def length(params: Mapping[str, object], key: str) -> float | None:
    """A number above 0; None where the key is left out."""
    value = params.get(key)
    if value is None:
        return None
    if not _is_length(value):
        raise InvalidRequestError(f"params: {key}: expected a number above 0, got something else")
    return float(value)  # type: ignore[arg-type]


def lengths(params: Mapping[str, object], key: str, count: int) -> tuple[float, ...] | None:
    """So many numbers above 0; None where the key is left out."""
    value = params.get(key)
    if value is None:
        return None
    numbers = value if isinstance(value, list) else []
    if len(numbers) != count or not all(_is_length(each) for each in numbers):
        words = {2: "two", 3: "three"}
        raise InvalidRequestError(
            f"params: {key}: expected {words.get(count, count)} numbers above 0, got something else"
        )
    return tuple(float(each) for each in numbers)


def _is_length(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 < value < math.inf
