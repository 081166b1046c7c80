"""The program of one worker: it runs the handler of one unpacked archive, one batch at a time.

    python worker.py SOCKET REQUESTS ANSWERS FOLDER NAME

The first three are descriptors that the parent has opened: a socket for frames and two memory files
for large bodies. FOLDER is the archive, unpacked and verified, and NAME the model in it.

The archive carries its own `medserve` and `handlers`, which have to win over those that are
installed: so this file is run by its path and imports the standard library alone. What handlers use
of TorchServe is small, and stands below as a package `ts` of three names; TorchServe itself, which
would import torch, is not needed.

A frame is two lengths (head and body, four bytes each, big-endian), a JSON object and raw bytes. A
large body lies in a memory file instead ("stored"); the other side empties it when it has read it.

    to the worker     {"calls": [{"id": "…", "inputs": [["data", 123], …]}, …]}     the values
    from the worker   {"kind": "ready"}             the golden pair was reproduced
                      {"kind": "failed", "reason": "…"}       it was not; the worker ends
                      {"kind": "part"}              one part of a streamed answer
                      {"kind": "answers", "sizes": [45, …], "metrics": [[name, value, [label, …]]]}
                      {"kind": "error", "text": "CODE: message"}    of the batch; "" for a bug
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import inspect
import json
import logging
import os
import signal
import socket
import struct
import sys
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["LARGE_BYTES", "LENGTHS", "Frame", "main", "pack", "take_stored"]

LENGTHS = struct.Struct("!II")  # of head and body
LARGE_BYTES = 2**20  # a body from this size on goes through memory that both sides share
_SET_PDEATHSIG = 1  # of prctl(2)

logger = logging.getLogger("medserve.worker")


class Frame(NamedTuple):
    """One message: a JSON object, and raw bytes whose meaning it tells."""

    head: dict[str, Any]
    body: bytes


def pack(head: Mapping[str, Any], pieces: Sequence[bytes], memory: int | None) -> list[bytes]:
    """Return what is to be sent for a frame; a large body is written into `memory` first."""
    size = sum(map(len, pieces))
    stored = memory is not None and size >= LARGE_BYTES
    if stored:
        _store(memory, pieces)  # type: ignore[arg-type]  # checked a line before
        head, pieces = {**head, "stored": size}, ()
    text = json.dumps(head, separators=(",", ":")).encode()
    return [LENGTHS.pack(len(text), 0 if stored else size) + text, *pieces]


def take_stored(head: Mapping[str, Any], memory: int) -> bytes:
    """Return the body that lies in `memory`, which is empty afterwards."""
    body = os.pread(memory, head["stored"], 0)
    os.ftruncate(memory, 0)
    return body


def _store(memory: int, pieces: Sequence[bytes]) -> None:
    place = 0
    for piece in pieces:
        left = memoryview(piece)
        while left:
            written = os.pwrite(memory, left, place)
            place, left = place + written, left[written:]


# ---- what handlers use of TorchServe


class PredictionException(Exception):  # TorchServe's name
    """What a handler raises to answer its whole batch with "CODE: message"."""

    def __init__(self, message: str, error_code: int = 500) -> None:
        super().__init__(message)
        self.message, self.error_code = message, error_code


class MetricTypes:
    """The kinds of metrics that handlers name."""

    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"


class _Metric:
    def __init__(self, name: str, taken: list[Any]) -> None:
        self._name, self._taken = name, taken

    def add_or_update(self, value: float, dimension_values: Sequence[str]) -> None:
        self._taken.append([self._name, value, list(dimension_values)])


class _Metrics:
    """Keeps what the handler reports of a batch, until its answer takes it along."""

    def __init__(self) -> None:
        self.taken: list[Any] = []

    def get_metric(self, metric_name: str, metric_type: str = "", **_: Any) -> _Metric:
        return _Metric(metric_name, self.taken)


class _Context:
    """What handlers use of `ts.context.Context`."""

    model_yaml_config = None  # handlers read the file in their folder instead

    def __init__(self, folder: Path, name: str, channel: _Channel) -> None:
        self.system_properties = {"model_dir": str(folder)}
        self.model_name = name
        self.metrics = _Metrics()
        self.request_ids: dict[int, str] = {}
        self.channel = channel

    def get_request_id(self, idx: int = 0) -> str | None:
        return self.request_ids.get(idx)

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """TorchServe's way to end a stream; here a stream ends with its answer."""


def _send_part(chunks: Sequence[bytes], _ids: Any, _text: str, _code: int, context: Any) -> None:
    context.channel.send({"kind": "part"}, [bytes(chunks[0])])  # only a batch of one streams


