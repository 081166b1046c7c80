"""One worker process as its parent sees it: started, given batches, watched and ended.

The parent has one end of a socket pair, which nobody else can open; its end closes with the
process. All of this happens in the event loop of the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medserve.engine.direct import worker
from medserve.engine.interface import WorkerLostError
from medserve.engine.process_state import STANDING_S, STOPPED_S, ProcessState
from medserve.errors import (
    DeadlineError,
    MedserveError,
    ModelNotReadyError,
    PayloadTooLargeError,
    ServerFailedError,
    error_from_text,
)

__all__ = ["Job", "Program", "WorkerProcess"]

_PARTS_AHEAD = 8  # of a stream; then the worker waits for the caller
_LINE = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL)\|(.*)", re.DOTALL)
_LONGEST_LINE = 2**16
_LAST_WORDS_S = 1.0

logger = logging.getLogger("medserve.engine")


@dataclass(eq=False)
class Job:
    """One call on its way through the engine.

    Attributes:
        inputs: What the handler gets, the markers of the call included; empty once a worker has
            it, or nobody waits any more: it may be large.
        request_id: As in `EngineRequest`.
        deadline: `time.monotonic()` at which nobody waits any more; None: never.
        answer: Set once; cancelled where nobody waits for it any more.
        parts: What is streamed before the answer, and None at its end; None for a unary call.
        worker: Who works on it.
        mark: The file that tells the worker that nobody waits.
        ended: Whether the engine has done with it.
    """

    inputs: Mapping[str, bytes]
    request_id: str
    deadline: float | None
    answer: asyncio.Future[bytes]
    parts: asyncio.Queue[bytes | None] | None = None
    worker: WorkerProcess | None = None
    mark: Path | None = None
    ended: bool = False

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for the answer."""
        return not self.answer.done()

    def expire(self, now: float) -> None:
        """End a call whose time was over before a worker was free."""
        if self.deadline is not None and now >= self.deadline:
            self.end(DeadlineError("the time was over before a worker of the model was free"))

    def end(self, outcome: bytes | MedserveError) -> None:
        """Give the caller the answer, or what went wrong."""
        self.ended, self.worker, self.inputs = True, None, {}
        if self.wanted:
            if isinstance(outcome, bytes):
                self.answer.set_result(outcome)
            else:
                self.answer.set_exception(outcome)
                self.answer.exception()  # a stream may be left before it is read to its end
        if self.parts is not None:
            self.parts.put_nowait(None)
        if self.mark is not None:
            self.mark.unlink(missing_ok=True)

    def abandon(self, marks: Path) -> None:
        """Nobody waits any more: a worker looks for the mark between the steps of its work."""
        self.answer.cancel()
        self.inputs = {}
        if self.worker is None:
            return
        self.worker.resume()
        if self.request_id:
            self.mark = marks / self.request_id
            with contextlib.suppress(OSError):  # the work only takes longer
                self.mark.touch(mode=0o600)

    def timed_inputs(self) -> Mapping[str, bytes]:
        """Return the inputs with the time that is left for them now."""
        if self.deadline is None:
            return self.inputs
        left_ms = max(0, int(1000 * (self.deadline - time.monotonic())))
        return {**self.inputs, "deadline_ms": b"%d" % left_ms}


@dataclass(frozen=True)
class Program:
    """What a worker runs.

    Attributes:
        model: Name of the model, and of the module of its handler.
        label: Name and version, for the log.
        folder: The unpacked archive.
        environment: Of the process.
        answer_s: The longest time for one batch; 0: any.
        answer_bytes: The largest answer to one.
    """

    model: str
    label: str
    folder: Path
    environment: Mapping[str, str]
    answer_s: float
    answer_bytes: int


