"""`medserve models` and `medserve ping`."""

from __future__ import annotations

import json

import pytest

from medserve.spec import Task
from tests.cli.conftest import Medserve
from tests.client.fake_gateway import DIGEST, LABELS, FakeGateway, served_model, serving

pytestmark = pytest.mark.loopback


def test_models_are_listed_with_task_and_state(medserve: Medserve) -> None:
    models = (
        served_model("organs", task=Task.VOLUMES, ready=False),
        served_model(),
        served_model(version="1.1", default=False),
    )
    with serving(FakeGateway(models)) as fake:
        run = medserve("models", "--address", fake.address)
    assert run.code == 0
    rows = [line.split()[:5] for line in run.out.splitlines()]
    assert rows[1:] == [
        ["organs", "1.0", "yes", "volumes", "NOT"],
        ["mednist", "1.0", "yes", "classification", "ready"],
        ["mednist", "1.1", "classification", "ready", "The"],
    ]


def test_models_as_json(medserve: Medserve, fake: FakeGateway) -> None:
    [model] = json.loads(medserve("models", "--json", "--address", fake.address).out)
    del model["title"], model["input_kinds"]
    assert model == {
        "name": "mednist",
        "version": "1.0",
        "default": True,
        "ready": True,
        "task": "classification",
        "labels": list(LABELS),
        "values": [],
        "channels": [],
        "archive_digest": DIGEST,
    }


def test_ping_is_fine_when_every_model_is_ready(medserve: Medserve, fake: FakeGateway) -> None:
    run = medserve("ping", "--address", fake.address)
    assert run.code == 0
    assert run.out.splitlines() == ["mednist 1.0: ready", "ready"]


def test_ping_says_which_model_is_not_ready(medserve: Medserve) -> None:
    with serving(FakeGateway((served_model("blood_cell", ready=False), served_model()))) as fake:
        run = medserve("ping", "--address", fake.address)
    assert run.code == 1
    assert run.out.splitlines() == [
        "blood_cell 1.0: NOT READY",
        "mednist 1.0: ready",
        "not ready",
    ]


def test_ping_without_models_is_not_ready(medserve: Medserve) -> None:
    with serving(FakeGateway(())) as fake:
        run = medserve("ping", "--json", "--address", fake.address)
    assert run.code == 1
    answer = json.loads(run.out)
    assert (answer["ready"], answer["models"]) == (False, [])


def test_ping_of_a_dead_server_is_one_line_and_exit_code_2(medserve: Medserve) -> None:
    run = medserve("ping", "--address", "127.0.0.1:9")
    assert run.code == 2
    assert len(run.err.strip().splitlines()) == 1
    assert "medserve serve" in run.err
