"""The client for ordinary programs: the asyncio client, run by one thread for the whole process.

The thread of the caller waits for each answer and meanwhile runs what may block: it reads files,
advances the caller's own iterators and unpacks large answers. The event loop only sends and
receives, so that clients and threads never wait for each other's disks.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Sequence
from contextvars import copy_context
from queue import SimpleQueue
from types import TracebackType
from typing import Any, ClassVar, Concatenate, ParamSpec, Self, TypeVar
from weakref import WeakSet

from medserve.client.aio import AsyncClient
from medserve.client.connection import Limits, TlsConfig
from medserve.client.inputs import Source
from medserve.client.order import OFF_LOOP
from medserve.client.results import FileResult
from medserve.errors import ConfigError, ServerUnreachableError
from medserve.settings import Address
from medserve.tasks.classification import Classification, ClassificationOptions

__all__ = ["Client"]

Result = TypeVar("Result")
P = ParamSpec("P")
_Inbox = SimpleQueue[Any]  # of one caller: calls that its thread shall make, and the task that ends


class _EventLoop:
    """An event loop in a daemon thread, which callers from any other thread may use.

    Attributes:
        busy: How many calls run and how many streams are open.
    """

    def __init__(self) -> None:
        self.busy = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="medserve-client", daemon=True
        )
        self._thread.start()

    def run(
        self, work: Callable[[], Coroutine[Any, Any, Result]], inbox: _Inbox | None = None
    ) -> Result:
        """Return what the coroutine returns; the calling thread runs what may block meanwhile.

        The steps of one stream share an inbox: what one step began may ask for a call in the next.
        """
        messages: _Inbox = SimpleQueue() if inbox is None else inbox
        begun: list[asyncio.Task[Result]] = []

        def begin() -> None:
            context = copy_context()
            context.run(OFF_LOOP.set, functools.partial(self._off_loop, messages))
            begun.append(self._loop.create_task(work(), context=context))
            begun[0].add_done_callback(messages.put)

        self._loop.call_soon_threadsafe(begin)
        try:
            while not isinstance(message := messages.get(), asyncio.Task):
                message()
        except BaseException:  # Ctrl-C, as a rule: nothing goes on behind the caller's back
            self._loop.call_soon_threadsafe(lambda: begun[0].cancel())
            while not isinstance(messages.get(), asyncio.Task):
                pass
            raise
        try:
            return begun[0].result()
        except asyncio.CancelledError:
            raise ServerUnreachableError(
                "this client was closed while the call was running; open a new one"
            ) from None

    def forget(self, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Run the coroutine to its end without waiting for it."""
        with contextlib.suppress(RuntimeError):  # the loop has ended with the process
            self._loop.call_soon_threadsafe(lambda: self._loop.create_task(work()))

    def end(self) -> None:
        """Stop the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _off_loop(
        self,
        inbox: _Inbox,
        function: Callable[..., Any],
        *arguments: Any,
    ) -> Any:
        """Let the thread that waits for this task call the function."""
        done: asyncio.Future[Any] = self._loop.create_future()

        def settle(outcome: object, error: Exception | None) -> None:
            if done.cancelled():
                return
            if error is None:
                done.set_result(outcome)
            else:
                done.set_exception(error)

        def call() -> None:
            outcome, error = None, None
            try:
                outcome = function(*arguments)
            except Exception as reason:
                error = reason
            self._loop.call_soon_threadsafe(settle, outcome, error)

        inbox.put(call)
        return await done


class _Process:
    """The event loop of this process, started by the first call."""

    lock = threading.Lock()
    loop: _EventLoop | None = None
    pid = 0  # of the process that started the loop
    clients: ClassVar[WeakSet[AsyncClient]] = WeakSet()

    @classmethod
    def is_forked(cls) -> bool:
        """Tell whether the loop's thread, and gRPC's, stayed behind in a parent process."""
        return cls.loop is not None and cls.pid != os.getpid()

    @classmethod
    @contextlib.contextmanager
    def event_loop(cls, client: AsyncClient) -> Generator[_EventLoop, None, None]:
        """Give the loop, which stays while the block runs."""
        if cls.is_forked():
            raise ConfigError(
                "this process was forked after a client had made a call, which gRPC does not "
                "survive; start processes with the method spawn or forkserver, or make the first "
                "call after the fork"
            )
        with cls.lock:
            loop = cls.loop = cls.loop or _EventLoop()
            cls.pid = os.getpid()
            cls.clients.add(client)
            loop.busy += 1
        try:
            yield loop
        finally:
            with cls.lock:
                loop.busy -= 1

    @classmethod
    def end(cls) -> None:
        """Close every connection and end the loop, unless a call is running."""
        if cls.loop is not None and not cls.is_forked() and not cls.loop.busy:
            for client in list(cls.clients):
                cls.loop.run(client.disconnect)
            cls.loop.end()


atexit.register(_Process.end)


def _call(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate[Client, P], Result]:
    """Return the method of `Client` that waits for this one."""

    @functools.wraps(method)
    def call(self: Client, /, *arguments: P.args, **named: P.kwargs) -> Result:
        with _Process.event_loop(self._client) as loop:
            return loop.run(lambda: method(self._client, *arguments, **named))

    return call


def _stream(
    method: Callable[Concatenate[AsyncClient, P], AsyncGenerator[Result, None]],
) -> Callable[Concatenate[Client, P], Generator[Result, None, None]]:
    """Return the generator of `Client` that advances this one."""

    @functools.wraps(method)
    def stream(
        self: Client, /, *arguments: P.args, **named: P.kwargs
    ) -> Generator[Result, None, None]:
        source = method(self._client, *arguments, **named)
        inbox: _Inbox = SimpleQueue()

        async def advance() -> Result:  # on the loop, which then knows the generator
            return await anext(source)

        with _Process.event_loop(self._client) as loop:
            try:
                while True:
                    yield loop.run(advance, inbox)
            except StopAsyncIteration:
                return
            finally:
                loop.forget(source.aclose)

    return stream


class Client:
    """A connection to one gateway; safe to share between threads.

    Usage:
        with Client("127.0.0.1:8001") as client:
            print(client.classify_one("mednist", Path("hand.png")).label)

    Args:
        address: The gateway's gRPC port, `host:port`.
        token: Sent as a bearer token with each call.
        tls: TLS instead of plain text.
        timeout_s: For each call from its first attempt to its answer; for many images this
            bounds each packed call, not the whole. It may be changed between calls.
        limits: How much one call carries and how often it is tried.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:8001",
        *,
        token: str | None = None,
        tls: TlsConfig | None = None,
        timeout_s: float = 30.0,
        limits: Limits | None = None,
    ) -> None:
        self._client = AsyncClient(
            address, token=token, tls=tls, timeout_s=timeout_s, limits=limits
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def address(self) -> Address:
        """Where the gateway is."""
        return self._client.address

    @property
    def timeout_s(self) -> float:
        """Time for each call."""
        return self._client.timeout_s

    @timeout_s.setter
    def timeout_s(self, timeout_s: float) -> None:
        self._client.timeout_s = timeout_s

    close = _call(AsyncClient.close)
    models = _call(AsyncClient.models)
    ping = _call(AsyncClient.ping)
    wait_ready = _call(AsyncClient.wait_ready)
    classify_one = _call(AsyncClient.classify_one)
    estimate = _call(AsyncClient.estimate)
    estimate_one = _call(AsyncClient.estimate_one)
    estimate_groups = _stream(AsyncClient.estimate_groups)
    segment = _call(AsyncClient.segment)
    segment_file = _call(AsyncClient.segment_file)
    segment_each = _stream(AsyncClient.segment_each)
    segment_frame = _call(AsyncClient.segment_frame)
    segment_frames = _stream(AsyncClient.segment_frames)
    sample = _stream(AsyncClient.sample)
    sample_all = _call(AsyncClient.sample_all)
    predict = _call(AsyncClient.predict)
    classify_groups = _stream(AsyncClient.classify_groups)

    def classify_each(
        self,
        model: str,
        images: Iterable[Source],
        *,
        options: ClassificationOptions | None = None,
        version: str | None = None,
    ) -> Generator[FileResult[Classification], None, None]:
        """Like `classify`, but gives each result as soon as it and those before it are known.

        Takes images as it goes, so that neither they nor their results need to fit in memory.
        """
        # One visit to the event loop for each packed call, not for each image.
        for results in self.classify_groups(model, images, options=options, version=version):
            yield from results

    def classify(
        self,
        model: str,
        images: Sequence[Source],
        *,
        options: ClassificationOptions | None = None,
        version: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[FileResult[Classification]]:
        """Classify any number of images; see `AsyncClient.classify`.

        `progress` is called in the caller's own thread.
        """
        results = []
        for result in self.classify_each(model, images, options=options, version=version):
            results.append(result)
            if progress is not None:
                progress(len(results), len(images))
        return results
