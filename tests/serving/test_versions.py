"""A model and its variant on one real engine: the request's version chooses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import models
from medserve.client import Client
from medserve.errors import ArchiveError, UnknownModelError
from medserve.settings import EngineKind
from tests.archives import packaged
from tests.backends import running_backend
from tests.gateway.running import running_gateway

OWN = models.spec("mednist")
EXAMPLES = sorted((models.room("mednist") / "examples").glob("*.png"))


@pytest.fixture(scope="module")
def client(engine_kind: EngineKind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Of a gateway with `mednist` and its variant `svm`."""
    store = tmp_path_factory.mktemp("versions") / "store"
    try:
        for variant in ("", "svm"):
            packaged("mednist", store, variant=variant)
    except ArchiveError as error:
        pytest.skip(str(error))
    with (
        running_backend(engine_kind, store) as engine,
        running_gateway(*engine.before()) as gateway,
        Client(gateway.addresses.grpc, timeout_s=120) as client,
    ):
        yield client


@pytest.mark.parametrize("version", [None, OWN.version, f"{OWN.version}-svm"])
def test_the_version_of_the_request_answers(client: Client, version: str | None) -> None:
    results = client.classify("mednist", EXAMPLES, version=version)
    assert {each.provenance.version for each in results} == {version or OWN.version}
    labels = [Path(path).stem for path in EXAMPLES]
    assert [each.unwrap().label for each in results] == labels


def test_the_models_own_version_stays_the_default(client: Client) -> None:
    listed = {status.version: status.default for status in client.models()}
    assert listed == {OWN.version: True, f"{OWN.version}-svm": False}


def test_a_version_that_is_not_served_is_refused(client: Client) -> None:
    with pytest.raises(UnknownModelError):
        client.classify_one("mednist", EXAMPLES[0], version="1.0-forest")
