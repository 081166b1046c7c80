"""Every contract answers rightly under mixed load, and a killed worker costs no answer: short runs.

`python -m benchmarks.endurance` does the same for half an hour, and for a hundred kills.
"""

from __future__ import annotations

from dataclasses import replace

import grpc
import pytest

from benchmarks.endurance import Answers, Place, measure_kills, measure_soak
from benchmarks.questions import Question, questions_for
from medserve.archive.store import select_archives
from medserve.gateway.server import GatewayServer
from tests.backends import Backend

SOAK_S = 12.0
KILLS = 2
CALLERS = 4


@pytest.fixture
def place(served: GatewayServer, backend: Backend) -> Place:
    page = str(served.addresses.to_json()["page_url"])
    return Place(served.addresses.grpc, page.rstrip("/").rpartition("//")[2], backend.pid)


@pytest.mark.torchserve
def test_every_contract_answers_rightly_under_mixed_load(place: Place, backend: Backend) -> None:
    names = ("painter", "tiny", "tiny_colour", "tiny_frame", "tiny_volume")
    questions = questions_for(select_archives(backend.store, names))
    found = measure_soak(replace(place, pid=None), questions, SOAK_S, CALLERS)
    assert (found["wrong"], found["lost"], found["faults"]) == (0, 0, {})
    assert not found["unasked"]


@pytest.mark.torchserve
def test_workers_that_are_killed_under_load_lose_no_answer(place: Place, backend: Backend) -> None:
    questions = questions_for(select_archives(backend.store, ("ticker",)))
    asked = [each for each in questions if each.model == "ticker" and "stream" not in each.kind]
    found = measure_kills(place, asked, KILLS, every_s=1.0, callers=CALLERS)
    assert (found["wrong"], found["lost"], found["faults"]) == (0, 0, {})


def test_an_answer_counts_as_right_wrong_or_lost() -> None:
    question = Question("rest", "mednist", 1.0, lambda ways: None, right="Hand")
    answers = Answers()
    answers.count(question, "Hand", 1.0)
    answers.count(question, "CXR", 2.0)
    answers.lose(question, grpc.RpcError())
    found = answers.to_json()
    assert (found["right"], found["wrong"], found["lost"]) == (1, 1, 1)
    assert answers.asked_at == {"mednist": 1.0}  # of what was answered rightly
    assert sum(found["faults"].values()) == 2
    assert all(each.startswith("mednist: rest: ") for each in found["faults"])
