"""What a unit test may not do, and what a tier says of the tests that it leaves out."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.tiers import RESOURCES, NoUnitTestError, left_out


@pytest.mark.parametrize(
    ("deed", "marker"),
    [
        pytest.param(lambda: subprocess.run(["true"]), "process", id="process"),
        pytest.param(lambda: socket.create_server(("127.0.0.1", 0)), "loopback", id="listen"),
        pytest.param(lambda: socket.create_connection(("127.0.0.1", 9)), "loopback", id="connect"),
        pytest.param(lambda: grpc.insecure_channel("127.0.0.1:9"), "loopback", id="grpc"),
    ],
)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_unit_test_starts_no_process_and_opens_no_socket(
    deed: Callable[[], object], marker: str
) -> None:
    with pytest.raises(NoUnitTestError, match=f"mark the test '{marker}'"):
        deed()


def test_a_tier_says_what_it_left_out_and_which_command_runs_it() -> None:
    assert left_out({"training": 3, "process": 2, "docker": 1}, "check") == (
        "tier check: 6 tests were not run: 2 process (make test); "
        "3 training, 1 docker (make test-all)"
    )
    assert left_out({}, "all") == "tier all: no test was left out"


def test_make_runs_every_resource_of_the_last_tier() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    [alone] = re.findall(r"^ALONE := (.*)$", makefile, re.MULTILINE)
    late = {name for name, each in RESOURCES.items() if each.tier == "all"}
    assert set(alone.split(" or ")) | {"training"} == late
