"""What the gateway has to know of a `PredictionsRequest`, read without parsing the message.

A request may hold 64 MiB of pixels, which protobuf's parser would copy only to tell the model's
name. So the fields of the message are walked from tag to tag, and the values of all others are
skipped where they lie. What protobuf's parser takes or refuses, this reader takes or refuses too:
fields in any order, the last of two, unknown fields, groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from medserve.errors import InvalidRequestError

__all__ = ["RequestHead", "read_head"]

_MODEL, _VERSION, _INPUT, _SEQUENCE = 1, 2, 3, 4  # fields of PredictionsRequest
_KEY, _VALUE = 1, 2  # fields of an entry of the map `input`
_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)  # wire types
_TOLD = ("request_id", "deadline_ms")  # keys of `input`
_MOST_DIGITS = 10
_MOST_FIELDS = 10_000  # walking them holds up every other call
_DEEPEST_GROUP = 100  # as protobuf's own parser

_Field = tuple[int, int, int, int]  # number, wire type, start and end of the value


@dataclass(frozen=True)
class RequestHead:
    """Fields of a `PredictionsRequest` by which it is routed and logged.

    Attributes:
        model: Name of the model.
        version: "" asks the default version.
        request_id: `input["request_id"]` as it came, b"" without one.
        deadline_ms: `input["deadline_ms"]`, the same.
    """

    model: str
    version: str
    request_id: bytes
    deadline_ms: bytes = b""

    @property
    def left_s(self) -> float | None:
        """For how long the caller waits; None where they do not say, or not with a number."""
        known = self.deadline_ms.isdigit() and len(self.deadline_ms) <= _MOST_DIGITS
        return int(self.deadline_ms) / 1000 if known else None


def read_head(message: bytes) -> RequestHead:
    """Read the head of a serialized `PredictionsRequest`.

    Raises:
        InvalidRequestError: the bytes are no such message, or have more fields than a request has.
    """
    try:
        return _read(message)
    except (ValueError, IndexError):  # UnicodeDecodeError is a ValueError
        raise InvalidRequestError("expected a PredictionsRequest, got other bytes") from None


def _read(message: bytes) -> RequestHead:
    model = version = ""
    told = dict.fromkeys(_TOLD, b"")
    for number, kind, start, end in _fields(message, 0, len(message)):
        if kind != _BYTES:
            continue
        if number == _INPUT:
            key, value = _entry(message, start, end)
            if key in told:
                told[key] = value
        elif number == _MODEL:
            model = message[start:end].decode()
        elif number == _VERSION:
            version = message[start:end].decode()
        elif number == _SEQUENCE:
            message[start:end].decode()  # must be text, like every string of protobuf
    return RequestHead(model, version, told["request_id"], told["deadline_ms"])


def _entry(message: bytes, start: int, end: int) -> tuple[str, bytes]:
    """Return the key of one entry of `input`, and its value where it belongs to the head."""
    key, value, known = "", (0, 0), True
    for number, kind, first, last in _fields(message, start, end, _DEEPEST_GROUP - 1):
        if kind == _BYTES and number == _KEY:
            key = message[first:last].decode()
        elif kind == _BYTES and number == _VALUE:
            value = (first, last)
        else:
            known = False  # protobuf puts such an entry aside as a whole
    return (key, message[slice(*value)]) if known and key in _TOLD else ("", b"")


def _fields(
    message: bytes, start: int, end: int, deepest_group: int = _DEEPEST_GROUP
) -> Iterator[_Field]:
    """Yield the fields between two places; ValueError or IndexError where they are malformed."""
    place = start
    for _ in range(_MOST_FIELDS):
        if place == end:
            return
        tag = message[place]
        place += 1
        if tag >= 0x80:
            tag, place = _varint(message, place - 1, 5)
        kind = tag & 7
        if kind == _BYTES:
            size = message[place]
            first = place + 1
            if size >= 0x80:
                size, first = _varint(message, place, 5)
            place = first + size
        else:
            first, place = place, _skip(message, place, tag >> 3, kind, deepest_group)
        if place > end or not 8 <= tag < 1 << 32:
            raise ValueError
        yield tag >> 3, kind, first, place
    raise ValueError


def _skip(message: bytes, place: int, number: int, kind: int, deepest_group: int) -> int:
    """Return the place behind a value; behind the end of the group where it is one."""
    groups: list[int] = []
    while True:
        if kind == _VARINT:
            _, place = _varint(message, place, 10)
        elif kind == _FIXED64:
            place += 8
        elif kind == _FIXED32:
            place += 4
        elif kind == _BYTES:
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
