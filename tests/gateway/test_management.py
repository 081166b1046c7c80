"""Changes of what is served over REST and TorchServe's contract, on an engine in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest
from fastapi import FastAPI

from medserve.gateway.core.calls import Caller
from medserve.gateway.core.gateway import Guards
from medserve.gateway.faces.rest import app as rest
from medserve.gateway.faces.torchserve import management
from medserve.gateway.faces.v1 import releases
from medserve.wire import management_pb2 as pb
from medserve.wire import management_pb2_grpc
from medserve.wire.v1 import releases_pb2, releases_pb2_grpc
from tests.gateway.test_versions import Bench
from tests.plain_archive import write_archive

pytestmark = pytest.mark.cpu  # an application takes a second to build

_TOKENS = {
    "reads": Caller("ward-7"),
    "manages": Caller("operator", manages=True),
    "manages another": Caller("operator", frozenset({"other"}), manages=True),
}


class Tokens:
    """Knows three callers by words."""

    def caller(self, token: str) -> Caller | None:
        """Return whose the token is."""
        return _TOKENS.get(token)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    found = Bench(tmp_path / "store", guards=Guards(tokens=Tokens()))
    write_archive(found.folder, "tiny", "2.0")
    return found


def browse(bench: Bench, visit: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    async def run() -> None:
        application = FastAPI()
        application.include_router(rest.router(bench.gateway))
        transport = httpx.ASGITransport(application)
        headers = {"authorization": "Bearer manages"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://gateway", headers=headers
        ) as client:
            await visit(client)

    asyncio.run(run())


def test_rest_leads_a_model_from_one_version_to_the_next_and_back(bench: Bench) -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        async def version() -> str:
            answer = await client.post("/predictions/tiny", content=b"x")
            return str(answer.json()["version"])

        added = await client.put("/v1/models/tiny/versions/2.0")
        assert (added.status_code, added.json()["version"]) == (201, "2.0")
        assert await version() == "1.0"
        await client.put("/v1/models/tiny/default", json={"version": "2.0"})
        assert await version() == "2.0"
        listed = (await client.get("/v1/models")).json()["models"]
        assert {each["version"]: each["default"] for each in listed} == {"1.0": False, "2.0": True}
        assert (await client.post("/v1/models/tiny/rollback")).json()["version"] == "1.0"
        scaled = await client.put("/v1/models/tiny/versions/1.0/workers", json={"workers": 2})
        assert scaled.status_code == 200
        gone = await client.delete("/v1/models/tiny/versions/2.0")
        assert gone.json() == {"status": "tiny 2.0 is unregistered"}
        assert (await client.post("/predictions/tiny/2.0", content=b"x")).status_code == 404

    browse(bench, visit)


def test_torchserves_wording_does_the_same(bench: Bench) -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        asked = [
            ("POST", "/models?url=tiny-2.0.mar&initial_workers=1&model_name=tiny"),
            ("PUT", "/models/tiny/2.0/set-default"),
            ("PUT", "/models/tiny/2.0?min_worker=2"),
            ("DELETE", "/models/tiny/1.0"),
        ]
        for method, address in asked:
            answer = await client.request(method, address)
            assert (answer.status_code, list(answer.json())) == (200, ["status"])
        assert (bench.default, bench.listed) == ("2.0", ["2.0"])

    browse(bench, visit)


@pytest.mark.parametrize(
    ("token", "status"), [("reads", 403), ("manages another", 403), ("nobody's", 401)]
)
def test_who_may_not_manage_is_refused_on_every_address(
    bench: Bench, token: str, status: int
) -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        client.headers["authorization"] = f"Bearer {token}"
        for method, address, content in [
            ("PUT", "/v1/models/tiny/versions/2.0", None),
            ("DELETE", "/v1/models/tiny/versions/1.0", None),
            ("PUT", "/v1/models/tiny/versions/1.0/workers", {"workers": 2}),
            ("PUT", "/v1/models/tiny/default", {"version": "1.0"}),
            ("POST", "/v1/models/tiny/rollback", None),
            ("POST", "/models?url=tiny-2.0.mar", None),
            ("PUT", "/models/tiny?min_worker=2", None),
            ("DELETE", "/models/tiny", None),
            ("PUT", "/models/tiny/1.0/set-default", None),
        ]:
            answer = await client.request(method, address, json=content)
            assert answer.status_code == status, address
        assert bench.listed == ["1.0"]

    browse(bench, visit)


@pytest.mark.parametrize(
    ("method", "address", "status", "said"),
    [
        ("POST", "/models?url=http://host/tiny-2.0.mar", 400, "the server's store"),
        ("POST", "/models?url=../tiny-2.0.mar", 400, "the server's store"),
        ("POST", "/models", 400, "name a file"),
        ("PUT", "/v1/models/tiny/versions/9.9", 400, "holds no intact archive"),
        ("PUT", "/v1/models/tiny/versions/1.0", 400, "served already"),
        ("DELETE", "/v1/models/tiny/versions/9.9", 404, "expected a version"),
        ("PUT", "/models/nothing?min_worker=1", 404, "expected the name"),
        ("PUT", "/models/tiny?min_worker=0", 400, "expected 1 to"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    bench: Bench, method: str, address: str, status: int, said: str
) -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        answer = await client.request(method, address)
        message = answer.json()["error"]["message"]
        assert (answer.status_code, said in message, "\n" in message) == (status, True, False)

    browse(bench, visit)


@pytest.mark.loopback
def test_torchserves_contract_changes_what_is_served(bench: Bench) -> None:
    async def run() -> None:
        server = grpc.aio.server()
        management.register(bench.gateway, server)
        releases.register(bench.gateway, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            models = management_pb2_grpc.ManagementAPIsServiceStub(channel)
            metadata = (("authorization", "Bearer manages"),)

            async def ask(method: str, request: Any, sent: Any = metadata) -> str:
                return str((await getattr(models, method)(request, metadata=sent)).msg)

            assert "is served" in await ask(
                "RegisterModel", pb.RegisterModelRequest(url="tiny-2.0.mar", initial_workers=2)
            )
            await ask("SetDefault", pb.SetDefaultRequest(model_name="tiny", model_version="2.0"))
            assert bench.default == "2.0"
            stub = releases_pb2_grpc.ReleaseServiceStub(channel)
            back = await stub.RollBack(
                releases_pb2.RollBackRequest(model_name="tiny"), metadata=metadata
            )
            assert back.model_version == bench.default == "1.0"
            await ask("ScaleWorker", pb.ScaleWorkerRequest(model_name="tiny", min_worker=3))
            gone = pb.UnregisterModelRequest(model_name="tiny", model_version="2.0")
            await ask("UnregisterModel", gone)
            assert bench.listed == ["1.0"]
            for request, code in [
                (pb.RegisterModelRequest(url="tiny-2.0.mar", batch_size=4), "INVALID_ARGUMENT"),
                (pb.RegisterModelRequest(url="/etc/passwd"), "INVALID_ARGUMENT"),
            ]:
                with pytest.raises(grpc.RpcError) as caught:
                    await ask("RegisterModel", request)
                assert caught.value.code().name == code
            with pytest.raises(grpc.RpcError) as caught:
                await ask("RegisterModel", request, (("authorization", "Bearer reads"),))
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        await server.stop(None)

    asyncio.run(run())
