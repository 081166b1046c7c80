"""Calls that come at the same time travel to the engine as one.

A call leaves at once while the engine has room for another one. Those that come while it has none
wait for the next answer, and leave together with all that have the same model, version and options,
as the files `data.0` … `data.N` of one call. So nothing ever waits for company alone, and under
load the engine's cost of a call is shared by many.

Each call keeps its own deadline, request id and answer, to the byte. What concerns a call of many
as a whole is no answer for anybody: each of its calls is then asked alone.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from medserve import tracing
from medserve.engine.interface import Engine, EngineRequest, WorkerLostError
from medserve.errors import DeadlineError, MedserveError, ServerBusyError, ServerFailedError
from medserve.gateway.core.calls import EngineCall, ModelInfo, error_in, new_request_id
from medserve.gateway.core.metrics import GatewayMetrics

__all__ = ["GATHERED_BYTES", "Gatherer", "SharedWorkerLostError"]

GATHERED_BYTES = 2**20  # a larger call gains nothing and is sent as it is
_CALL_BYTES = 4 * 2**20  # of all that travel together
_PARAMS_BYTES = 1024  # longer ones are never compared
_PARAMS_KNOWN = 256
_NAMES_KNOWN = 128
_OF_ONE = {"data", "params"}
_ITEMS = b'"items":['
_FOR_ALL = (WorkerLostError, ServerBusyError, DeadlineError)  # what each of a call is told

_Key = tuple[str, str, bytes]  # model, version and options, as the caller gave them


class SharedWorkerLostError(WorkerLostError):
    """The worker ended while it had several calls at once, one of which may be the reason."""


class _PackedAnswer(msgspec.Struct):
    items: list[msgspec.Raw]


_read_packed = msgspec.json.Decoder(_PackedAnswer).decode


@dataclass(eq=False)
class _Waiting:
    """One call that has not left yet.

    Attributes:
        answer: The engine's answer to this call; None: it has to be asked alone.
        task: Waits for the answer.
    """

    call: EngineCall
    files: Sequence[bytes]
    answer: asyncio.Future[bytes | None]
    task: asyncio.Task[Any]
    span: Any  # of the wait; None where the call is not traced


@dataclass(eq=False)
class _Line:
    """The calls of one model, version and options.

    Attributes:
        room: Calls that the engine has at a time.
        bound: Files that travel together at most.
        timeout_s: For the engine's answer.
    """

    key: _Key
    room: int
    bound: int
    timeout_s: float
    calls_at_work: int = 0
    files_at_work: int = 0
    waiting: deque[_Waiting] = field(default_factory=deque)

    def next_pack(self) -> list[_Waiting]:
        """Take out who leaves now: an equal share for each call that the engine has room for.

        All at once would leave the engine's workers with nothing while the answers go back.
        """
        files = self.files_at_work + sum(len(each.files) for each in self.waiting)
        most = min(self.bound, -(-files // self.room))
        pack, count, size = list[_Waiting](), 0, 0
        while self.waiting:
            first = self.waiting[0]
            count, size = count + len(first.files), size + first.call.size_bytes
            if pack and (count > most or size > _CALL_BYTES):
                break
            pack.append(self.waiting.popleft())
        return pack


class Gatherer:
    """Asks an engine, on behalf of many callers at once.

    Args:
        engine: Who is asked.
        most: Files that travel together; 1 gathers nothing.
        metrics: Where the number of files that travel together is noted.
    """

    def __init__(self, engine: Engine, most: int, metrics: GatewayMetrics) -> None:
        self._engine, self._most, self._metrics = engine, most, metrics
        self._lines: dict[_Key, _Line] = {}
        self._held: dict[asyncio.Task[Any], _Line] = {}  # whose calls have not left yet
        self._under_way: set[asyncio.Task[None]] = set()

    def takes(self, call: EngineCall, model: ModelInfo) -> bool:
        """Return whether a call may share its way to the engine with others.

        One of many files has shared already, and the engine's own queue costs it less.
        """
        return (
            self._most > 1
            and model.task.packs
            and call.size_bytes <= GATHERED_BYTES
            and 0 < len(_files(call.inputs)) <= max(1, self._bound(model) // 4)
            and _is_plain(call.inputs.get("params", b""))
        )

    def at_once(self, model: ModelInfo) -> int:
        """Return how many calls of one file a worker of the model takes at once."""
        batch = model.spec.serving.batch_size
        return max(batch, self._bound(model) // 2) if model.task.packs else batch

    async def ask(self, call: EngineCall, model: ModelInfo, room: int, timeout_s: float) -> bytes:
        """Return the answer to a call, as the engine would have given it to this call alone.

        Args:
            call: One that `takes` accepts.
            model: Whom it asks.
            room: Calls of this kind that the engine has at a time.
            timeout_s: As for the engine.

        Raises:
            MedserveError: whatever went wrong.
        """
        key = (call.model, call.version, call.inputs.get("params", b""))
        if (line := self._lines.get(key)) is None:
            line = self._lines[key] = _Line(key, room, self._bound(model), timeout_s)
        line.room = room
        files = _files(call.inputs)
        if line.calls_at_work < room and not line.waiting:
            self._begin(line, len(files))
            try:
                return await self._engine.call(call, timeout_s)
            finally:
                self._end(line, len(files))
        answer = await self._wait(line, call, files)
        return await self._engine.call(call, timeout_s) if answer is None else answer

    def withdraw(self, task: asyncio.Task[Any]) -> bool:
        """End the task of a call that nobody waits for; False where the call has left already."""
        if not self._take_out(task):
            return False
        task.cancel()
        return True

    async def close(self) -> None:
        """Let go of what is under way."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _bound(self, model: ModelInfo) -> int:
        return min(self._most, model.spec.input.max_items)

    # ---- waiting

    async def _wait(self, line: _Line, call: EngineCall, files: Sequence[bytes]) -> bytes | None:
        task = asyncio.current_task()
        assert task is not None
        answer: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        span = None
        if call.trace is not None:
            span = tracing.open_child(call.trace.span, "gateway.gathering")
        line.waiting.append(_Waiting(call, files, answer, task, span))
        self._held[task] = line
        self._send(line)
        try:
            return await answer
        finally:
            self._take_out(task)
            tracing.close(span)

    def _take_out(self, task: asyncio.Task[Any]) -> bool:
        line = self._held.pop(task, None)
        if line is None:
            return False
        line.waiting = deque(each for each in line.waiting if each.task is not task)
        return True

    def _begin(self, line: _Line, files: int) -> None:
        line.calls_at_work += 1
        line.files_at_work += files
        self._metrics.gathered_files(line.key[0]).observe(files)

    def _end(self, line: _Line, files: int) -> None:
        line.calls_at_work -= 1
        line.files_at_work -= files
        self._send(line)
        if not line.calls_at_work and not line.waiting:
            self._lines.pop(line.key, None)

    def _send(self, line: _Line) -> None:
        """Let leave who waits, as far as the engine has room."""
        while line.waiting and line.calls_at_work < line.room:
            pack = line.next_pack()
            for each in pack:
                del self._held[each.task]
                tracing.close(each.span)
            self._begin(line, sum(len(each.files) for each in pack))
            task = asyncio.create_task(self._together(line, pack))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    # ---- together

    async def _together(self, line: _Line, pack: Sequence[_Waiting]) -> None:
        """Ask for all of a pack, and tell each."""
        outcomes: Sequence[bytes | MedserveError | None] = [None for _ in pack]
        try:
            outcomes = await self._outcomes(line, pack)
        except Exception as error:
            outcomes = [_told(error, alone=len(pack) == 1) for _ in pack]
        finally:  # also of a task that is cancelled
            for each, outcome in zip(pack, outcomes, strict=True):
                _tell(each.answer, outcome)
            self._end(line, sum(len(each.files) for each in pack))

    async def _outcomes(
        self, line: _Line, pack: Sequence[_Waiting]
    ) -> Sequence[bytes | MedserveError | None]:
        if len(pack) == 1:
            return [await self._engine.call(pack[0].call, line.timeout_s)]
        answer = await self._engine.call(_request(pack), line.timeout_s)
        return _split(answer, pack)


