"""Versions that come, go and take each other's place while calls run, on an engine in memory.

The archives hold no model, see `plain_archive`; the engine answers as their workers would.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from medserve.archive.decisions import Decisions
from medserve.archive.read import ArchiveInfo, verify_archive
from medserve.archive.store import default_versions, select_archives
from medserve.errors import (
    ConfigError,
    ForbiddenError,
    InvalidRequestError,
    ModelNotReadyError,
    ServerBusyError,
    ServerFailedError,
    UnknownModelError,
)
from medserve.gateway.core.audit import AuditLog, verify
from medserve.gateway.core.calls import Caller, EngineCall, Face, Health
from medserve.gateway.core.gateway import Gateway, Guards
from medserve.gateway.core.health import Monitor
from medserve.gateway.core.served_models import ServedModels, describe
from medserve.gateway.core.store_watch import StoreWatch
from medserve.gateway.core.versions import Addition, Changer, Fleet, Store, Versions
from medserve.gateway.server import GatewayServer
from medserve.gateway.settings import Timing
from tests.gateway.fake_engine import FakeEngine, Request
from tests.gateway.running import quick_settings
from tests.plain_archive import write_archive

OPERATOR = Changer(Caller("operator", manages=True), "0" * 8)


class Bench:
    """A gateway over a store with `tiny` 1.0, an engine that answers as the archives say."""

    def __init__(
        self, folder: Path, audit: AuditLog | None = None, guards: Guards | None = None
    ) -> None:
        self.folder = folder
        self.archives: dict[str, ArchiveInfo] = {}
        first = verify_archive(write_archive(folder, "tiny", "1.0"))
        self.engine = FakeEngine(self._answer)
        self.lying: set[str] = set()  # versions whose golden answer names another archive
        self.served = ServedModels([describe(first, default=True, health=Health(True))])
        self.gateway = Gateway(self.engine, self.served, guards)
        self.monitor = Monitor(self.gateway, self.engine, self.served, [], Timing(look_s=0.01))
        store = Store(folder, folder / "serving.json", drain_s=0.5)
        fleet = Fleet(self.gateway, self.engine, self.served, self.monitor)
        self.versions = self.gateway.versions = Versions(fleet, store, audit)
        self.watch = StoreWatch(self.versions, self.served, folder, [first], look_s=0.01)

    def _answer(self, request: Request) -> bytes:
        """As the worker of the version: its own digest, unless it lies."""
        version = request.version or "1.0"
        digest = verify_archive(self.folder / f"tiny-{version}.mar").digest
        content = {"status": "ok", "model": "tiny", "version": version}
        content["archive_digest"] = "sha256:0" if version in self.lying else digest
        return json.dumps(content).encode()

    async def ask(self, version: str = "") -> str:
        """Return the version that answers."""
        call = EngineCall("tiny", version, {"data": b"x"}, "0" * 8, caller=Caller())
        return str(json.loads(await self.gateway.predict(call))["version"])

    @property
    def default(self) -> str:
        """The version that answers a call that names none."""
        return self.served.find("tiny").version

    @property
    def listed(self) -> list[str]:
        """The versions that are served."""
        return sorted(each.version for each in self.served)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "store")


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario()

    asyncio.run(main())


def test_a_version_is_served_beside_another_and_takes_its_place(bench: Bench) -> None:
    write_archive(bench.folder, "tiny", "2.0")

    async def scenario() -> None:
        added = await bench.versions.add(OPERATOR, Addition("tiny-2.0.mar"))
        assert (added.version, added.default, added.ready) == ("2.0", False, True)
        assert await bench.ask() == "1.0"
        assert await bench.ask("2.0") == "2.0"
        assert (await bench.versions.set_default(OPERATOR, "tiny", "2.0")).default
        assert await bench.ask() == "2.0"
        assert await bench.ask("1.0") == "1.0"
        await bench.versions.remove(OPERATOR, "tiny", "1.0")
        with pytest.raises(UnknownModelError, match=r"out of 2\.0"):
            await bench.ask("1.0")
        assert [each.version for each in await bench.engine.describe("tiny")] == ["2.0"]

    run(scenario)


def test_the_decision_outlives_a_restart(bench: Bench) -> None:
    write_archive(bench.folder, "tiny", "2.0")
    write_archive(bench.folder, "tiny", "3.0")

    async def scenario() -> None:
        await bench.versions.add(OPERATOR, Addition("tiny-2.0.mar", default=True))
        await bench.versions.remove(OPERATOR, "tiny", "1.0")

    run(scenario)
    decided = Decisions.read(bench.folder / "serving.json")
    found = select_archives(bench.folder, (), decided)
    assert [each.version for each in found] == ["2.0", "3.0"]
    assert default_versions(found, {}, decided) == {"tiny": "2.0"}
    assert default_versions(found, {"tiny": "3.0"}, decided) == {"tiny": "3.0"}


def test_rolling_back_loads_the_version_of_before_where_it_has_gone(bench: Bench) -> None:
    write_archive(bench.folder, "tiny", "2.0")

    async def scenario() -> None:
        with pytest.raises(InvalidRequestError, match="no earlier default"):
            await bench.versions.roll_back(OPERATOR, "tiny")
        await bench.versions.add(OPERATOR, Addition("tiny-2.0.mar", default=True))
        await bench.versions.remove(OPERATOR, "tiny", "1.0")
        assert (await bench.versions.roll_back(OPERATOR, "tiny")).version == "1.0"
        assert await bench.ask() == "1.0"
        assert bench.listed == ["1.0", "2.0"]
        with pytest.raises(InvalidRequestError, match="no earlier default"):
            await bench.versions.roll_back(OPERATOR, "tiny")

    run(scenario)
    assert Decisions.read(bench.folder / "serving.json").of("tiny").default == "1.0"


def half_copied(folder: Path) -> None:
    path = folder / "tiny-2.0.mar"
    path.write_bytes(path.read_bytes()[:-200])


def altered(folder: Path) -> None:
    path = folder / "tiny-2.0.mar"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"class Tiny", b"class Tinz"))


def misnamed(folder: Path) -> None:
    shutil.copy(folder / "tiny-1.0.mar", folder / "tiny-2.0.mar")


@pytest.mark.parametrize("spoil", [half_copied, altered, misnamed])
def test_an_archive_that_cannot_be_trusted_changes_nothing(
    bench: Bench, spoil: Callable[[Path], None]
) -> None:
    write_archive(bench.folder, "tiny", "2.0")
    spoil(bench.folder)

    async def scenario() -> None:
        addition = Addition("tiny-2.0.mar", "tiny", "2.0", default=True)
        with pytest.raises(InvalidRequestError) as caught:
            await bench.versions.add(OPERATOR, addition)
        assert "\n" not in caught.value.message
        assert str(bench.folder) not in caught.value.message
        assert (bench.default, bench.listed, await bench.ask()) == ("1.0", ["1.0"], "1.0")

    run(scenario)
    assert not (bench.folder / "serving.json").exists()


def test_a_version_that_answers_its_golden_input_wrongly_is_unloaded(bench: Bench) -> None:
    write_archive(bench.folder, "tiny", "2.0")
    bench.lying.add("2.0")

    async def scenario() -> None:
        with pytest.raises(ModelNotReadyError, match="expected an answer of the archive"):
            await bench.versions.add(OPERATOR, Addition("tiny-2.0.mar", default=True))
        assert [each.version for each in await bench.engine.describe("tiny")] == ["1.0"]
        assert bench.listed == ["1.0"]

    run(scenario)


@pytest.mark.parametrize(
    "name",
    ["../tiny-2.0.mar", "/etc/passwd", "https://host/tiny-2.0.mar", "sub/tiny-2.0.mar", ".mar",
     "file:///tmp/tiny-2.0.mar", "..\\tiny-2.0.mar", "tiny-9.9.mar", "serving.json"],
)  # fmt: skip
def test_nothing_outside_the_store_can_be_named(bench: Bench, name: str) -> None:
    write_archive(bench.folder.parent, "tiny", "2.0")
    (bench.folder / "sub").mkdir()
    write_archive(bench.folder / "sub", "tiny", "2.0")

    async def scenario() -> None:
        with pytest.raises(InvalidRequestError):
            await bench.versions.add(OPERATOR, Addition(name))

    run(scenario)
    assert bench.listed == ["1.0"]


@pytest.mark.parametrize(
    ("caller", "match"),
    [
        (Caller("ward-7"), "does not change what is served"),
        (Caller("ward-7", frozenset({"other"}), manages=True), "not for that model"),
    ],
)
def test_who_may_not_manage_a_model_changes_nothing(
    bench: Bench, caller: Caller, match: str
) -> None:
    write_archive(bench.folder, "tiny", "2.0")
    by = Changer(caller)
    asked: list[Callable[[], Awaitable[Any]]] = [
        lambda: bench.versions.add(by, Addition("tiny-2.0.mar")),
        lambda: bench.versions.remove(by, "tiny", "1.0"),
        lambda: bench.versions.set_default(by, "tiny", "1.0"),
        lambda: bench.versions.roll_back(by, "tiny"),
        lambda: bench.versions.scale(by, "tiny", "1.0", 2),
    ]

    async def scenario() -> None:
        for ask in asked:
            with pytest.raises(ForbiddenError, match=match):
                await ask()
        assert bench.listed == ["1.0"]

    run(scenario)


def test_the_second_of_two_managers_hears_that_another_change_is_under_way(bench: Bench) -> None:
    write_archive(bench.folder, "tiny", "2.0")

    async def scenario() -> None:
        bench.engine.hold = asyncio.Event()  # the golden answer waits
        first = asyncio.create_task(bench.versions.add(OPERATOR, Addition("tiny-2.0.mar")))
        while not bench.engine.requests:
            await asyncio.sleep(0.001)
        with pytest.raises(ServerBusyError, match=r"under way \(add"):
            await bench.versions.set_default(OPERATOR, "tiny", "1.0")
        bench.engine.hold.set()
        assert (await first).version == "2.0"
        await bench.versions.set_default(OPERATOR, "tiny", "2.0")

    run(scenario)


def test_a_change_goes_on_when_its_caller_goes_away(bench: Bench) -> None:
    write_archive(bench.folder, "tiny", "2.0")

    async def scenario() -> None:
        bench.engine.hold = asyncio.Event()
        change = asyncio.create_task(
            bench.versions.add(OPERATOR, Addition("tiny-2.0.mar", default=True))
        )
        while not bench.engine.requests:
            await asyncio.sleep(0.001)
        change.cancel()
        bench.engine.hold.set()
        while bench.versions.under_way:
            await asyncio.sleep(0.001)
        assert bench.default == "2.0"

    run(scenario)


def test_a_change_that_is_broken_off_leaves_the_default(bench: Bench) -> None:
    write_archive(bench.folder, "tiny", "2.0")

    async def scenario() -> None:
        bench.engine.hold = asyncio.Event()
        change = asyncio.create_task(
            bench.versions.add(OPERATOR, Addition("tiny-2.0.mar", default=True))
        )
        while not bench.engine.requests:
            await asyncio.sleep(0.001)
        await bench.versions.close()
        with pytest.raises(asyncio.CancelledError):
            await change
        assert (bench.default, bench.listed) == ("1.0", ["1.0"])

    run(scenario)
    assert not (bench.folder / "serving.json").exists()


def test_a_full_disk_leaves_the_default(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(bench.folder, "tiny", "2.0")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    async def scenario() -> None:
        await bench.versions.add(OPERATOR, Addition("tiny-2.0.mar"))
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ServerFailedError, match="No space left on device"):
            await bench.versions.set_default(OPERATOR, "tiny", "2.0")
        assert (bench.default, await bench.ask()) == ("1.0", "1.0")
        (first,) = [each for each in await bench.engine.describe("tiny") if each.default]
        assert first.version == "1.0"

    run(scenario)
    left = sorted(path.name for path in bench.folder.iterdir())
    assert left == ["serving.json", "tiny-1.0.mar", "tiny-2.0.mar"]
    assert Decisions.read(bench.folder / "serving.json").of("tiny").default == ""


def test_the_default_version_and_unknown_ones_are_not_removed(bench: Bench) -> None:
    write_archive(bench.folder, "tiny", "2.0")

    async def scenario() -> None:
        await bench.versions.add(OPERATOR, Addition("tiny-2.0.mar"))
        with pytest.raises(InvalidRequestError, match="is the default version"):
            await bench.versions.remove(OPERATOR, "tiny", "1.0")
        with pytest.raises(InvalidRequestError, match=r"1\.0, 2\.0; name the one"):
            await bench.versions.remove(OPERATOR, "tiny")
        with pytest.raises(UnknownModelError):
            await bench.versions.remove(OPERATOR, "tiny", "9.9")
        with pytest.raises(UnknownModelError):
            await bench.versions.set_default(OPERATOR, "tiny", "9.9")
        with pytest.raises(InvalidRequestError, match="served already"):
            await bench.versions.add(OPERATOR, Addition("tiny-2.0.mar"))

    run(scenario)


@pytest.mark.parametrize("workers", [0, -1, 10_000])
def test_workers_are_bounded(bench: Bench, workers: int) -> None:
    async def scenario() -> None:
        await bench.versions.scale(OPERATOR, "tiny", "", 2)
        (tiny,) = await bench.engine.describe("tiny")
        assert tiny.workers == 2
        with pytest.raises(InvalidRequestError, match="expected 1 to"):
            await bench.versions.scale(OPERATOR, "tiny", "", workers)

    run(scenario)


def test_calls_to_a_version_that_goes_end_first(bench: Bench) -> None:
    write_archive(bench.folder, "tiny", "2.0")

    async def scenario() -> None:
        await bench.versions.add(OPERATOR, Addition("tiny-2.0.mar", default=True))
        bench.engine.hold = asyncio.Event()
        slow = asyncio.create_task(bench.ask("1.0"))
        await asyncio.sleep(0.01)
        going = asyncio.create_task(bench.versions.remove(OPERATOR, "tiny", "1.0"))
        await asyncio.sleep(0.8)  # longer than such calls are waited for
        with pytest.raises(UnknownModelError):
            await bench.ask("1.0")
        assert not going.done()
        bench.engine.hold.set()
        assert await slow == "1.0"
        await going
        assert [each.version for each in await bench.engine.describe("tiny")] == ["2.0"]

    run(scenario)


def test_every_call_is_answered_while_versions_take_turns(bench: Bench) -> None:
    """Each answer names a version that was the default between the call and its answer."""
    write_archive(bench.folder, "tiny", "2.0")
    history = [(0.0, "1.0")]
    digests = {v: verify_archive(bench.folder / f"tiny-{v}.mar").digest for v in ("1.0", "2.0")}

    def answer(request: Request) -> bytes:
        content = {"status": "ok", "version": request.version}
        return json.dumps(content | {"archive_digest": digests[request.version]}).encode()

    async def scenario() -> None:
        bench.engine.answers, bench.engine.pause_s = answer, 0.005
        clock = asyncio.get_running_loop().time
        stop = asyncio.Event()
        answered: list[tuple[float, float, str]] = []

        async def caller() -> None:
            while not stop.is_set():
                began = clock()
                version = await bench.ask()
                answered.append((began, clock(), version))

        def note(model: Any) -> None:
            if model.default:
                history.append((clock(), model.version))

        bench.served.on_change(note)
        callers = [asyncio.create_task(caller()) for _ in range(3)]
        for new, old in [("2.0", "1.0"), ("1.0", "2.0")]:
            await bench.versions.add(OPERATOR, Addition(f"tiny-{new}.mar", default=True))
            await bench.versions.remove(OPERATOR, "tiny", old)
        stop.set()
        await asyncio.gather(*callers)
        assert {version for _, _, version in answered} == {"1.0", "2.0"}
        ends = [*(at for at, _ in history[1:]), float("inf")]
        for began, done, version in answered:
            spans = zip(history, ends, strict=True)
            allowed = {each for (at, each), end in spans if at <= done and end >= began}
            assert version in allowed

    run(scenario)


def test_changes_stand_in_the_audit_log_with_their_outcome(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    audit = AuditLog(log)
    bench = Bench(tmp_path / "store", audit)
    write_archive(bench.folder, "tiny", "2.0")

    async def scenario() -> None:
        await bench.versions.add(OPERATOR, Addition("tiny-2.0.mar"))
        with pytest.raises(UnknownModelError):
            await bench.versions.set_default(OPERATOR, "tiny", "9.9")

    run(scenario)
    audit.close()
    assert verify(log).lines == 2
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [(each["who"], each["change"], each["status"]) for each in lines] == [
        ("operator", "add", "OK"),
        ("operator", "default", "UNKNOWN_MODEL"),
    ]
    assert lines[0]["archive"] == verify_archive(bench.folder / "tiny-2.0.mar").digest


async def looks(bench: Bench, number: int = 2) -> None:
    """A file counts when two looks see the same of it."""
    for _ in range(number):
        await bench.watch.look()


def test_an_archive_that_is_copied_into_a_watched_store_takes_over(bench: Bench) -> None:
    async def scenario() -> None:
        await looks(bench)
        write_archive(bench.folder, "tiny", "2.0")
        await looks(bench, 1)
        assert bench.listed == ["1.0"]
        await looks(bench, 1)
        assert (bench.default, bench.listed, await bench.ask()) == ("2.0", ["2.0"], "2.0")
        write_archive(bench.folder, "tiny", "1.5")
        await looks(bench)
        assert (bench.default, bench.listed) == ("2.0", ["1.5", "2.0"])
        (bench.folder / "tiny-1.5.mar").unlink()
        await looks(bench)
        assert (bench.default, bench.listed) == ("2.0", ["2.0"])
        (bench.folder / "tiny-2.0.mar").rename(bench.folder / "aside")
        await looks(bench)
        assert bench.listed == ["2.0"]

    run(scenario)


@pytest.mark.parametrize("dated_s", [0.0, 4_102_444_800.0], ids=["1970", "2100"])
def test_a_clock_that_is_set_while_an_archive_comes_changes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, dated_s: float
) -> None:
    async def scenario() -> None:
        await looks(bench)
        path = write_archive(bench.folder, "tiny", "2.0")
        whole = path.read_bytes()
        half_copied(bench.folder)
        os.utime(path, (dated_s, dated_s))
        monkeypatch.setattr(time, "time", lambda: dated_s)
        await looks(bench)
        assert (bench.default, bench.listed) == ("1.0", ["1.0"])
        path.write_bytes(whole)
        os.utime(path, (dated_s, dated_s))  # the same date; its size tells
        await looks(bench)
        assert (bench.default, bench.listed, await bench.ask()) == ("2.0", ["2.0"], "2.0")
        await bench.versions.roll_back(OPERATOR, "tiny")
        assert (bench.default, await bench.ask()) == ("1.0", "1.0")

    run(scenario)


def test_a_watched_store_leaves_alone_what_was_added_by_hand(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        await looks(bench)
        write_archive(bench.folder, "tiny", "2.0")
        await bench.versions.add(OPERATOR, Addition("tiny-2.0.mar"))
        await looks(bench, 3)
        assert (bench.default, bench.listed) == ("1.0", ["1.0", "2.0"])
        assert not [each for each in caplog.records if each.levelname == "ERROR"]
        shutil.copy(write_archive(bench.folder, "tiny", "3.0"), bench.folder / "tiny-2.0.mar")
        await looks(bench, 3)
        assert (bench.default, bench.listed) == ("3.0", ["2.0", "3.0"])

    run(scenario)


@pytest.mark.parametrize("spoil", [half_copied, altered, misnamed])
def test_a_watched_store_says_once_why_an_archive_changes_nothing(
    bench: Bench, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    write_archive(bench.folder, "tiny", "2.0")
    whole = (bench.folder / "tiny-2.0.mar").read_bytes()
    spoil(bench.folder)

    async def scenario() -> None:
        await looks(bench, 4)
        said = [each for each in caplog.records if each.levelname == "ERROR"]
        assert len(said) == 1
        assert said[0].getMessage().startswith("tiny-2.0.mar changes nothing: ")
        assert (bench.default, bench.listed) == ("1.0", ["1.0"])
        (bench.folder / "tiny-2.0.mar").write_bytes(whole)  # the copy goes on
        await looks(bench)
        assert (bench.default, bench.listed) == ("2.0", ["2.0"])

    run(scenario)


def test_a_restarted_watch_tries_what_has_come_since_and_nothing_that_was_rolled_back(
    bench: Bench,
) -> None:
    write_archive(bench.folder, "tiny", "2.0")
    path = bench.folder / "serving.json"

    def at_the_next_start(*, watched: bool = True) -> tuple[list[str], str]:
        decided = Decisions.read(path)
        found = select_archives(bench.folder, (), decided, watched)
        return [each.version for each in found], default_versions(found, {}, decided)["tiny"]

    async def scenario() -> None:
        bench.versions.remember()  # as the watch does when it begins
        assert at_the_next_start() == (["1.0"], "1.0")  # 2.0 was not proven before the end
        await looks(bench)
        assert at_the_next_start() == (["2.0"], "2.0")
        await bench.versions.roll_back(OPERATOR, "tiny")
        write_archive(bench.folder, "tiny", "3.0")
        assert at_the_next_start() == (["1.0", "2.0"], "1.0")
        assert at_the_next_start(watched=False) == (["1.0", "2.0", "3.0"], "1.0")

    run(scenario)


def test_a_gateway_before_an_engine_of_others_sets_defaults_alone(bench: Bench) -> None:
    fleet = Fleet(bench.gateway, bench.engine, bench.served, bench.monitor)
    versions = Versions(fleet, None)

    async def scenario() -> None:
        with pytest.raises(InvalidRequestError, match="medserve serve"):
            await versions.add(OPERATOR, Addition("tiny-2.0.mar"))
        with pytest.raises(InvalidRequestError, match="medserve serve"):
            await versions.remove(OPERATOR, "tiny", "1.0")
        await versions.set_default(OPERATOR, "tiny", "1.0")

    run(scenario)


def test_a_store_is_watched_where_the_engine_belongs_to_the_server(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`medserve serve --watch`"):
        GatewayServer(quick_settings(tmp_path, watch=True))


def test_a_look_that_is_older_than_a_change_does_not_undo_it(bench: Bench) -> None:
    """The monitor takes the default from the engine, as it was when the engine was asked."""
    write_archive(bench.folder, "tiny", "2.0")

    async def scenario() -> None:
        await bench.versions.add(OPERATOR, Addition("tiny-2.0.mar"))
        old, asked = list(await bench.engine.describe("tiny")), asyncio.Event()
        go_on, describe_now = asyncio.Event(), bench.engine.describe

        async def slow(model: str = "") -> Any:
            asked.set()
            await go_on.wait()
            return old

        bench.engine.describe = slow  # type: ignore[method-assign]
        look = asyncio.create_task(bench.monitor._look("tiny"))
        await asked.wait()
        bench.engine.describe = describe_now  # type: ignore[method-assign]
        await bench.versions.set_default(OPERATOR, "tiny", "2.0")
        go_on.set()
        await look
        assert bench.default == "2.0"

    run(scenario)


def test_a_call_is_sent_to_the_version_that_was_the_default_when_it_came(bench: Bench) -> None:
    async def scenario() -> None:
        assert await bench.ask() == "1.0"
        asked = EngineCall("tiny", "", {}, "0" * 8, caller=Caller(), face=Face.HTTP)
        await bench.gateway.predict(dataclasses.replace(asked, inputs={"data": b"x"}))
        assert [each.version for each in bench.engine.requests] == ["1.0", "1.0"]

    run(scenario)
