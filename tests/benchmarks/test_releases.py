"""What the benchmark of releases counts, on a short run of the direct engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.releases import _allowed, serving, shadow_beside
from tests.archives import packaged, packaged_fixture
from tests.tiny_room import bright_tile, make_checkout


@pytest.mark.parametrize(
    ("began", "done", "version", "allowed"),
    [
        (1.0, 2.0, "1.0", True),
        (1.0, 2.0, "2.0", False),  # before it was the default
        (9.0, 11.0, "1.0", True),  # asked before the exchange, answered after it
        (9.0, 11.0, "2.0", True),
        (11.0, 12.0, "1.0", False),  # asked when it was the default no more
    ],
)
def test_an_answer_may_name_a_version_that_was_the_default_while_the_call_ran(
    began: float, done: float, version: str, allowed: bool
) -> None:
    spans = [["1.0", 0.0, 10.0], ["2.0", 9.5, float("inf")]]
    assert _allowed(spans, began, done, version) is allowed


@pytest.mark.benchmark
def test_copies_are_made_beside_live_calls_and_none_of_these_fails(tmp_path: Path) -> None:
    first = packaged_fixture("tiny", tmp_path / "first")
    second = packaged("tiny", tmp_path, make_checkout(tmp_path / "newer", version="2.0"))
    with serving([first, second], "direct") as server:
        found = shadow_beside(
            server, "tiny", "2.0", bright_tile(2), pairs=2, seconds=1.0, threads=1,
            pause_s=0.05, share=1.0,
        )  # fmt: skip
    assert found.failed == 0
    assert found.p99_ratio.low <= found.p99_ratio.value <= found.p99_ratio.high
    assert found.copies > 0