class WorkerProcess(asyncio.Protocol):
    """A worker from its start to its end.

    Attributes:
        ready: Done once the worker has reproduced its golden pair; a ModelNotReadyError otherwise.
        ended: Done once the process is gone.
        jobs: The batch that it works on.

    Args:
        program: What it runs.
        on_free: Called when it can take a batch.
    """

    def __init__(self, program: Program, on_free: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.jobs: Sequence[Job] = ()
        self.on_metrics: Callable[[Sequence[Sequence[Any]]], None] = lambda _: None
        self._program = program
        self._on_free = on_free
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log = _Log(program.label)
        self._memories = [os.memfd_create("medserve") for _ in range(2)]  # requests, answers
        self._paused = False
        self._limit: asyncio.TimerHandle | None = None
        self._seen: ProcessState | None = None
        self._moved_at = time.monotonic()

    async def start(self) -> None:
        """Start the process; returns long before it is ready, and `reap` follows in any case.

        It is started by the thread of the event loop, because it ends with the thread that started
        it.
        """
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with theirs:
            self._transport, _ = await loop.create_connection(lambda: self, sock=ours)
            given = (theirs.fileno(), *self._memories)
            command = [sys.executable, worker.__file__, *map(str, given)]
            self._process = subprocess.Popen(
                [*command, str(self._program.folder), self._program.model],
                cwd=self._program.folder,
                env=self._program.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=given,
                start_new_session=True,  # Ctrl-C must not reach it: it has calls to finish
            )
        await loop.connect_read_pipe(lambda: self._log, self._process.stdout)

    async def reap(self) -> None:
        """End the process and wait until nothing of it is left."""
        self.kill()
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)
            await self._log.close()
        if self._transport is not None:
            self._transport.abort()
            await self.ended

    @property
    def pid(self) -> int:
        """Of the process; 0 before it is started."""
        return self._process.pid if self._process is not None else 0

    @property
    def free(self) -> bool:
        """Whether it takes a batch now."""
        return self.alive and not self.jobs

    @property
    def alive(self) -> bool:
        """Whether it has proven itself and is still there."""
        proven = self.ready.done() and not self.ready.cancelled() and not self.ready.exception()
        return proven and not self.ended.done()

    def work(self, jobs: Sequence[Job]) -> None:
        """Hand over a batch; a job that streams is a batch of its own."""
        assert self._transport is not None  # it is free, so it was started
        calls = []
        pieces: list[bytes] = []
        for job in jobs:
            inputs = job.timed_inputs()
            calls.append(
                {"id": job.request_id, "inputs": [(key, len(inputs[key])) for key in inputs]}
            )
            pieces += inputs.values()
            job.worker, job.inputs = self, {}
        self.jobs = jobs
        self._moved_at = time.monotonic()
        self._transport.writelines(worker.pack({"calls": calls}, pieces, self._memories[0]))
        if self._program.answer_s:
            loop = asyncio.get_running_loop()
            self._limit = loop.call_later(self._program.answer_s, self.kill, "took too long")

    def kill(self, reason: str = "") -> None:
        """End the process at once; `ended` follows."""
        if reason and not self.ended.done():
            logger.warning("%s: a worker %s; it is ended", self._program.label, reason)
        if self._process is not None:
            self._process.kill()

    def look(self, now: float) -> None:
        """End the process where it stands still: stopped by a signal, or idle beside its work."""
        state = ProcessState.of(self.pid)
        if state is None:
            return
        at_work = bool(self.jobs) and not self._paused and not state.runnable
        if state != self._seen or not (at_work or state.stopped):
            self._moved_at = now
        self._seen = state
        if now - self._moved_at >= (STOPPED_S if state.stopped else STANDING_S):
            self.kill("stood still")

    def resume(self) -> None:
        """Read on: somebody has taken a part of the stream, or nobody ever will."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._moved_at = time.monotonic()
            self._transport.resume_reading()

    # ---- what the event loop calls

    def data_received(self, data: bytes) -> None:
        """Take in a piece of what the worker says."""
        self._moved_at = time.monotonic()
        self._received += data
        lengths = worker.LENGTHS
        while len(self._received) >= lengths.size:
            head_size, body_size = lengths.unpack_from(self._received)
            middle = lengths.size + head_size
            end = middle + body_size
            if head_size + body_size > self._program.answer_bytes + worker.LARGE_BYTES:
                self.kill("says more than it may")
                return
            if len(self._received) < end:
                return
            head = json.loads(self._received[lengths.size : middle])
            body = bytes(self._received[middle:end])
            del self._received[:end]
            self._take(head, body)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody that the process has ended; it is ended if it only closed its socket."""
        self.kill()
        for memory in self._memories:
            os.close(memory)
        self._disarm()
        if not self.ready.done():
            self.ready.set_exception(ModelNotReadyError(""))
        self.ready.exception()  # somebody has looked
        jobs, self.jobs = self.jobs, ()
        self.ended.set_result(None)
        for job in jobs:
            job.end(WorkerLostError("the worker of the model ended before it had answered"))

    def _take(self, head: dict[str, Any], body: bytes) -> None:
        match head["kind"]:
            case "ready":
                self.ready.set_result(None)
                self._on_free()
            case "failed":
                self.ready.set_exception(ModelNotReadyError(head["reason"]))
            case "part":
                self._part(body)
            case "answers":
                self.on_metrics(head["metrics"])
                self._finish(self._answers(head, body))
            case "error":
                self.on_metrics(head["metrics"])
                self._finish([_error(head["text"]) for _ in self.jobs])

    def _answers(self, head: dict[str, Any], body: bytes) -> Sequence[bytes | MedserveError]:
        """Return the answers to a batch; one that is larger than any may be is refused unread."""
        most, memory = self._program.answer_bytes, self._memories[1]
        found: list[bytes | MedserveError] = []
        for size, end in zip(head["sizes"], itertools.accumulate(head["sizes"]), strict=True):
            if size > most:
                found.append(_too_large(most))
            elif "stored" in head:
                found.append(os.pread(memory, size, end - size))
            else:
                found.append(body[end - size : end])
        if "stored" in head:
            os.ftruncate(memory, 0)
        return found

    def _part(self, body: bytes) -> None:
        for job in self.jobs:
            if job.parts is not None and job.wanted:
                job.parts.put_nowait(body)
                if job.parts.qsize() >= _PARTS_AHEAD and self._transport and not self._paused:
                    self._paused = True
                    self._transport.pause_reading()

    def _finish(self, outcomes: Sequence[bytes | MedserveError]) -> None:
        self._disarm()
        jobs, self.jobs = self.jobs, ()
        for job, outcome in zip(jobs, outcomes, strict=True):
            job.end(outcome)
        self.resume()  # a stream that was read to its end at once has nobody left who does
        self._on_free()

    def _disarm(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None


class _Log(asyncio.Protocol):
    """Passes a worker's lines on to the log of the engine."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._rest = b""
        self._level = logging.INFO
        self._over = asyncio.Event()
        self._transport: asyncio.BaseTransport | None = None

    async def close(self) -> None:
        """Take in what a process has left that has ended; who inherited its output is cut off."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._over.wait()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """The last process that held the other end has let go of it."""
        self._over.set()

    def data_received(self, data: bytes) -> None:
        """Log the lines that are complete."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            text = line.decode("utf-8", "replace")
            if parts := _LINE.fullmatch(text):  # further lines of a message have no level
                self._level, text = logging.getLevelNamesMapping()[parts[1]], parts[2]
            logger.log(self._level, "%s: %s", self._label, text)


def _error(text: str) -> MedserveError:
    """The error that a handler raised as "CODE: message"; a bug has no text."""
    return error_from_text(text) or ServerFailedError(
        "the model failed on this request; its log tells why"
    )


def _too_large(most: int) -> MedserveError:
    return PayloadTooLargeError(
        f"expected an answer of at most {most} bytes, got a larger one; ask for less of it, or let "
        "the operator raise --max-message-mb"
    )
