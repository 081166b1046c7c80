"""Protobuf's wire format, walked from tag to tag without parsing a value.

A message of 64 MiB may hold thirty million empty fields, each of which becomes an object in Python
and in Java, while nobody else is answered. So a large message is walked first, for so many steps
and no more.
"""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor

from medserve.errors import PayloadTooLargeError

__all__ = ["BYTES", "DEEPEST_GROUP", "Field", "TooManyFieldsError", "fields", "refuse_many_fields"]

_VARINT, _FIXED64, BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)  # wire types
DEEPEST_GROUP = 100  # as protobuf's own parser
_MOST_FIELDS = 20_000  # twice the files that one request may carry
_SMALL_BYTES = 2**16  # holds no more fields than are parsed in a moment

Field = tuple[int, int, int, int]  # number, wire type, start and end of the value


class TooManyFieldsError(ValueError):
    """A message has more fields than anybody needs."""


def refuse_many_fields(message: bytes, kind: Descriptor) -> None:
    """Refuse a message of very many fields before it is parsed, those of its parts included.

    Raises:
        PayloadTooLargeError: it has more than any request needs.
    """
    if len(message) <= _SMALL_BYTES:
        return
    try:
        _walk(message, 0, len(message), kind, iter(range(_MOST_FIELDS)))
    except TooManyFieldsError:
        raise PayloadTooLargeError(
            f"expected at most {_MOST_FIELDS} fields in one message, got more; send several "
            "requests, with few tensors and parameters each"
        ) from None
    except (ValueError, IndexError):
        return  # malformed: the parser comes no further than this


def _walk(message: bytes, start: int, end: int, kind: Descriptor, steps: Iterator[int]) -> None:
    for number, wire_type, first, last in fields(message, start, end, steps):
        known = kind.fields_by_number.get(number)
        if known is not None and known.message_type is not None and wire_type == BYTES:
            _walk(message, first, last, known.message_type, steps)


def fields(
    message: bytes,
    start: int,
    end: int,
    steps: Iterator[int],
    deepest_group: int = DEEPEST_GROUP,
) -> Iterator[Field]:
    """Yield the fields between two places of a serialized message.

    Args:
        message: The whole message.
        start: Where its first field begins.
        end: Behind its last field.
        steps: Gives one number a field and a part of a group; who walks several messages shares it.
        deepest_group: How many groups may lie in each other.

    Raises:
        TooManyFieldsError: `steps` ended first.
        ValueError: The bytes are malformed; sometimes an IndexError.
    """
    place = start
    for _ in steps:
        if place == end:
            return
        tag = message[place]
        place += 1
        if tag >= 0x80:
            tag, place = _varint(message, place - 1, 5)
        kind = tag & 7
        if kind == BYTES:
            size = message[place]
            first = place + 1
            if size >= 0x80:
                size, first = _varint(message, place, 5)
            place = first + size
        else:
            first, place = place, _skip(message, place, tag >> 3, kind, steps, deepest_group)
        if place > end or not 8 <= tag < 1 << 32:
            raise ValueError
        yield tag >> 3, kind, first, place
    raise TooManyFieldsError


def _skip(
    message: bytes, place: int, number: int, kind: int, steps: Iterator[int], deepest_group: int
) -> int:
    """Return the place behind a value; behind the end of the group where it is one."""
    groups: list[int] = []
    while True:
        if groups and next(steps, None) is None:
            raise TooManyFieldsError
        if kind == _VARINT:
            _, place = _varint(message, place, 10)
        elif kind == _FIXED64:
            place += 8
        elif kind == _FIXED32:
            place += 4
        elif kind == BYTES:
            size, place = _varint(message, place, 5)
            place += size
        elif kind == _GROUP and len(groups) < deepest_group:
            groups.append(number)
        elif kind != _GROUP_END or not groups or groups.pop() != number:
            raise ValueError
        if not groups:
            return place
        tag, place = _varint(message, place, 5)
        if tag >= 1 << 32:
            raise ValueError
        number, kind = tag >> 3, tag & 7


def _varint(message: bytes, place: int, longest: int) -> tuple[int, int]:
    """Return a varint of at most `longest` bytes and the place behind it."""
    value = 0
    for count in range(longest):
        byte = message[place + count]
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value, place + count + 1
    raise ValueError