def _stand_in() -> None:
    """Let handlers import what they use of TorchServe."""
    names: dict[str, dict[str, Any]] = {
        "ts": {},
        "ts.handler_utils": {},
        "ts.handler_utils.utils": {"send_intermediate_predict_response": _send_part},
        "ts.utils": {},
        "ts.utils.util": {"PredictionException": PredictionException},
        "ts.metrics": {},
        "ts.metrics.metric_type_enum": {"MetricTypes": MetricTypes},
    }
    for name, content in names.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        sys.modules[name] = module


# ---- the work


class _Channel:
    """The socket to the parent, and the memory for what is large."""

    def __init__(self, connection: socket.socket, requests: int, answers: int) -> None:
        self._connection = connection
        self._stream = connection.makefile("rb", buffering=2**16)
        self._requests, self._answers = requests, answers

    def receive(self) -> Frame | None:
        """Wait for a frame; None where the parent has gone."""
        lengths = self._stream.read(LENGTHS.size)
        if len(lengths) < LENGTHS.size:
            return None
        head_size, body_size = LENGTHS.unpack(lengths)
        text, body = self._stream.read(head_size), self._stream.read(body_size)
        if len(text) + len(body) < head_size + body_size:
            return None
        head = json.loads(text)
        return Frame(head, take_stored(head, self._requests) if "stored" in head else body)

    def send(self, head: Mapping[str, Any], pieces: Sequence[bytes] = ()) -> None:
        """Send a frame; a part of a stream is never stored, for the next may come too soon."""
        memory = None if head["kind"] == "part" else self._answers
        self._connection.sendall(b"".join(pack(head, pieces, memory)))


def main(arguments: Sequence[str]) -> int:
    """Serve until the parent closes the socket; the exit code."""
    _end_with_parent()
    connection, requests, answers = (int(each) for each in arguments[:3])
    folder, name = arguments[3:]
    channel = _Channel(socket.socket(fileno=connection), requests, answers)
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s|%(message)s", level=logging.INFO)
    context = _Context(Path(folder), name, channel)
    try:
        handler = _load(context)
    except Exception as error:
        logger.error("it cannot be loaded", exc_info=True)  # of the archive: no input is in it
        channel.send({"kind": "failed", "reason": _reason(error)})
        return 1
    channel.send({"kind": "ready"})
    while (frame := channel.receive()) is not None:
        head, pieces = _answer(handler, context, frame)
        channel.send({**head, "metrics": context.metrics.taken}, pieces)
        context.metrics.taken.clear()
    return 0


def _end_with_parent() -> None:
    """End with the parent, also in the midst of work, and before it where memory runs out.

    A parent that has ended before this line is noticed at the end of its socket.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


def _load(context: _Context) -> Any:
    """Import the one class of the archive's handler and let it prove itself."""
    _stand_in()
    sys.path[0] = context.system_properties["model_dir"]  # in the place of this file's folder
    module = importlib.import_module(context.model_name)
    classes = [each for _, each in inspect.getmembers(module, inspect.isclass)]
    own = [each for each in classes if each.__module__ == module.__name__]
    if len(own) != 1:
        raise ImportError(f"expected one class in {context.model_name}.py, got {len(own)}")
    handler: Any = own[0]()
    handler.initialize(context)
    return handler


def _answer(
    handler: Any, context: _Context, frame: Frame
) -> tuple[dict[str, Any], Sequence[bytes]]:
    """Return the head and the pieces of the answer to a batch."""
    batch = []
    place = 0
    for call in frame.head["calls"]:
        inputs = {}
        for key, size in call["inputs"]:
            inputs[key] = frame.body[place : place + size]
            place += size
        batch.append(inputs)
    context.request_ids = {at: call["id"] for at, call in enumerate(frame.head["calls"])}
    del frame
    try:
        answers = handler.handle(batch, context)
        if len(answers) != len(batch):
            raise ValueError(f"expected {len(batch)} answers, got {len(answers)}")
    except PredictionException as error:
        return {"kind": "error", "text": error.message}, ()
    except Exception as error:  # its text may quote the input
        place_of = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place_of.filename).name}:{place_of.lineno} in {place_of.name}"
        logger.error("the handler failed: %s at %s", type(error).__name__, where)
        return {"kind": "error", "text": ""}, ()
    return {"kind": "answers", "sizes": [len(each) for each in answers]}, answers


def _reason(error: Exception) -> str:
    """Our own errors are sentences already; others need the name of their kind."""
    kind, message = type(error).__name__, str(error)
    if hasattr(error, "code") and message:
        return message
    return f"{kind}: {message}" if message else kind


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
