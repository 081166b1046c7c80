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
from medserve.gateway.core.wire_format import BYTES, DEEPEST_GROUP, fields

__all__ = ["RequestHead", "read_head"]

_MODEL, _VERSION, _INPUT, _SEQUENCE = 1, 2, 3, 4  # fields of PredictionsRequest
_KEY, _VALUE = 1, 2  # fields of an entry of the map `input`
_TOLD = ("request_id", "deadline_ms")  # keys of `input`
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
    steps = iter(range(_MOST_FIELDS))  # of the message and its entries together
    for number, kind, start, end in fields(message, 0, len(message), steps):
        if kind != BYTES:
            continue
        if number == _INPUT:
            key, value = _entry(message, start, end, steps)
            if key in told:
                told[key] = value
        elif number == _MODEL:
            model = message[start:end].decode()
        elif number == _VERSION:
            version = message[start:end].decode()
        elif number == _SEQUENCE:
            message[start:end].decode()  # must be text, like every string of protobuf
    return RequestHead(model, version, told["request_id"], told["deadline_ms"])


def _entry(message: bytes, start: int, end: int, steps: Iterator[int]) -> tuple[str, bytes]:
    """Return the key of one entry of `input`, and its value where it belongs to the head."""
    key, value, known = "", (0, 0), True
    for number, kind, first, last in fields(message, start, end, steps, DEEPEST_GROUP - 1):
        if kind == BYTES and number == _KEY:
            key = message[first:last].decode()
        elif kind == BYTES and number == _VALUE:
            value = (first, last)
        else:
            known = False  # protobuf puts such an entry aside as a whole
    return (key, message[slice(*value)]) if known and key in _TOLD else ("", b"")
