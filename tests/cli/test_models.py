"""`medserve models` and `medserve ping`."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Medserve
from tests.client.fake_server import FakeServer


def at(fake: FakeServer) -> tuple[str, ...]:
    return ("--address", fake.address, "--management-address", fake.address)


def test_models_are_listed_with_their_workers(medserve: Medserve, fake: FakeServer) -> None:
    fake.workers = {"blood_cell": ["UNLOADING"], "mednist": ["READY", "UNLOADING"]}
    fake.versions = ("1.0", "1.1")
    run = medserve("models", *at(fake))
    assert run.code == 0
    rows = [line.split() for line in run.out.splitlines()]
    assert rows[1] == ["blood_cell", "1.0", "0/1", "16", "2"]
    assert rows[4] == ["mednist", "1.1", "yes", "1/2", "16", "2"]


def test_models_as_json(medserve: Medserve, fake: FakeServer) -> None:
    [model] = json.loads(medserve("models", "--json", *at(fake)).out)
    assert model == {
        "name": "mednist",
        "version": "1.0",
        "default": True,
        "workers": 1,
        "workers_ready": 1,
        "batch_size": 16,
        "pending": 2,
        "ready": True,
    }


def test_ping_is_fine_when_every_model_is_ready(medserve: Medserve, fake: FakeServer) -> None:
    run = medserve("ping", *at(fake))
    assert run.code == 0
    assert run.out.splitlines() == ["mednist 1.0: ready", "ready"]


def test_ping_says_which_model_is_not_ready(medserve: Medserve, fake: FakeServer) -> None:
    fake.workers = {"blood_cell": ["UNLOADING"], "mednist": ["READY"]}
    run = medserve("ping", *at(fake))
    assert run.code == 1
    assert run.out.splitlines() == [
        "blood_cell 1.0: NOT READY",
        "mednist 1.0: ready",
        "not ready",
    ]


def test_ping_without_models_is_not_ready(medserve: Medserve, fake: FakeServer) -> None:
    fake.workers = {}
    run = medserve("ping", "--json", *at(fake))
    assert run.code == 1
    assert json.loads(run.out) == {"ready": False, "process": "Healthy", "models": []}


@pytest.mark.loopback
def test_ping_of_a_dead_server_is_one_line_and_exit_code_2(medserve: Medserve) -> None:
    run = medserve("ping", "--address", "127.0.0.1:9")
    assert run.code == 2
    assert len(run.err.strip().splitlines()) == 1
    assert "medserve serve" in run.err
