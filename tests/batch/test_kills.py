"""Nothing is lost and nothing is repeated, whatever is killed at whatever moment."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from medserve.batch.asking import ServerAsker
from medserve.batch.processes import ArchiveAsker
from medserve.batch.receipts import BatchFolder
from medserve.batch.report import write_report
from medserve.batch.work import Became
from medserve.client import Client
from tests.archives import packaged_fixture
from tests.batch.stand_in import StandIn, run_batch, write_studies
from tests.client.fake_gateway import FakeGateway, serving, waiting
from tests.tiny_room import bright_tile

STUDIES = 150
KILLS = 4
SOON_S = 60.0


def table(out: Path) -> str:
    write_report(BatchFolder(out))
    return (out / "results.csv").read_text(encoding="utf-8")


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def run_until(command: list[str], log: Path, enough: int | None, pause_s: float) -> int:
    """Kill the run a moment after so many questions, or let it end; returns its exit code."""
    running = subprocess.Popen(command)
    try:
        if enough is not None:
            wait_for(lambda: len(lines(log)) >= enough or running.poll() is not None)
            time.sleep(pause_s)
            running.kill()
        return running.wait(SOON_S)
    finally:
        running.kill()
        running.wait()


@pytest.mark.process
def test_a_run_that_is_killed_again_and_again_repeats_nothing_and_loses_nothing(
    tmp_path: Path,
) -> None:
    studies, out = write_studies(tmp_path / "studies", STUDIES), tmp_path / "out"
    (studies / "0017.nii.gz").write_bytes(b"broken")
    chance = random.Random(23)
    finished: set[str] = set()
    for number in range(KILLS + 1):
        log = tmp_path / f"log-{number}"
        command = [sys.executable, "-m", "tests.batch.killed_run", str(studies), str(out), str(log)]
        enough = chance.randint(3, STUDIES // (KILLS + 1)) if number < KILLS else None
        code = run_until(command, log, enough, chance.random() * 0.01)
        assert enough or code == 0
        assert not finished & set(lines(log))
        found = BatchFolder(out).receipts()
        finished = {Path(each.source).read_text(encoding="utf-8") for each in found}
    assert len(finished) == STUDIES
    run_batch(studies, tmp_path / "undisturbed", StandIn())
    assert table(out) == table(tmp_path / "undisturbed")


@pytest.mark.archive
@pytest.mark.process
def test_workers_that_are_killed_cost_no_study(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(STUDIES):
        (tmp_path / "images" / f"{number}.png").write_bytes(bright_tile(number % 6))
    (tmp_path / "images" / "broken.png").write_bytes(b"broken")
    archive = packaged_fixture("tiny", tmp_path)
    chance = random.Random(7)
    asker = ArchiveAsker(archive, workers=2)
    ended = threading.Event()

    def kill() -> None:
        for _ in range(KILLS):  # less often than a study is tried
            if ended.wait(chance.random() * 0.2):
                return
            process = chance.choice(asker._workers)._process
            if process is not None:
                process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        found = run_batch(tmp_path / "images", tmp_path / "out", asker, patience_s=SOON_S)
    finally:
        ended.set()
        killer.join()
        asker.close()
    assert found == {Became.ANSWERED: STUDIES, Became.FAILED: 1}
    text = table(tmp_path / "out")
    assert [text.count(f",{label},") for label in ("top-left", "bottom-middle")] == [25, 25]
    assert text.count("INVALID_IMAGE") == 1


@pytest.mark.loopback
def test_a_server_that_is_restarted_costs_no_study(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(STUDIES):
        (tmp_path / "images" / f"{number}").write_bytes(b"Hand %d" % number)
    first = FakeGateway(hooks=[waiting(0.01)])
    found = {}
    with serving(first):
        port = int(first.address.rpartition(":")[2])
        asker = ServerAsker(Client(first.address, timeout_s=20), "mednist")

        def run() -> None:
            found.update(run_batch(tmp_path / "images", tmp_path / "out", asker, patience_s=SOON_S))

        running = threading.Thread(target=run)
        running.start()
        wait_for(lambda: len(first.requests) >= 20)
    with serving(FakeGateway(), port=port):
        running.join(SOON_S)
        asker.close()
    assert found == {Became.ANSWERED: STUDIES}
    assert table(tmp_path / "out").count(",Hand,") == STUDIES
