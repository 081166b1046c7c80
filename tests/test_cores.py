"""Cores that a process may use, in a container or not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medserve import cores


def test_a_container_s_quota_counts_as_its_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    limit = tmp_path / "cpu.max"
    monkeypatch.setattr(cores, "_CGROUP_LIMIT", limit)
    for text, expected in [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 16)]:
        limit.write_text(text)
        assert cores.available_cores() == expected
    limit.unlink()
    assert cores.available_cores() == 16


def test_this_machine_has_a_core() -> None:
    assert cores.available_cores() >= 1