def _told(error: Exception, *, alone: bool) -> MedserveError | None:
    """What a call is told of a failure that it may share; None: it is asked alone."""
    if not isinstance(error, MedserveError) or not (alone or isinstance(error, _FOR_ALL)):
        return None
    if isinstance(error, WorkerLostError) and not alone:
        return SharedWorkerLostError(error.message)
    return copy.copy(error)  # each raises its own


def _tell(answer: asyncio.Future[bytes | None], outcome: bytes | MedserveError | None) -> None:
    if answer.done():  # its caller has gone
        return
    if isinstance(outcome, MedserveError):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


def _files(inputs: Mapping[str, bytes]) -> tuple[bytes, ...]:
    """Return the images of a call in order; none where it carries anything but them and options."""
    if "data" in inputs:
        return () if inputs.keys() - _OF_ONE else (inputs["data"],)
    try:
        return tuple([inputs[name] for name in _names(len(inputs) - ("params" in inputs))])
    except KeyError:
        return ()


@functools.lru_cache(_NAMES_KNOWN)
def _names(count: int) -> tuple[str, ...]:
    return tuple(f"data.{place}" for place in range(count))


@functools.lru_cache(_PARAMS_KNOWN)
def _is_plain(params: bytes) -> bool:
    """Return whether options are such that many images take little more time than one."""
    if not params:
        return True
    if len(params) > _PARAMS_BYTES:
        return False
    try:
        options = json.loads(params)
    except (ValueError, RecursionError):
        return False
    return isinstance(options, dict) and not options.get("explain")


