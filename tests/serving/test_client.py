"""Both clients against a real gateway and TorchServe."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks.archives import with_setting
from medserve.client import AsyncClient, Client, Limits, TlsConfig
from medserve.errors import AuthenticationError, PayloadTooLargeError, ServerUnreachableError
from medserve.gateway.core.tokens import add_token, new_token
from medserve.gateway.server import GatewayServer
from medserve.settings import EngineKind
from tests.backends import Backend, TorchServeBackend, running_backend
from tests.client.certificates import HAVE_OPENSSL, self_signed
from tests.gateway.running import quick_settings, running_gateway
from tests.phantoms import raster_bytes
from tests.serving.conftest import TinyArchive
from tests.tiny_room import LABELS, bright_tile


@dataclass(frozen=True)
class Guarded:
    """A gateway with a token, small messages and, where openssl is, TLS."""

    gateway: GatewayServer
    backend: Backend
    token: str

    def client(self, token: str | None, limits: Limits | None = None) -> Client:
        """Open a client that trusts its certificate."""
        authority = self.gateway.settings.tls_cert
        return Client(
            self.gateway.addresses.grpc,
            token=token,
            tls=TlsConfig(authority, server_name="localhost") if authority else None,
            timeout_s=60,
            limits=limits,
        )


@pytest.fixture(scope="module")
def guarded(
    tiny_archive: TinyArchive, engine_kind: EngineKind, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    """One of this module's own; before TorchServe, one that asks for its own keys, and for TLS."""
    folder = tmp_path_factory.mktemp("guarded")
    tiny_archive(folder / "store")
    chain, key = self_signed(folder, "server") if HAVE_OPENSSL else (None, None)
    token, entry = new_token("tester")
    add_token(folder / "tokens.json", entry)
    settings = quick_settings(
        folder / "store",
        tokens_file=folder / "tokens.json",
        tls_cert=chain,
        tls_key=key,
        max_message_mb=1,
    )
    locked = {"token_auth": True, "certificate": chain, "private_key": key}
    with contextlib.ExitStack() as stack:
        backend = stack.enter_context(running_backend(engine_kind, folder / "store", **locked))
        _, engine = backend.before()
        if isinstance(backend, TorchServeBackend):
            settings = settings.before(backend.server)
        gateway = stack.enter_context(running_gateway(settings, engine))
        yield Guarded(gateway, backend, token)


def test_every_image_gets_its_class_and_its_archive(client: Client, backend: Backend) -> None:
    results = client.classify("tiny", [bright_tile(place % 6) for place in range(100)])
    assert [r.unwrap().label for r in results] == [LABELS[place % 6] for place in range(100)]
    [digest] = {result.provenance.archive_digest for result in results}
    assert digest in {archive.digest for archive in backend.archives}
    assert {result.provenance.version for result in results} == {"1.0"}


def test_both_clients_give_the_same_answers(client: Client, address: str) -> None:
    images = [bright_tile(place % 6) for place in range(70)] + [b"broken"]

    async def ask() -> list[str]:
        async with AsyncClient(address) as client:
            return [str(r.outcome) for r in await client.classify("tiny", images)]

    assert asyncio.run(ask()) == [str(r.outcome) for r in client.classify("tiny", images)]


def test_raw_answer_is_shaped_by_its_params(client: Client) -> None:
    answer = json.loads(client.predict("tiny", bright_tile(0), {"top_k": 3}))
    assert len(answer["top"]) == 3
    assert answer["status"] == "ok"


def test_models_tell_what_is_ready(client: Client, models: tuple[str, ...]) -> None:
    found = client.models()
    assert sorted(status.name for status in found) == list(models)
    assert all(status.ready and status.default for status in found)
    client.wait_ready(models, timeout_s=10)
    assert client.ping() == "Healthy"


def test_plain_text_against_tls_is_told(guarded: Guarded) -> None:
    if guarded.gateway.settings.tls_cert is None:
        pytest.skip("needs openssl")
    address, limits = guarded.gateway.addresses.grpc, Limits(attempts=1)
    with (
        Client(address, token=guarded.token, limits=limits) as client,
        pytest.raises(ServerUnreachableError),
    ):
        client.ping()


def test_the_token_of_the_gateway_opens_models_behind_keys_and_tls(guarded: Guarded) -> None:
    with guarded.client(guarded.token) as client:
        assert client.classify_one("tiny", bright_tile(1)).label == "top-middle"
        assert client.models()[0].ready


@pytest.mark.parametrize("token", [None, "wrong"])
def test_refused_token_is_told(token: str | None, guarded: Guarded) -> None:
    with guarded.client(token) as client:
        with pytest.raises(AuthenticationError):
            client.classify("tiny", [bright_tile(1)])
        with pytest.raises(AuthenticationError):
            client.models()


def noise(side: int) -> bytes:
    """A PNG that does not compress: about side * side bytes."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)
    return raster_bytes(pixels)


def test_file_over_the_limit_of_the_server_costs_only_itself(guarded: Guarded) -> None:
    images = [bright_tile(0), noise(1200), bright_tile(1)]
    with guarded.client(guarded.token) as client:
        first, large, last = client.classify("tiny", images)
    assert type(large.error) is PayloadTooLargeError
    assert [first.unwrap().label, last.unwrap().label] == ["top-left", "top-middle"]


def test_calls_over_the_limit_of_the_server_are_made_smaller(guarded: Guarded) -> None:
    with guarded.client(guarded.token) as client:  # 12 x 250 kB in one call at first
        results = client.classify("tiny", [noise(500)] * 12)
    assert all(result.result for result in results)


def test_killed_worker_costs_no_answer(guarded: Guarded) -> None:
    images = [bright_tile(place % 6) for place in range(400)]
    with guarded.client(guarded.token, Limits(items_per_call=2)) as client:
        stream = client.classify_each("tiny", images)
        labels = [next(stream).unwrap().label]
        for pid in guarded.backend.worker_pids():
            os.kill(pid, signal.SIGKILL)
        labels += [result.unwrap().label for result in stream]
    assert labels == [LABELS[place % 6] for place in range(400)]


def test_a_worker_killed_while_its_batch_is_filled_costs_no_answer(
    tiny_archive: TinyArchive, engine_kind: EngineKind, tmp_path: Path
) -> None:
    tiny_archive(tmp_path / "built")
    [built] = (tmp_path / "built").glob("*.mar")
    (tmp_path / "store").mkdir()
    with_setting(built, tmp_path / "store" / built.name, "maxBatchDelay", 2000)
    with (
        running_backend(engine_kind, tmp_path / "store") as backend,
        running_gateway(*backend.before(canary_timeout_s=10.0)) as gateway,
        Client(gateway.addresses.grpc, timeout_s=60) as client,
        ThreadPoolExecutor(1) as caller,
    ):
        answer = caller.submit(client.classify_one, "tiny", bright_tile(1))
        time.sleep(0.5)  # the call is in the engine, whose batch is not full
        for pid in backend.worker_pids():
            os.kill(pid, signal.SIGKILL)
        assert answer.result().label == "top-middle"


def test_files_are_read_where_they_lie(client: Client, tmp_path: Path) -> None:
    for place in range(6):
        (tmp_path / f"{place}.png").write_bytes(bright_tile(place))
    results = client.classify("tiny", sorted(tmp_path.iterdir()))
    assert [result.unwrap().label for result in results] == list(LABELS)
