"""From images to requests: packing many into one call, within the limits."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medserve.client._connection import Limits
from medserve.client._failures import Failure
from medserve.errors import DeadlineError, InvalidRequestError, MedserveError, PayloadTooLargeError
from medserve.tasks.classification import EXPLAINED_PER_CALL
from medserve.wire import inference_pb2

__all__ = ["Chunk", "Job", "PackedJob", "Target", "for_explanations", "pack", "read"]

# The protobuf around the bytes: names, keys, lengths, parameters.
_ENVELOPE_BYTES = 16 * 2**10
_CLOCKS_DIFFER_S = 0.01  # a deadline that the server saw pass may be so far ahead here
_FIRST_WAIT_S = 0.2  # doubles with each attempt: 0.2, 0.4, 0.8


@dataclass(frozen=True)
class Target:
    """Who shall answer, and in what time; the same for all calls of one task."""

    model: str
    version: str  # empty: the default version
    timeout_s: float
    attempts: int


@dataclass(frozen=True)
class Chunk:
    """Consecutive images that travel in one call.

    Attributes:
        items: Bytes to send, or the error of an item that cannot be sent.
    """

    items: tuple[bytes | MedserveError, ...]

    @property
    def payloads(self) -> list[bytes]:
        """What is sent."""
        return [item for item in self.items if isinstance(item, bytes)]


def pack(images: Iterable[bytes | Path], limits: Limits) -> Iterator[Chunk]:
    """Group images in order; a file is read only when its chunk is being filled."""
    items: list[bytes | MedserveError] = []
    size = 0
    for image in images:
        item = _sendable(image, limits)
        extra = len(item) if isinstance(item, bytes) else 0
        if items and (len(items) == limits.items_per_call or size + extra > limits.bytes_per_call):
            yield Chunk(tuple(items))
            items, size = [], 0
        items.append(item)
        size += extra
    if items:
        yield Chunk(tuple(items))


def for_explanations(limits: Limits) -> Limits:
    """The same limits, with as many images a call as a model explains at a time."""
    return replace(limits, items_per_call=min(limits.items_per_call, EXPLAINED_PER_CALL))


def _sendable(image: bytes | Path, limits: Limits) -> bytes | MedserveError:
    try:
        return read(image, limits)
    except MedserveError as error:
        return error


def read(image: bytes | Path, limits: Limits) -> bytes:
    """The bytes to send; refuses a file that cannot be read or is over the limit."""
    if not isinstance(image, Path):
        _check_size(len(image), limits)
        return bytes(image)
    try:
        _check_size(image.stat().st_size, limits)
        return image.read_bytes()
    except OSError as error:
        raise InvalidRequestError(
            f"expected a readable file, got {image} ({error.strerror})"
        ) from error


def _check_size(size: int, limits: Limits) -> None:
    limit = max(limits.message_bytes - _ENVELOPE_BYTES, 0)
    if size > limit:
        raise PayloadTooLargeError(
            f"expected at most {limit} bytes, got {size}; send a smaller file or raise "
            "Limits.message_bytes here and the limit of the server"
        )


class Job:
    """One request until its answer: its deadline, its attempts and what each attempt sends."""

    def __init__(self, target: Target, content: Mapping[str, bytes]) -> None:
        self.target = target
        self._content = content
        self._end = time.monotonic() + target.timeout_s
        self._attempt = 1

    @classmethod
    def single(cls, target: Target, data: bytes, params: Mapping[str, Any] | None) -> Job:
        """One file in one call."""
        content = {"data": data}
        if params is not None:
            content["params"] = json.dumps(params).encode()
        return cls(target, content)

    @property
    def left_s(self) -> float:
        """Time until the deadline, in seconds; never negative."""
        return max(self._end - time.monotonic(), 0.0)

    def request(self) -> inference_pb2.PredictionsRequest:
        """The message of the next attempt; it carries the time that is left now."""
        deadline_ms = str(int(self.left_s * 1000)).encode()
        return inference_pb2.PredictionsRequest(
            model_name=self.target.model,
            model_version=self.target.version,
            input={**self._content, "transport": b"grpc", "deadline_ms": deadline_ms},
        )

    def error_of(self, failure: Failure) -> MedserveError:
        """What to tell the user, now that the time that is left is known too."""
        if failure.may_be_late and self.left_s <= _CLOCKS_DIFFER_S:
            return DeadlineError(
                f"the server gave no answer within {self.target.timeout_s:g} s; allow more or "
                "send less"
            )
        return failure.error

    def wait_after(self, failure: Failure) -> float:
        """Seconds to wait before the next attempt; raises the error where none may follow."""
        wait_s: float = _FIRST_WAIT_S * 2 ** (self._attempt - 1)
        if not failure.retry or self._attempt >= self.target.attempts:
            raise self.error_of(failure)
        if wait_s >= self.left_s:
            raise DeadlineError(f"no time left to try again after: {failure.error}")
        self._attempt += 1
        return wait_s


class PackedJob(Job):
    """Many images in one call; `explain` asks for their heat maps too."""

    def __init__(self, target: Target, chunk: Chunk, *, explain: bool = False) -> None:
        content = {f"data.{place}": payload for place, payload in enumerate(chunk.payloads)}
        if explain:
            content["params"] = b'{"explain": true}'
        super().__init__(target, content)
        self.chunk = chunk
        self._explain = explain

    def halves(self) -> tuple[PackedJob, PackedJob]:
        """The same images in two calls, for a server that takes less at a time."""
        items = self.chunk.items
        middle = len(items) // 2
        return (
            PackedJob(self.target, Chunk(items[:middle]), explain=self._explain),
            PackedJob(self.target, Chunk(items[middle:]), explain=self._explain),
        )
