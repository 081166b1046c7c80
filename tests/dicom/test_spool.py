"""The contract of the queue, without a network: whatever happens in whatever order."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from medserve.dicom import node
from medserve.dicom.headers import Facts
from medserve.dicom.spool import MadeObject, Receipt, Spool, Wanted
from medserve.errors import ConfigError

RULE = "brain"


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:  # noqa: D102
        return self.now


def facts(series: int, image: int) -> Facts:
    return Facts(
        sop_uid=f"1.{series}.{image}",
        sop_class="1.2.840.10008.5.1.4.1.1.4",
        study_uid=f"2.{series}",
        series_uid=f"3.{series}",
        identity="",
    )


def receive(spool: Spool, series: int, image: int, content: bytes = b"pixels") -> Receipt:
    path = Path(tempfile.mkstemp(dir=spool.receiving)[1])
    path.write_bytes(content)
    return spool.receive(path, facts(series, image), "SENDER")


def settle_all(spool: Spool, reason: str = "") -> None:
    for series in spool.open_series():
        images = tuple(each.facts.sop_uid for each in spool.images(series.id))
        assert spool.settle(series, [Wanted(RULE, images, reason)])


def made(spool: Spool, uid: str) -> MadeObject:
    file = spool.receiving / uid
    file.write_bytes(uid.encode())
    return MadeObject(uid, "1.2.3", f"{uid}.0", "seg", file)


def answer_all(spool: Spool) -> None:
    for task in spool.tasks("waiting"):
        assert spool.finish(task, [made(spool, f"9.{task.id}")], ["PACS@h:1"])


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def spool(tmp_path: Path, clock: Clock) -> Iterator[Spool]:
    opened = Spool(tmp_path / "state", clock)
    yield opened
    with contextlib.suppress(OSError):  # a test has closed it
        opened.close()


def test_an_object_that_comes_twice_is_kept_once(spool: Spool) -> None:
    assert receive(spool, 1, 1) is Receipt.NEW
    assert receive(spool, 1, 1) is Receipt.SAME
    assert receive(spool, 1, 1, b"others") is Receipt.OTHER_BYTES
    [series] = spool.open_series()
    [image] = spool.images(series.id)
    assert image.path is not None
    assert image.path.read_bytes() == b"pixels"


def test_an_image_that_comes_while_a_series_is_judged_is_not_overlooked(spool: Spool) -> None:
    receive(spool, 1, 1)
    [series] = spool.open_series()
    receive(spool, 1, 2)
    assert not spool.settle(series, [Wanted(RULE, ("1.1.1",), "")])
    assert spool.tasks("waiting") == []


def test_a_task_replaced_by_late_images_leaves_no_result(spool: Spool) -> None:
    receive(spool, 1, 1)
    settle_all(spool)
    [task] = spool.tasks("waiting")
    receive(spool, 1, 2)
    settle_all(spool)
    assert not spool.finish(task, [made(spool, "9.9")], ["PACS@h:1"])
    assert list((spool.folder / "results").iterdir()) == []
    [new] = spool.tasks("waiting")
    assert len(new.images) == 2


def test_images_go_with_time_and_are_not_answered_again(spool: Spool, clock: Clock) -> None:
    receive(spool, 1, 1)
    settle_all(spool)
    answer_all(spool)
    [delivery] = spool.deliveries("PACS@h:1")
    clock.now += 100
    spool.purge(10, 10, 10)
    assert delivery.path is not None
    assert delivery.path.exists()  # it was not sent yet
    spool.delivered(delivery, "sent")
    clock.now += 100
    spool.purge(10, 10, 1000)
    assert list(spool.folder.rglob("*.dcm")) == []
    assert receive(spool, 1, 1) is Receipt.NEW
    settle_all(spool)
    assert spool.tasks("waiting") == []
    clock.now += 2000
    spool.purge(10, 10, 1000)
    spool.purge(10, 10, 1000)
    assert spool.counts()["series"] == {}


def test_held_tasks_are_kept_for_longer(spool: Spool, clock: Clock) -> None:
    receive(spool, 1, 1)
    settle_all(spool)
    [task] = spool.tasks("waiting")
    spool.change(task.id, "held", "a reason")
    clock.now += 100
    assert spool.purge(10, 1000, 10_000) == 0
    clock.now += 1000
    assert spool.purge(10, 1000, 10_000) == 1


def test_the_folder_is_private_and_has_one_owner(spool: Spool) -> None:
    assert spool.folder.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ConfigError, match="another node"):
        Spool(spool.folder)


class AnyOrder(RuleBasedStateMachine):
    """Images, judgements, answers, deliveries and kills in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = Clock()
        self.spool = Spool(self.folder / "state", self.clock)
        self.acknowledged: set[tuple[int, int]] = set()
        self.sent: dict[str, set[str]] = {}

    def teardown(self) -> None:  # noqa: D102
        self.spool.close()
        shutil.rmtree(self.folder)

    @rule(series=st.integers(1, 3), image=st.integers(1, 4))
    def an_image_comes(self, series: int, image: int) -> None:  # noqa: D102
        receive(self.spool, series, image)
        self.acknowledged.add((series, image))

    @rule()
    def half_an_image_comes(self) -> None:  # noqa: D102
        (self.spool.receiving / "half").write_bytes(b"half")

    @rule(reason=st.sampled_from(["", "a gap"]))
    def series_are_judged(self, reason: str) -> None:  # noqa: D102
        settle_all(self.spool, reason)

    @precondition(lambda self: self.spool.tasks("waiting"))
    @rule()
    def a_task_is_answered(self) -> None:  # noqa: D102
        task = self.spool.tasks("waiting")[0]
        assert self.spool.finish(task, [made(self.spool, f"9.{task.id}")], ["PACS@h:1"])

    @rule()
    def results_are_sent(self) -> None:  # noqa: D102
        for each in self.spool.deliveries("PACS@h:1"):
            assert each.path is not None
            content = sha256(each.path.read_bytes()).hexdigest()
            assert content == each.digest
            self.sent.setdefault(each.sop_uid, set()).add(content)
            self.spool.delivered(each, "sent")

    @rule()
    def the_node_is_killed(self) -> None:  # noqa: D102
        leftover = self.spool.folder / "results" / "orphan.dcm"
        leftover.write_bytes(b"its commit did not happen")
        self.spool.close()
        self.spool = Spool(self.folder / "state", self.clock)
        assert not leftover.exists()

    @invariant()
    def nothing_acknowledged_is_lost(self) -> None:  # noqa: D102
        names = {f"1.{series}.{image}" for series, image in self.acknowledged}
        rows = self.spool._all("SELECT sop_uid, file FROM image")
        assert {row["sop_uid"] for row in rows} == names
        assert all((self.spool.folder / row["file"]).exists() for row in rows)

    @invariant()
    def one_content_has_one_answer(self) -> None:  # noqa: D102
        answered = self.spool.tasks("answered")
        assert len({(task.series, task.content) for task in answered}) == len(answered)
        assert all(len(digests) == 1 for digests in self.sent.values())


