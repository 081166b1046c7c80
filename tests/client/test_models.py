"""What the client tells about a server's models."""

from __future__ import annotations

import threading

import pytest

from medserve.client import Client
from medserve.client._readiness import Readiness
from medserve.errors import AuthenticationError, ModelNotReadyError, ServerUnreachableError
from tests.client.fake_server import FakeServer


def test_every_version_of_every_model_is_listed(client: Client, fake: FakeServer) -> None:
    fake.workers = {"blood_cell": ["UNLOADING", "UNLOADING"], "mednist": ["READY", "UNLOADING"]}
    fake.versions = ("1.0", "1.1")
    found = {(each.name, each.version): each for each in client.models()}
    assert sorted(found) == [
        ("blood_cell", "1.0"),
        ("blood_cell", "1.1"),
        ("mednist", "1.0"),
        ("mednist", "1.1"),
    ]
    newest = found["mednist", "1.1"]
    assert (newest.workers_ready, newest.workers, newest.batch_size) == (1, 2, 16)
    assert newest.pending == 2
    assert newest.ready
    assert not found["blood_cell", "1.1"].ready


def test_default_version_is_marked(client: Client, fake: FakeServer) -> None:
    fake.versions = ("1.0", "1.1")
    assert [(each.version, each.default) for each in client.models()] == [
        ("1.0", False),
        ("1.1", True),
    ]


def test_ping_gives_the_word_of_the_server(client: Client) -> None:
    assert client.ping() == "Healthy"


def test_wait_ends_when_the_workers_are_ready(client: Client, fake: FakeServer) -> None:
    fake.workers = {"mednist": ["UNLOADING"]}
    threading.Timer(0.4, fake.workers.update, [{"mednist": ["READY"]}]).start()
    client.wait_ready(["mednist"], timeout_s=10)
    assert client.models()[0].ready


def test_wait_names_the_models_that_are_missing(client: Client, fake: FakeServer) -> None:
    fake.workers = {"blood_cell": ["UNLOADING"], "mednist": ["READY"]}
    with pytest.raises(ModelNotReadyError, match="still missing: blood_cell, nosuch"):
        client.wait_ready(["mednist", "blood_cell", "nosuch"], timeout_s=0.3)


def test_server_without_models_is_never_ready(client: Client, fake: FakeServer) -> None:
    fake.workers = {}
    with pytest.raises(ModelNotReadyError, match="no model"):
        client.wait_ready(timeout_s=0.3)


def test_wait_for_a_dead_server_says_so(client: Client) -> None:
    with (
        Client("127.0.0.1:9", timeout_s=5) as dead,
        pytest.raises(ModelNotReadyError, match="nobody answers"),
    ):
        dead.wait_ready(timeout_s=0.3)


def test_wait_ends_at_once_when_the_token_is_refused() -> None:
    with pytest.raises(AuthenticationError):
        Readiness([], 60).reached(AuthenticationError("no"))


@pytest.mark.loopback
def test_management_is_by_default_on_the_next_port() -> None:
    with Client("127.0.0.1:9", timeout_s=5) as client:
        with pytest.raises(ServerUnreachableError, match=r"127\.0\.0\.1:10\b"):
            client.models()
        with pytest.raises(ServerUnreachableError, match=r"127\.0\.0\.1:9\b"):
            client.ping()
