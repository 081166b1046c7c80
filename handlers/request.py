"""What a caller sent: the input map of one prediction call, checked and parsed.

    data | data.0 … data.N   one file's bytes, or several packed into one call; none for models
                             that make images
    data.t1, data.flair      the same by the names of channels, for models that see several images
    data_file                name of a file that the gateway left for this call, instead of data
    params                   optional JSON object, read by the model's task
    transport                "grpc" where our client or gateway brought the call
    stream                   "1" where the caller reads a stream of answers
    deadline_ms              time left, in milliseconds
    request_id               the caller's own reference, in hexadecimal digits and hyphens
    traceparent              the caller's span (W3C Trace Context); anything else counts as none

Errors never quote keys or values: a caller may have put a file's name or a person's there.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handlers.uploads import with_upload
from medserve.errors import InvalidImageError, InvalidRequestError, PayloadTooLargeError
from medserve.imaging.codecs.payload import Payload
from medserve.spec import InputSpec
from medserve.tracing import TRACEPARENT

__all__ = ["Inputs", "Request", "needs_end_marker", "parse"]

Inputs = Mapping[str, Any]  # as TorchServe hands it over: bytearrays, over REST also str

_BODY = "body"  # what TorchServe calls `data` when a REST caller sends the bare file
_OPTIONS = ("params", "transport", "stream", "deadline_ms", "request_id", TRACEPARENT)
_KNOWN = "data (or data.0, data.1, … for several), " + ", ".join(_OPTIONS)
_PACKED_KEY = re.compile(r"data\.(0|[1-9][0-9]{0,5})")
_REQUEST_ID = re.compile(r"[0-9A-Fa-f-]{8,64}")  # a UUID or a trace id, and nothing readable
_MAX_PARAMS_BYTES = 65_536


@dataclass(frozen=True)
class Request:
    """One prediction call.

    Attributes:
        payloads: The files, in order; empty for a model that makes images.
        packed: Whether they came as data.0 … data.N, so that the answer is a list.
        params: The JSON object `params`, still to be read by the task; empty without one.
        wants_stream: Whether the caller reads a stream of answers.
        expires_at: `time.monotonic()` at which the caller stops waiting; None: never.
        request_id: The caller's reference; empty without one.
    """

    payloads: tuple[Payload, ...]
    packed: bool
    params: Mapping[str, object]
    wants_stream: bool = False
    expires_at: float | None = None
    request_id: str = ""


def needs_end_marker(inputs: Inputs) -> bool:
    """Whether the answer must carry TorchServe's header that ends a stream.

    A streaming call without it kills the worker, a REST call with it hangs. So it is set for
    calls that say they came over gRPC, and for those that mention a stream in any way.
    """
    return "stream" in inputs or _text(inputs, "transport") == "grpc"


def parse(
    inputs: Inputs, limits: InputSpec, *, needs_data: bool = True, channels: Sequence[str] = ()
) -> Request:
    """Check and parse one input map.

    Args:
        inputs: What came.
        limits: How many files the model takes at a time.
        needs_data: Whether the model answers files; a generator answers params alone.
        channels: Names of the images that make one case, where a model sees several.

    Raises:
        InvalidRequestError: unknown keys, no data, gaps in the numbering, malformed options.
        InvalidImageError: a channel is missing, or there is one that the model does not see.
        PayloadTooLargeError: more files than `limits.max_items`.
        ServerFailedError: a file that the gateway left is not there.
    """
    inputs = with_upload(inputs)
    payloads, packed = _payloads(_numbered(inputs, channels), limits, needs_data)
    stream = _text(inputs, "stream")
    if stream not in ("", "0", "1"):
        raise InvalidRequestError("stream: expected 0 or 1, got something else")
    request_id = _text(inputs, "request_id")
    if request_id and not _REQUEST_ID.fullmatch(request_id):
        raise InvalidRequestError(
            "request_id: expected 8 to 64 hexadecimal digits and hyphens, got something else; "
            "send a UUID"
        )
    return Request(
        payloads=payloads,
        packed=packed,
        params=_params(inputs),
        wants_stream=stream == "1",
        expires_at=_expiry(inputs),
        request_id=request_id,
    )


def _numbered(inputs: Inputs, channels: Sequence[str]) -> Inputs:
    """Replace the names of channels by their numbers; a case lacks none and has no other.

    Without such keys the inputs stay: one file may hold all channels.
    """
    by_name = [f"data.{name}" for name in channels]
    by_number = [f"data.{number}" for number in range(len(channels))]
    given = {key for key in inputs if key.startswith("data.")}
    if not channels or not given or given == set(by_number) != set(by_name):
        return inputs
    if given == set(by_name):
        numbers = dict(zip(by_name, by_number, strict=True))
        return {numbers.get(key, key): value for key, value in inputs.items()}
    wanted = by_name if given & set(by_name) else by_number
    missing = [key for key in wanted if key not in given]
    came = f"no {missing[0]}" if missing else "another one, too"
    raise InvalidImageError(
        f"expected one file for each of {', '.join(by_name)} (or {', '.join(by_number)}, in this "
        f"order), got {came}"
    )


def _payloads(
    inputs: Inputs, limits: InputSpec, needs_data: bool
) -> tuple[tuple[Payload, ...], bool]:
    numbered = {key for key in inputs if _PACKED_KEY.fullmatch(key)}
    single = [key for key in ("data", _BODY) if key in inputs]
    if set(inputs) - numbered - set(single) - set(_OPTIONS):
        raise InvalidRequestError(f"expected only known input keys: {_KNOWN}; got another one")
    if not needs_data:
        if single or numbered:
            raise InvalidRequestError(
                "expected no data, for this model makes images from params alone; got some"
            )
        return (), False
    if len(single) + bool(numbered) != 1:
        came = "none" if not single and not numbered else "both"
        raise InvalidRequestError(f"expected either data or data.0, data.1, …; got {came}")
    if len(numbered) > limits.max_items:
        raise PayloadTooLargeError(
            f"expected at most {limits.max_items} files a call, got {len(numbered)}; "
            "send them in several calls"
        )
    keys = [f"data.{index}" for index in range(len(numbered))] or single
    if missing := [key for key in keys if key not in inputs]:
        raise InvalidRequestError(
            f"expected data.0 to data.{len(keys) - 1} without a gap, got no {missing[0]}"
        )
    payloads = tuple(inputs[key] for key in keys)
    if not all(isinstance(payload, bytes | bytearray | memoryview) for payload in payloads):
        raise InvalidRequestError(
            "expected the bytes of a file, got text or JSON; send it as application/octet-stream"
        )
    return payloads, bool(numbered)


def _params(inputs: Inputs) -> Mapping[str, object]:
    raw = inputs.get("params")
    if raw is None or isinstance(raw, dict):  # TorchServe parses JSON parts of a REST form
        return raw or {}
    text = _text(inputs, "params")
    if len(text) > _MAX_PARAMS_BYTES:
        raise InvalidRequestError(f"params: expected at most {_MAX_PARAMS_BYTES} bytes, got more")
    try:
        params = json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise InvalidRequestError(
            'params: expected a JSON object such as {"top_k": 3}, got text that is no JSON'
        ) from None
    if not isinstance(params, dict):
        raise InvalidRequestError(
            'params: expected a JSON object such as {"top_k": 3}, got another JSON value'
        )
    return params


def _expiry(inputs: Inputs) -> float | None:
    text = _text(inputs, "deadline_ms")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise InvalidRequestError(
            "deadline_ms: expected milliseconds as a whole number, got something else"
        )
    return time.monotonic() + int(text) / 1000


def _text(inputs: Inputs, key: str) -> str:
    """A short option as text; what is no UTF-8 becomes characters that no check accepts."""
    value = inputs.get(key, "")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", errors="replace")
    return str(value)
