"""How gRPC requests are read: only of known callers, and only when there is memory for them.

On the wire a unary request is a stream of one message. So `RequestGuard` registers every method as
one that streams its requests: gRPC then hands over the call first and reads the message when it is
asked for, while HTTP/2's window holds the sender back. A gRPC server left to itself reads every
request that comes, and 200 uploads of 20 MB are 4 GB before the first servicer is called.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from medserve.errors import (
    DeadlineError,
    InvalidRequestError,
    MedserveError,
    PayloadTooLargeError,
    ServerBusyError,
    ServerUnreachableError,
)
from medserve.gateway.core.admission import CallPlaces, Reservation
from medserve.gateway.core.call_context import CallContext, Context, identify, peer_address
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.status import abort
from medserve.gateway.core.wire_format import refuse_many_fields

__all__ = ["STREAMED_BYTES", "OpenDoor", "Registrar", "RequestGuard"]

STREAMED_BYTES = 16 * 2**20  # reserved for each message of a stream; a larger one is counted late
_LOOK_S = 0.5
_LAST_WORD_S = 0.1  # for what is on its way when the gateway stops
_SILENCE_S = 300.0  # of a stream for which nothing is under way
_SILENCE_BEFORE_THE_END_S = 2.0  # when the gateway stops
_SILENCE_BEFORE_OTHERS_S = 5.0  # the same while others wait for the memory
_WRITE_S = 60.0  # for a caller to take one message of an answer
_OPEN_STREAMS, _OPEN_STREAMS_EACH = 512, 64  # of health and reflection: of all, of one address
_QUESTION_BYTES = 2**16  # of health and reflection; the longest name of a symbol has hundreds
_AT_ONCE_S = 0.5  # a question comes with its call; who sends one later needs a place:
_LATE_QUESTIONS, _LATE_QUESTIONS_EACH = 8, 4  # of all, of one address
_LATE_S = 10.0

_Method = Callable[[Any, Any], Any]
_Parse = Callable[[bytes], Any] | None
if TYPE_CHECKING:
    _Handler = grpc.RpcMethodHandler[Any, Any]


class Registrar:
    """A server as the generated `add_…_to_server` functions expect it, without any guard.

    Attributes:
        services: Full names of what was registered, for reflection.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server
        self.services: list[str] = []

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Nothing: what comes next registers the same methods, one by one."""

    def add_registered_method_handlers(self, service: str, methods: Mapping[str, _Handler]) -> None:
        """Register a service; its methods are found by name when a call comes.

        gRPC's own registered methods each keep a task waiting, and every call would look at all.
        """
        self.services.append(service)
        wrapped = {name: self.wrap(method) for name, method in methods.items()}
        handler = grpc.method_handlers_generic_handler(service, wrapped)
        self._server.add_generic_rpc_handlers((handler,))

    def wrap(self, method: _Handler) -> _Handler:
        """The method as it is."""
        return method


class OpenDoor(Registrar):
    """Registers services that ask nobody who they are: health and reflection.

    A single question always gets its answer, unless it is larger than any of them. What stays open,
    to watch or to ask on, is bounded by the caller's address and in all, apart from the calls of
    everybody else; and so is what of a question is on its way.
    """

    def __init__(self, server: grpc.aio.Server, gateway: Gateway) -> None:
        super().__init__(server)
        self._gateway = gateway
        self._places = CallPlaces(_OPEN_STREAMS, _OPEN_STREAMS_EACH)
        self._late = CallPlaces(_LATE_QUESTIONS, _LATE_QUESTIONS_EACH)

    def wrap(self, method: _Handler) -> _Handler:
        """Return the same method; a stream of it has to find a place."""
        parse, serialize = method.request_deserializer, method.response_serializer
        if method.unary_unary is not None:
            once = self._once(method.unary_unary, parse)
            return grpc.stream_unary_rpc_method_handler(_let_go(once), None, serialize)
        answer = method.unary_stream or method.stream_stream
        assert answer is not None  # no contract streams requests to one answer
        bounded = self._bounded(answer, parse, asks_on=method.stream_stream is not None)
        return grpc.stream_stream_rpc_method_handler(_let_go(bounded), None, serialize)

    def _once(self, answer: _Method, parse: _Parse) -> _Method:
        async def once(_: object, context: Context) -> Any:
            try:
                return await answer(await self._question(context, parse), context)
            except MedserveError as error:
                await abort(context, error)

        return once

    def _bounded(self, answer: _Method, parse: _Parse, *, asks_on: bool) -> _Method:
        async def bounded(_: object, context: Context) -> None:
            try:
                with self._places.place(peer_address(context)):
                    request = (
                        self._questions(context, parse)
                        if asks_on
                        else await self._question(context, parse)
                    )
                    await self._until_stopping(_written(answer, request, context, _WRITE_S))
            except MedserveError as error:
                await abort(context, error)

        return bounded

    async def _questions(self, context: Context, parse: _Parse) -> AsyncGenerator[Any, None]:
        with contextlib.suppress(InvalidRequestError):  # the end of the stream
            while True:
                yield await self._question(context, parse)

    async def _question(self, context: Context, parse: _Parse) -> Any:
        """Return the next message; few of those that do not come at once are waited for.

        Raises:
            DeadlineError: it did not come.
            InvalidRequestError: there is none.
            PayloadTooLargeError: it is no question.
        """
        reading = asyncio.ensure_future(context.read())
        try:
            await asyncio.wait({reading}, timeout=_AT_ONCE_S)
            if not reading.done():
                with self._late.place(peer_address(context)):
                    await asyncio.wait({reading}, timeout=_LATE_S)
            if not reading.done():
                raise DeadlineError(
                    f"expected a question within {_LATE_S:g} s, got none; open a new call"
                )
            message = reading.result()
        finally:
            reading.cancel()
        if not isinstance(message, bytes):
            raise InvalidRequestError("expected a question, got a call without one")
        if len(message) > _QUESTION_BYTES:
            raise PayloadTooLargeError(
                f"expected a question of at most {_QUESTION_BYTES} bytes, got {len(message)}"
            )
        return _parsed(message, parse)

    async def _until_stopping(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work until it ends, or until a moment after the gateway stops."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._gateway.stopping.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                await asyncio.wait({working}, timeout=_LAST_WORD_S)  # a watcher hears the end
            if working.done():
                working.result()
        finally:
            for task in (working, stopping):
                task.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)


class RequestGuard(Registrar):
    """Registers services whose callers must be known and whose requests must fit.

    Args:
        server: where the services go.
        gateway: knows the callers and the memory.
        upload_timeout_s: for one message, from the moment that there is memory for it.
        max_calls: that are open at a time; one caller has at most half of them.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        gateway: Gateway,
        upload_timeout_s: float,
        max_calls: int = 2000,
    ) -> None:
        super().__init__(server)
        self._gateway = gateway
        self._upload_timeout_s = upload_timeout_s
        self._places = CallPlaces(max_calls, max(1, max_calls // 2))
        self._reads = _Reads(min(_LOOK_S, upload_timeout_s))

    def wrap(self, method: _Handler) -> _Handler:
        """The same method for a caller, with a guard before it."""
        parse, serialize = method.request_deserializer, method.response_serializer
        if method.unary_unary is not None:
            unary = self._unary(method.unary_unary, parse)
            return grpc.stream_unary_rpc_method_handler(_let_go(unary), None, serialize)
        if method.unary_stream is not None:
            streaming = self._streaming(method.unary_stream, parse)
            return grpc.stream_stream_rpc_method_handler(_let_go(streaming), None, serialize)
        assert method.stream_stream is not None  # no contract streams requests to one answer
        conversing = self._conversing(method.stream_stream, parse)
        return grpc.stream_stream_rpc_method_handler(_let_go(conversing), None, serialize)

    def _unary(self, answer: _Method, parse: _Parse) -> _Method:
        """Do what `_streaming` does, in the fewest steps: most calls are of this kind."""

        async def guarded(_: object, context: Context) -> Any:
            try:
                known = self._let_in(context)
                try:
                    async with self._room(known) as held:
                        request = await self._read(context, known, parse, held)
                        return await answer(request, context)
                finally:
                    self._places.leave(known.caller.owner)
            except MedserveError as error:
                await abort(context, error)

        return guarded

    def _streaming(self, answer: _Method, parse: _Parse) -> _Method:
        async def guarded(_: object, context: Context) -> None:
            async with (
                self._caller(context) as known,
                self._while_known(context),
                self._request(context, known, parse) as request,
            ):
                await _written(answer, request, context, _WRITE_S)

        return guarded

    def _conversing(self, answer: _Method, parse: _Parse) -> _Method:
        async def guarded(_: object, context: Context) -> None:
            async with (
                self._caller(context) as known,
                self._while_known(context),
                contextlib.aclosing(self._messages(context, known, parse)) as messages,
            ):
                await _written(answer, messages, context, _WRITE_S)

        return guarded

    @contextlib.asynccontextmanager
    async def _caller(self, context: Context) -> AsyncIterator[CallContext]:
        """Who calls, with a place among the open calls; an error inside ends the call."""
        try:
            known = self._let_in(context)
            try:
                yield known
            finally:
                self._places.leave(known.caller.owner)
        except MedserveError as error:
            await abort(context, error)

    def _let_in(self, context: Context) -> CallContext:
        """Return who calls, and count the call until it leaves its place."""
        if self._gateway.stopping.is_set():
            raise ServerUnreachableError("the server is stopping; connect again")
        known = identify(context, self._gateway)
        self._places.enter(known.caller.owner)
        return known

    @contextlib.asynccontextmanager
    async def _while_known(self, context: Context) -> AsyncIterator[None]:
        """End the block with AuthenticationError when the token no longer counts."""
        if not self._gateway.asks_for_tokens:
            yield
            return
        task, refused = asyncio.current_task(), list[MedserveError]()
        assert task is not None

        async def watch() -> None:
            try:
                while True:
                    await asyncio.sleep(_LOOK_S)
                    identify(context, self._gateway)
            except MedserveError as error:
                refused.append(error)
                task.cancel()

        watching = asyncio.create_task(watch())
        try:
            yield
        except asyncio.CancelledError:
            if refused and not task.uncancel():
                raise refused[0] from None
            raise
        finally:
            watching.cancel()

    @contextlib.asynccontextmanager
    async def _request(
        self, context: Context, known: CallContext, parse: _Parse
    ) -> AsyncIterator[Any]:
        """The one message of a call; its memory is taken for the time of the block."""
        async with self._room(known) as held:
            yield await self._read(context, known, parse, held)

    def _room(self, known: CallContext) -> AbstractAsyncContextManager[Reservation]:
        """Memory for the one message of a call, for the time of the block."""
        gateway = self._gateway
        most = gateway.limits.message_bytes
        return gateway.budget.reserve(most, known.caller.owner, known.deadline)

    async def _read(
        self, context: Context, known: CallContext, parse: _Parse, held: Reservation
    ) -> Any:
        """Return the one message of a call, and count what it really takes."""
        message = await self._next(context, known, streamed=False)
        if message is None:
            raise InvalidRequestError("expected a request, got a call without one")
        held.resize(len(message))
        return _parsed(message, parse)

    async def _messages(
        self, context: Context, known: CallContext, parse: _Parse
    ) -> AsyncGenerator[Any, None]:
        """The messages of a stream, each counted until the next one is asked for."""
        budget, owner = self._gateway.budget, known.caller.owner
        most = min(STREAMED_BYTES, self._gateway.limits.message_bytes)
        while True:
            need = 0 if known.memory.reserved else most
            async with budget.reserve(need, owner, known.deadline) as held:
                message = await self._next(context, known, streamed=True)
                if message is None:
                    return
                held.resize(len(message) if need else 0)
                request = _parsed(message, parse)
                del message  # one of both is enough
                yield request

    async def _next(self, context: Context, known: CallContext, *, streamed: bool) -> bytes | None:
        """Return the next message, None at the end.

        Raises:
            DeadlineError: nothing came for long, or the one request of a call took too long.
            ServerBusyError: nothing came for a while, and others wait for the memory.
            ServerUnreachableError: the gateway stops.
        """
        upload_s = None if streamed else self._upload_timeout_s
        watch = _SilenceWatch(self._gateway, known, upload_s)
        self._reads.begin(watch)
        try:
            message = await context.read()
        except asyncio.CancelledError:
            if watch.reason is not None and watch.ended_it():
                raise watch.reason from None
            raise
        finally:
            self._reads.end(watch)
        return message if isinstance(message, bytes) else None


class _Reads:
    """The messages that are waited for, looked at by one timer for all.

    Args:
        look_s: From one look to the next.
    """

    def __init__(self, look_s: float) -> None:
        self._look_s = look_s
        self._under_way: set[_SilenceWatch] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, watch: _SilenceWatch) -> None:
        """Look at this read, too."""
        self._under_way.add(watch)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._look_s, self._look)

    def end(self, watch: _SilenceWatch) -> None:
        """Look no more at this read."""
        self._under_way.discard(watch)

    def _look(self) -> None:
        now = time.monotonic()
        for watch in tuple(self._under_way):
            watch.look(now)
        again = bool(self._under_way)
        self._timer = (
            asyncio.get_running_loop().call_later(self._look_s, self._look) if again else None
        )


