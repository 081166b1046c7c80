"""What the client tells about the models behind a gateway."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from medserve.client import Client
from medserve.errors import AuthenticationError, ModelNotReadyError
from medserve.gateway.core.calls import ModelInfo
from medserve.spec import Task
from tests.client.fake_gateway import DIGEST, LABELS, FakeGateway, served_model, serving
from tests.client.framing import frames_model
from tests.client.segmenting import volumes_model

pytestmark = pytest.mark.loopback


@contextmanager
def client_of(*models: ModelInfo) -> Iterator[tuple[Client, FakeGateway]]:
    with serving(FakeGateway(models)) as fake, Client(fake.address, timeout_s=10) as client:
        yield client, fake


def test_every_version_of_every_model_is_listed() -> None:
    models = [
        served_model(name, version, default=version == "1.1", ready=name == "mednist")
        for name in ("blood_cell", "mednist")
        for version in ("1.0", "1.1")
    ]
    with client_of(*models) as (client, _):
        found = {(each.name, each.version): each for each in client.models()}
    assert sorted(found) == [
        ("blood_cell", "1.0"),
        ("blood_cell", "1.1"),
        ("mednist", "1.0"),
        ("mednist", "1.1"),
    ]
    newest = found["mednist", "1.1"]
    assert newest.ready
    assert (newest.title, newest.labels) == ("The model mednist", LABELS)
    assert (newest.archive_digest, newest.metrics) == (DIGEST, {"accuracy": 1.0})
    assert newest.input_kinds == ("raster",)
    assert not found["blood_cell", "1.1"].ready


def test_default_version_is_marked() -> None:
    with client_of(served_model(version="1.0", default=False), served_model(version="1.1")) as (
        client,
        _,
    ):
        assert [(each.version, each.default) for each in client.models()] == [
            ("1.0", False),
            ("1.1", True),
        ]


@pytest.mark.parametrize(
    ("models", "task"),
    [
        ((served_model(),), Task.CLASSIFICATION),
        (volumes_model(), Task.VOLUMES),
        (frames_model(), Task.FRAMES),
        ((served_model(task=Task.GENERATION),), Task.GENERATION),
    ],
)
def test_the_task_of_a_model_is_told(models: tuple[ModelInfo, ...], task: Task) -> None:
    with client_of(*models) as (client, _):
        assert [each.task for each in client.models()] == [task]


def test_ping_gives_the_word_of_the_gateway(client: Client, fake: FakeGateway) -> None:
    assert client.ping() == "Healthy"
    fake.set_ready("mednist", ready=False)
    assert client.ping() == "Unhealthy"


def test_wait_ends_when_the_models_are_ready() -> None:
    with client_of(served_model(ready=False)) as (client, fake):
        threading.Timer(0.4, fake.set_ready, ["mednist"]).start()
        client.wait_ready(["mednist"], timeout_s=10)
        assert client.models()[0].ready


def test_wait_names_the_models_that_are_missing() -> None:
    with (
        client_of(served_model("blood_cell", ready=False), served_model()) as (client, _),
        pytest.raises(ModelNotReadyError, match="still missing: blood_cell, nosuch"),
    ):
        client.wait_ready(["mednist", "blood_cell", "nosuch"], timeout_s=0.3)


def test_gateway_without_models_is_never_ready() -> None:
    with client_of() as (client, _), pytest.raises(ModelNotReadyError, match="no model"):
        client.wait_ready(timeout_s=0.3)


def test_wait_for_a_dead_gateway_says_so() -> None:
    with (
        Client("127.0.0.1:9", timeout_s=5) as dead,
        pytest.raises(ModelNotReadyError, match="nobody answers"),
    ):
        dead.wait_ready(timeout_s=0.3)


def test_wait_ends_at_once_when_the_token_is_refused() -> None:
    with (
        serving(FakeGateway(token="s3cret")) as fake,
        Client(fake.address, token="wr0ng") as client,
        pytest.raises(AuthenticationError),
    ):
        client.wait_ready(timeout_s=60)
