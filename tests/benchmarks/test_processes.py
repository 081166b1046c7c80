from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.processes import family, family_usage, free_port, hold, release, spawn

pytestmark = pytest.mark.process

# A parent with one child; both would run for a minute.
FAMILY = (
    "import subprocess, sys, time; "
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    "print('up', flush=True); time.sleep(60)"
)


def wait_for_child(log: Path) -> None:
    give_up = time.monotonic() + 30
    while "up" not in log.read_text() and time.monotonic() < give_up:
        time.sleep(0.05)


def becomes(process: psutil.Process, stopped: bool) -> bool:
    """Whether the process is soon stopped, or not any more; signals take a moment."""
    give_up = time.monotonic() + 30
    while (process.status() == psutil.STATUS_STOPPED) is not stopped:
        if time.monotonic() > give_up:
            return False
        time.sleep(0.01)
    return True


def test_a_spawned_family_is_gone_afterwards_even_if_it_was_held(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with spawn([sys.executable, "-c", FAMILY], log, environment={}) as process:
        wait_for_child(log)
        members = family(process.pid)
        hold(process.pid)

        assert len(members) == 2
        assert all(becomes(each, stopped=True) for each in members)
    assert not any(each.is_running() for each in members)


def test_a_released_family_runs_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with spawn([sys.executable, "-c", FAMILY], log, environment={}) as process:
        wait_for_child(log)
        members = family(process.pid)
        hold(process.pid)
        assert all(becomes(each, stopped=True) for each in members)
        release(process.pid)

        assert all(becomes(each, stopped=False) for each in members)


def test_usage_counts_the_children(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with spawn([sys.executable, "-c", FAMILY], log, environment={}) as process:
        wait_for_child(log)
        alone = psutil.Process(process.pid).memory_full_info().pss / 2**20

        assert family_usage(process.pid).pss_mib > alone
        assert family_usage(process.pid).cpu_s > 0


def test_a_process_that_is_gone_has_no_family() -> None:
    process = psutil.Popen([sys.executable, "-c", "pass"])
    process.wait()

    assert family(process.pid) == []


@pytest.mark.loopback
def test_free_ports_differ() -> None:
    assert free_port() != free_port()