class _SilenceWatch:
    """Ends the wait for a message where waiting on is no use, or costs others.

    Args:
        gateway: Knows whether it stops, and who waits for memory.
        known: Whose message it is.
        upload_s: For the one request of a call; None for the messages of a stream.

    Attributes:
        reason: Why it has ended the wait.
    """

    def __init__(self, gateway: Gateway, known: CallContext, upload_s: float | None) -> None:
        self.reason: MedserveError | None = None
        self._gateway, self._known, self._upload_s = gateway, known, upload_s
        self._began = self._since = time.monotonic()
        self._stopping_since: float | None = None
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelled_before = task, task.cancelling()

    def look(self, now: float) -> None:
        """End the wait where that is due."""
        if self.reason is not None:
            return
        try:
            self._check(now)
        except MedserveError as error:
            self.reason = error
            self._task.cancel()

    def ended_it(self) -> bool:
        """Take the cancellation of the task back; False where somebody else cancelled it, too."""
        return self._task.uncancel() <= self._cancelled_before

    def _check(self, now: float) -> None:
        """Raise where nobody should wait on."""
        if self._upload_s is not None and now - self._began >= self._upload_s:
            raise DeadlineError(
                f"expected the whole request within {self._upload_s:g} s; send less at once or "
                "over a faster connection"
            )
        if self._gateway.works_for(self._known.request_id):  # the caller waits for us
            self._since, self._stopping_since = now, None
            return
        if self._gateway.stopping.is_set():
            self._stopping_since = self._stopping_since or now
            if now - self._stopping_since >= _SILENCE_BEFORE_THE_END_S:
                raise ServerUnreachableError("the server is stopping; connect again")
        if self._upload_s is not None:
            return
        if now - self._since > _SILENCE_S:
            raise DeadlineError(
                f"expected the next message within {_SILENCE_S:g} s, got none; open a new call"
            )
        if now - self._since > _SILENCE_BEFORE_OTHERS_S and self._gateway.budget.presses(
            self._known.caller.owner
        ):
            raise ServerBusyError(
                "nothing came for a while and others wait for the memory; open a new call"
            )


