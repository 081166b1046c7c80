from __future__ import annotations

import contextlib
import random
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medserve.settings import Address
from tests.dicom.archive import Archive, running_archive, send
from tests.dicom.series import RULES, SECRETS, series

pytestmark = pytest.mark.process

_PATIENCE_S = 60.0


class NodeProcess:
    """A node that can be killed and started again on the same port and folder."""

    def __init__(
        self,
        folder: Path,
        destination: str,
        quiet_s: float = 1.0,
        state: Path | None = None,
        rules: str = RULES,
    ) -> None:
        self.state = state or folder / "state"
        self.log = folder / "node.log"
        self._rules = folder / "rules.toml"
        self._rules.write_text(rules.format(quiet_s=quiet_s))
        self._destination = destination
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = Address("127.0.0.1", free.getsockname()[1])
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start, and wait until the port is open."""
        command = [
            *(sys.executable, "-m", "tests.dicom.node_process"),
            *(str(self.state), str(self._rules), str(self.address.port), self._destination),
        ]
        with self.log.open("a") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", self.log.read_text()

    def kill(self) -> None:
        """End it as the kernel does where memory is short."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def rows(self, query: str) -> list[tuple[object, ...]]:
        """Return what the table says."""
        with contextlib.closing(sqlite3.connect(self.state / "node.sqlite", timeout=30)) as table:
            return table.execute(query).fetchall()

    def wait(self, done: Callable[[], bool]) -> None:
        """Wait until something is so."""
        end = time.monotonic() + _PATIENCE_S
        while not done():
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.1)


@pytest.fixture
def sink() -> Iterator[Archive]:
    with running_archive() as running:
        yield running


@pytest.fixture
def node(tmp_path: Path, sink: Archive) -> Iterator[NodeProcess]:
    process = NodeProcess(tmp_path, sink.destination)
    process.start()
    yield process
    process.kill()


class Sending:
    """One of several senders: it repeats an object until it was acknowledged."""

    def __init__(self, address: Address, files: list[bytes], seed: int) -> None:
        self._address, self._files = address, files
        self._random = random.Random(seed)
        self._thread = threading.Thread(target=self._send_all, daemon=True)
        self._thread.start()

    def _send_all(self) -> None:
        waiting = list(self._files)
        self._random.shuffle(waiting)
        waiting += self._random.sample(waiting, len(waiting) // 5)  # some come twice
        while waiting:
            part = waiting[: self._random.randint(1, 12)]
            rude = self._random.random() < 0.2
            statuses = send(
                self._address, part, f"SENDER{self._random.randint(1, 4)}",
                abort_after=len(part) // 2 if rude else -1,
            )  # fmt: skip
            done = [status == 0 for status in statuses] + [False] * (len(part) - len(statuses))
            waiting = [
                file for file, is_done in zip(part, done, strict=True) if not is_done
            ] + waiting[len(part) :]
            if not statuses:
                time.sleep(0.1)

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(_PATIENCE_S)
        assert not self._thread.is_alive()


@pytest.mark.parametrize(
    ("studies", "kills"), [(16, 3), pytest.param(100, 5, marks=pytest.mark.pacs)]
)
def test_each_complete_series_is_answered_once_whatever_is_killed(
    node: NodeProcess, sink: Archive, studies: int, kills: int
) -> None:
    everything = [series(number) for number in range(studies)]
    incomplete = set(range(0, studies, 8))
    sent = [
        files[:2] + files[3:] if number in incomplete else files
        for number, files in enumerate(everything)
    ]
    files = [file for each in sent for file in each]
    random.Random(1).shuffle(files)
    senders = [Sending(node.address, files[start::4], start) for start in range(4)]
    chance = random.Random(2)
    sink.refusing.set()
    for _ in range(kills):
        time.sleep(chance.uniform(0.3, 2.5))
        node.kill()
        sink.refusing.clear()
        node.start()
    for sender in senders:
        sender.join()
    complete = studies - len(incomplete)
    node.wait(lambda: len(node.rows("SELECT 1 FROM delivery WHERE state = 'sent'")) == 2 * complete)

    assert node.rows("SELECT count(*) FROM image") == [(len(files),)]
    for uid, digests in sink.digests.items():
        assert len(set(digests)) == 1, f"{uid} was sent again with other bytes"
    by_class: dict[str, int] = defaultdict(int)
    for sop_class in sink.classes.values():
        by_class[sop_class] += 1
    assert sorted(by_class.values()) == [complete, complete]
    answered = node.rows("SELECT series, count(*) FROM task WHERE state = 'answered' GROUP BY 1")
    assert [number for _, number in answered] == [1] * complete
    held = node.rows("SELECT state FROM task WHERE state NOT IN ('answered', 'replaced')")
    assert held == [("incomplete",)] * len(incomplete)
    assert not [secret for secret in SECRETS if secret in node.log.read_text()]


def test_a_late_image_makes_one_new_result_of_all_images(node: NodeProcess, sink: Archive) -> None:
    files = series(1, slices=6)
    assert send(node.address, files[:5]) == [0] * 5
    node.wait(lambda: len(sink.digests) == 2)
    assert send(node.address, files[5:]) == [0]
    node.wait(lambda: len(sink.digests) == 4)
    sizes = node.rows("SELECT json_array_length(images) FROM task WHERE state = 'answered'")
    assert sizes == [(5,), (6,)]


def test_results_that_come_back_are_taken_and_not_worked_on(
    node: NodeProcess, sink: Archive
) -> None:
    send(node.address, series(1))
    node.wait(lambda: len(sink.contents) == 2)
    back = list(sink.contents.values())
    assert send(node.address, back) == [0, 0]
    [(ignored,)] = node.rows("SELECT value FROM count WHERE name = 'results_ignored'")
    assert ignored == 2
    assert node.rows("SELECT count(*) FROM series") == [(1,)]


def test_an_engine_that_is_down_costs_nothing_but_time(node: NodeProcess, sink: Archive) -> None:
    down = node.state / "engine-down"
    down.touch()
    send(node.address, series(1))
    node.wait(lambda: node.rows("SELECT 1 FROM task WHERE attempts > 1") != [])
    assert node.rows("SELECT state FROM task") == [("waiting",)]
    down.unlink()
    node.wait(lambda: len(sink.contents) == 2)
    assert node.log.read_text().count("UNREACHABLE") == 1  # one line, however many attempts


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a disk of 4 MiB; skip where none can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a disk in memory")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_refuses_what_comes_and_loses_nothing(
    small_disk: Path, tmp_path: Path, sink: Archive
) -> None:
    node = NodeProcess(tmp_path, sink.destination, state=small_disk / "state")
    node.start()
    try:
        assert send(node.address, series(1)) == [0] * 5
        with contextlib.suppress(OSError), (small_disk / "filler").open("wb") as filler:
            while True:
                filler.write(b"\0" * 4096)
                filler.flush()
        statuses = [status for number in range(2, 6)
                    for status in send(node.address, series(number))]  # fmt: skip
        assert 0 not in statuses
        time.sleep(3.0)  # the series of before is due, and its results find no room
        (small_disk / "filler").unlink()
        for number in range(2, 6):
            node.wait(lambda number=number: send(node.address, series(number)) == [0] * 5)  # type: ignore[misc]
        node.wait(lambda: len(sink.digests) == 10)
        assert node.rows("SELECT count(*) FROM task WHERE state = 'answered'") == [(5,)]
        assert len(node.log.read_text().splitlines()) < 60
    finally:
        node.kill()
