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
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from medserve.errors import DeadlineError, InvalidRequestError, MedserveError
from medserve.gateway.core.call_context import Context, identify
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.status import abort

__all__ = ["Registrar", "RequestGuard"]

_Method = Callable[[Any, Any], Any]
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


class RequestGuard(Registrar):
    """Registers services whose callers must be known and whose requests must fit.

    Args:
        server: where the services go.
        gateway: knows the callers and the memory.
        upload_timeout_s: for one message, from the moment that there is memory for it.
    """

    def __init__(self, server: grpc.aio.Server, gateway: Gateway, upload_timeout_s: float) -> None:
        super().__init__(server)
        self._gateway = gateway
        self._upload_timeout_s = upload_timeout_s

    def wrap(self, method: _Handler) -> _Handler:
        """The same method for a caller, with a guard before it."""
        parse, serialize = method.request_deserializer, method.response_serializer
        if method.unary_unary is not None:
            unary = self._unary(method.unary_unary, parse)
            return grpc.stream_unary_rpc_method_handler(unary, None, serialize)
        if method.unary_stream is not None:
            streaming = self._streaming(method.unary_stream, parse)
            return grpc.stream_stream_rpc_method_handler(streaming, None, serialize)
        return method  # reads its requests piece by piece, and knows its callers itself

    def _unary(self, answer: _Method, parse: Callable[[bytes], Any] | None) -> _Method:
        async def guarded(_: object, context: Context) -> Any:
            async with self._request(context, parse) as request:
                return await answer(request, context)

        return guarded

    def _streaming(self, answer: _Method, parse: Callable[[bytes], Any] | None) -> _Method:
        async def guarded(_: object, context: Context) -> None:
            async with self._request(context, parse) as request:
                if not inspect.isasyncgenfunction(answer):
                    await answer(request, context)
                    return
                async for message in answer(request, context):
                    await context.write(message)

        return guarded

    @contextlib.asynccontextmanager
    async def _request(
        self, context: Context, parse: Callable[[bytes], Any] | None
    ) -> AsyncIterator[Any]:
        """The parsed request; its memory is taken for the time of the block."""
        try:
            caller = identify(context, self._gateway).caller
            owner = caller.name or context.peer().rpartition(":")[0]  # without the port
            budget, most = self._gateway.budget, self._gateway.limits.message_bytes
            async with contextlib.AsyncExitStack() as stack:
                async with budget.share(owner, most):  # only while it arrives
                    reservation = await stack.enter_async_context(budget.reserve(most))
                    message = await self._read(context)
                    reservation.shrink(len(message))
                yield _parsed(message, parse)
        except MedserveError as error:
            await abort(context, error)

    async def _read(self, context: Context) -> bytes:
        try:
            async with asyncio.timeout(self._upload_timeout_s):
                message = await context.read()
        except TimeoutError:
            raise DeadlineError(
                f"expected the whole request within {self._upload_timeout_s:g} s; send less at "
                "once or over a faster connection"
            ) from None
        if not isinstance(message, bytes):  # the end of a stream that held nothing
            raise InvalidRequestError("expected a request, got a call without one")
        return message


def _parsed(message: bytes, parse: Callable[[bytes], Any] | None) -> Any:
    try:
        return message if parse is None else parse(message)
    except DecodeError:
        raise InvalidRequestError("expected a protobuf message of this method") from None