def _let_go(handler: _Method) -> _Method:
    """Return the handler of a method that leaves nothing of a request behind.

    gRPC never frees the exception of a call that was aborted, nor what its traceback refers to:
    the frames of the handler, and in them the request.
    """

    async def ended(request: object, context: Context) -> Any:
        try:
            return await handler(request, context)
        except grpc.aio.AbortError as aborted:
            aborted.__traceback__ = aborted.__context__ = None
            return None  # gRPC raises it again

    return ended


async def _written(answer: _Method, request: Any, context: Context, write_s: float) -> None:
    """Write what a method answers, to a caller who reads it.

    Raises:
        DeadlineError: the caller did not take a message in time.
    """
    if not inspect.isasyncgenfunction(answer):
        await answer(request, context)
        return
    async with contextlib.aclosing(answer(request, context)) as messages:
        async for message in messages:
            try:
                async with asyncio.timeout(write_s):
                    await context.write(message)
            except TimeoutError:
                raise DeadlineError(
                    f"expected the caller to take each message within {write_s:g} s; read faster "
                    "or ask for less"
                ) from None


def _parsed(message: bytes, parse: _Parse) -> Any:
    if parse is None:
        return message
    refuse_many_fields(message, parse.__self__.DESCRIPTOR)  # type: ignore[attr-defined]
    try:
        return parse(message)
    except DecodeError:
        raise InvalidRequestError("expected a protobuf message of this method") from None
