"""The HTTP port against peers that are slow, silent or many; each test serves on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from medserve.errors import ConfigError
from medserve.gateway import http
from medserve.gateway.http import HttpServer

pytestmark = pytest.mark.loopback

_PATIENCE_S = 20.0
_GET = b"GET /ok HTTP/1.1\r\nHost: here\r\n\r\n"


async def ok(request: Request) -> Response:
    return PlainTextResponse("ok")


async def take(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def flood(request: Request) -> Response:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(2**20)
            await asyncio.sleep(0)  # a client that has gone is heard of here

    return StreamingResponse(endless())


def server() -> HttpServer:
    routes = [Route("/ok", ok), Route("/take", take, methods=["POST"]), Route("/flood", flood)]
    return HttpServer(Starlette(routes=routes), ("127.0.0.1", 0), None, drain_timeout_s=60)


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[HttpServer]:
    running = server()
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(2 * _PATIENCE_S):
            await scenario()

    asyncio.run(bounded())


async def connect(to: HttpServer, sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", to.port)
    writer.write(sent)
    await writer.drain()
    return reader, writer


async def ended(reader: asyncio.StreamReader) -> None:
    """Wait until the server has ended the connection."""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(_PATIENCE_S):
            while await reader.read(2**20):
                pass


def test_a_server_that_never_started_only_closes_its_port() -> None:
    async def scenario() -> None:
        never = server()
        await never.stop()
        again = HttpServer(Starlette(), ("127.0.0.1", never.port), None, drain_timeout_s=1)
        await again.stop()

    run(scenario)


def test_a_port_that_is_taken_is_named_with_its_flag() -> None:
    async def scenario() -> None:
        first = server()
        with pytest.raises(ConfigError, match=f"{first.port}.*metrics.*--metrics-port"):
            HttpServer(
                Starlette(),
                ("127.0.0.1", first.port),
                None,
                drain_timeout_s=1,
                name="metrics",
                flag="--metrics-port",
            )
        await first.stop()

    run(scenario)


@pytest.mark.parametrize("sent", [b"", b"GET /ok HTTP/1.1\r\nX-A: ", _GET + b"GET /ok HT"])
def test_a_header_that_does_not_come_ends_its_connection(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_HEADER_S", 0.2)

    async def scenario() -> None:
        async with serving() as running:
            reader, writer = await connect(running, sent)
            await ended(reader)
            writer.close()

    run(scenario)


def test_idle_connections_of_one_address_make_room_for_its_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "most_connections", lambda: 8)

    async def scenario() -> None:
        async with serving() as running:
            idle = [await connect(running, b"GET / HTTP/1.1\r\n") for _ in range(20)]
            reader, writer = await connect(running, _GET)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            await asyncio.gather(*(ended(each) for each, _ in idle[:16]))
            for _, each in [*idle, (reader, writer)]:
                each.close()

    run(scenario)


def test_who_does_not_read_an_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_READ_S", 0.2)

    async def scenario() -> None:
        async with serving() as running:
            _, writer = await connect(running, _GET.replace(b"/ok", b"/flood"))
            async with asyncio.timeout(_PATIENCE_S):
                while running._server.server_state.connections:
                    await asyncio.sleep(0.01)
            writer.close()

    run(scenario)


def test_a_silent_body_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_SILENCE_BEFORE_THE_END_S", 0.2)

    async def scenario() -> None:
        running = server()
        await running.start()
        post = b"POST /take HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\nx"
        reader, writer = await connect(running, post)
        async with asyncio.timeout(_PATIENCE_S):  # a third of the drain time
            await running.stop()
        await ended(reader)
        writer.close()

    run(scenario)