AnyOrder.TestCase.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
TestAnyOrder = pytest.mark.cpu(AnyOrder.TestCase)


@pytest.mark.parametrize("years", [-10, 10])
def test_a_clock_that_is_set_while_the_node_runs_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, years: int
) -> None:
    spool = Spool(tmp_path / "state", node.Clock())
    receive(spool, 1, 1)
    settle_all(spool)
    answer_all(spool)
    [delivery] = spool.deliveries("PACS@h:1")
    spool.delivered(delivery, "sent")
    coming = spool.receiving / "coming"
    coming.write_bytes(b"half of an object")
    later = time.time() + years * 365 * 86400
    monkeypatch.setattr("time.time", lambda: later)
    os.utime(coming, (later, later))
    before = spool.now()
    spool.sweep(3600)
    spool.purge(3600, 3600, 3600)
    assert coming.exists()
    assert len(list(spool.folder.rglob("*.dcm"))) == 2
    assert abs(spool.now() - before) < 3600
    spool.close()


def test_what_is_left_behind_goes_after_its_time(spool: Spool, clock: Clock) -> None:
    stray = spool.receiving / "stray"
    stray.touch()
    spool.sweep(3600)
    clock.now += 3599
    spool.sweep(3600)
    assert stray.exists()
    clock.now += 2
    spool.sweep(3600)
    assert not stray.exists()


def test_images_are_not_kept_for_longer_where_the_clock_was_set_back_meanwhile(
    spool: Spool, clock: Clock
) -> None:
    receive(spool, 1, 1)
    settle_all(spool)
    answer_all(spool)
    [delivery] = spool.deliveries("PACS@h:1")
    spool.delivered(delivery, "sent")
    spool.close()
    clock.now -= 1e8
    again = Spool(spool.folder, clock)
    clock.now += 11
    again.purge(10, 10, 1000)
    assert list(again.folder.rglob("*.dcm")) == []
    again.close()