def _request(pack: Sequence[_Waiting]) -> EngineRequest:
    """Return one call with the files of all.

    Its id is its own: with the id of one of them, its caller's end would stop the work for all.
    """
    first = pack[0].call
    files = [file for each in pack for file in each.files]
    inputs = dict(zip(_names(len(files)), files, strict=True))
    if params := first.inputs.get("params"):
        inputs["params"] = params
    ends = [each.call.deadline for each in pack]
    return EngineRequest(
        first.model,
        first.version,
        inputs,
        request_id=new_request_id(),
        deadline=None if None in ends else max(end for end in ends if end is not None),
        trace=tracing.together([each.call.trace for each in pack]),
    )


def _split(answer: bytes, pack: Sequence[_Waiting]) -> list[bytes | None]:
    """Return what the model would have answered to each call of a pack alone, byte for byte.

    None for each where the answer is not that of a packed call (see `handlers.answer`), and for one
    of whose files the model met a bug: the log of its model must name the caller's own request.
    """
    head, found, _ = answer.partition(_ITEMS)
    parts: list[bytes] = []  # of each file, without its index
    if found:
        for place, item in enumerate(map(bytes, _read_packed(answer).items)):
            index = b'{"index":%d,' % place
            parts.append(item.removeprefix(index))
    whole = b",".join(b'{"index":%d,%b' % (place, part) for place, part in enumerate(parts))
    if len(parts) != sum(len(each.files) for each in pack) or answer != b"".join(
        (head, _ITEMS, whole, b"]}")
    ):
        raise ServerFailedError("the model answered a packed call in a form of its own")
    answers: list[bytes | None] = []
    first = 0
    for each in pack:
        own = parts[first : first + len(each.files)]
        first += len(each.files)
        answers.append(None if any(map(_is_bug, own)) else _answer(head, own, each))
    return answers


def _answer(head: bytes, parts: Sequence[bytes], waiting: _Waiting) -> bytes:
    if "data" in waiting.call.inputs:
        return head + parts[0]
    items = (b'{"index":%d,%b' % (place, part) for place, part in enumerate(parts))
    return b"".join((head, _ITEMS, b",".join(items), b"]}"))


def _is_bug(part: bytes) -> bool:
    error = error_in(b"{" + part)
    return error is not None and error.code == ServerFailedError.code
