"""What the gateway has to know of a `PredictionsRequest`, read without parsing the message.

A request may hold 64 MiB of pixels, which protobuf's parser would copy only to tell the model's
name. So the fields of the message are walked from tag to tag, and the values of all others are
skipped where they lie. What protobuf's parser takes or refuses, this reader takes or refuses too:
fields in any order, the last of two, unknown fields, groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from medserve.errors import InvalidRequestError
from medserve.gateway.core.gathering import GATHERED_BYTES
from medserve.gateway.core.wire_format import BYTES, DEEPEST_GROUP, TooManyFieldsError, fields

__all__ = ["RequestHead", "read_head"]

_MODEL, _VERSION, _INPUT, _SEQUENCE = 1, 2, 3, 4  # fields of PredictionsRequest
_KEY, _VALUE = 1, 2  # fields of an entry of the map `input`
_KEY_TAG, _VALUE_TAG = _KEY << 3 | BYTES, _VALUE << 3 | BYTES
_STEPS_OF_AN_ENTRY = 3  # its two fields and its end, as `fields` counts
_LAST_SHIFT = 28  # of the last byte of a length
_TOLD = ("request_id", "deadline_ms")  # keys of `input`
_OF_THE_GATEWAY = {*_TOLD, "transport", "stream"}  # which it puts in the place of a caller's own
_MOST_DIGITS = 10
_MOST_FIELDS = 10_000  # walking them holds up every other call


@dataclass(frozen=True)
class RequestHead:
    """Fields of a `PredictionsRequest` by which it is routed and logged.

    Attributes:
        model: Name of the model.
        version: "" asks the default version.
        request_id: `input["request_id"]` as it came, b"" without one.
        deadline_ms: `input["deadline_ms"]`, the same.
        inputs: The files and `params` of a small message that carries nothing else that would reach
            the model; empty for every other.
    """

    model: str
    version: str
    request_id: bytes
    deadline_ms: bytes = b""
    inputs: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def left_s(self) -> float | None:
        """For how long the caller waits; None where they do not say, or not with a number."""
        return _seconds(self.deadline_ms)


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
    entries: dict[str, tuple[int, int]] = {}  # key of `input` -> where its value lies
    plain = len(message) <= GATHERED_BYTES
    steps = iter(range(_MOST_FIELDS))  # of the message and its entries together
    for number, kind, start, end in fields(message, 0, len(message), steps):
        if kind == BYTES and number == _INPUT:
            key, value = _entry(message, start, end, steps)
            entries[key] = value
        elif kind == BYTES and number == _MODEL:
            model = message[start:end].decode()
        elif kind == BYTES and number == _VERSION:
            version = message[start:end].decode()
        else:
            plain = False
            if kind == BYTES and number == _SEQUENCE:
                message[start:end].decode()  # must be text, like every string of protobuf
    request_id, deadline_ms = (message[slice(*entries.get(name, (0, 0)))] for name in _TOLD)
    inputs: dict[str, bytes] = {}
    if plain and "" not in entries and (not deadline_ms or _seconds(deadline_ms) is not None):
        inputs = {
            key: message[start:end]
            for key, (start, end) in entries.items()
            if key not in _OF_THE_GATEWAY
        }
    return RequestHead(model, version, request_id, deadline_ms, inputs)


def _seconds(milliseconds: bytes) -> float | None:
    known = milliseconds.isdigit() and len(milliseconds) <= _MOST_DIGITS
    return int(milliseconds) / 1000 if known else None


def _entry(
    message: bytes, start: int, end: int, steps: Iterator[int]
) -> tuple[str, tuple[int, int]]:
    """Return the key of one entry of `input`, and where its value lies; "" for a strange entry."""
    if (usual := _usual_entry(message, start, end)) is not None:
        for _ in range(_STEPS_OF_AN_ENTRY):
            if next(steps, None) is None:
                raise TooManyFieldsError
        return usual
    key, value, known = "", (0, 0), True
    for number, kind, first, last in fields(message, start, end, steps, DEEPEST_GROUP - 1):
        if kind == BYTES and number == _KEY:
            key = message[first:last].decode()
        elif kind == BYTES and number == _VALUE:
            value = (first, last)
        else:
            known = False  # protobuf puts such an entry aside as a whole
    return (key if known else ""), value


def _usual_entry(message: bytes, start: int, end: int) -> tuple[str, tuple[int, int]] | None:
    """Return the same of an entry as every encoder writes it, short key before value, or None."""
    middle = start + 2 + message[start + 1] if end - start >= 2 else end
    if end - middle < 2 or message[start] != _KEY_TAG or message[middle] != _VALUE_TAG:
        return None
    size, first, shift = message[middle + 1] & 0x7F, middle + 2, 7
    while message[first - 1] >= 0x80:
        if first >= end or shift > _LAST_SHIFT:
            return None
        size |= (message[first] & 0x7F) << shift
        first, shift = first + 1, shift + 7
    if message[start + 1] >= 0x80 or middle == start + 2 or first + size != end:
        return None
    return message[start + 2 : middle].decode(), (first, end)
