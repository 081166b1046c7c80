"""The node: four loops over one spool. Each goes on whatever happens in a single step.

`judge` makes tasks of series that are complete, `answer` asks the model and keeps the results,
`send` brings them to one destination, and the storage service runs beside them. Between any two
steps the process may be killed; the spool says what has still to be done.
"""

from __future__ import annotations

import logging
import random
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medserve import tracing
from medserve.dicom.ask import Gateway
from medserve.dicom.completeness import StudySeries, judge, quiet_s
from medserve.dicom.deidentify import Pseudonyms, copy_without_identity
from medserve.dicom.headers import quiet_libraries
from medserve.dicom.intake import Intake
from medserve.dicom.objects import make_objects
from medserve.dicom.peers import Destination
from medserve.dicom.receive import Receiver, ReceiverSettings
from medserve.dicom.rules import Rule, Rules
from medserve.dicom.send import Sender, image_count
from medserve.dicom.spool import Image, Series, Spool, Task, Wanted
from medserve.errors import (
    AuthenticationError,
    ConfigError,
    DeadlineError,
    MedserveError,
    ModelNotReadyError,
    ServerBusyError,
    ServerFailedError,
    ServerUnreachableError,
    UnknownModelError,
)
from medserve.gateway.core.audit import AuditLog, AuditRecord

__all__ = ["Keep", "Node", "NodeSettings", "Room"]

# What another time may end otherwise: the server, or what its operator has to set right.
_PASSING = (
    ServerBusyError,
    ServerUnreachableError,
    ModelNotReadyError,
    DeadlineError,
    UnknownModelError,
    AuthenticationError,
)
_FAILURES = 3  # attempts at a model that fails on the images
_LONGEST_WAIT_S = 300.0
_AT_A_TIME = 50  # objects over one association
_HOUR = 3600.0


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Room:
    """How much a node takes; above it senders are told to try again later.

    Attributes:
        most_bytes: Of stored images.
        free_share: Part of the disk that stays free.
        most_waiting: Tasks that wait for the model.
    """

    most_bytes: int = 200 * 2**30
    free_share: float = 0.05
    most_waiting: int = 10_000


@dataclass(frozen=True)
class Keep:
    """How long a node keeps what it has.

    Attributes:
        done_h: Images and results after the last one was sent.
        held_h: The same where an operator has to look.
        remember_days: Rows without images, so that a series that is sent again is not answered
            again.
    """

    done_h: float = 24.0
    held_h: float = 24.0 * 14
    remember_days: float = 365.0


@dataclass(frozen=True)
class NodeSettings:
    """Everything about a node but its rules and connections."""

    receiver: ReceiverSettings
    destinations: tuple[Destination, ...]
    room: Room = Room()
    keep: Keep = Keep()
    tick_s: float = 0.5


@dataclass
class _Waits:
    """When something that failed may be tried again, by its row and its number of attempts."""

    until: dict[tuple[object, int], float] = field(default_factory=dict)

    def may_try(self, key: object, attempts: int) -> bool:
        return time.monotonic() >= self.until.get((key, attempts), 0.0)

    def put_off(self, key: object, attempts: int) -> None:
        """Wait before attempt number `attempts`: twice as long each time, with chance in it."""
        longest = min(2.0**attempts, _LONGEST_WAIT_S)
        self.until[key, attempts] = time.monotonic() + longest * random.uniform(0.5, 1.0)
        self.until.pop((key, attempts - 1), None)


class Clock:
    """The wall clock as it was when the node started, moved on by the time that has passed.

    A clock that is set while the node runs changes nothing of what it keeps and gives up.
    """

    def __init__(self) -> None:
        self._behind = time.time() - time.monotonic()

    def __call__(self) -> float:
        """Return seconds since 1970."""
        return self._behind + time.monotonic()


class Node:
    """A node in this process.

    Args:
        settings: What it takes, from whom, and how long it keeps it.
        rules: Which images go to which model.
        spool: Its queue; closed by the caller.
        gateway: The model server.
        sender: Sends the results.
        audit: Gets a line for each task that was answered or refused; None for no log.
    """

    def __init__(
        self,
        settings: NodeSettings,
        rules: Rules,
        spool: Spool,
        gateway: Gateway,
        sender: Sender,
        audit: AuditLog | None = None,
    ) -> None:
        self.settings, self.rules, self.spool = settings, rules, spool
        self._gateway, self._sender, self._audit = gateway, sender, audit
        deidentifies = any(rule.deidentify for rule in rules)
        self._pseudonyms = Pseudonyms.of_folder(spool.folder) if deidentifies else None
        self._heard: dict[str, float] = {}  # of a series: when its last image came
        self._quiet: dict[tuple[int, int], float] = {}
        self._waits = _Waits()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._room = (0.0, True)
        self._next_housekeeping = 0.0
        self.beats: dict[str, float] = {}
        self.intake = Intake(spool, self._has_room, self._on_arrival)
        self.receiver = Receiver(settings.receiver, self.intake)
        self._named = {each.name: each for each in self._every_destination()}

    def start(self) -> None:
        """Open the port and start the loops; returns at once."""
        quiet_libraries()
        for rule in self.rules:
            if not (rule.destinations() or self.settings.destinations):
                raise ConfigError(f"rule {rule.name}: expected a destination, got none")
        self.receiver.start()
        loops: dict[str, Callable[[], bool]] = {"judge": self.judge, "answer": self.answer}
        for name in self._named:
            loops[f"send to {name}"] = lambda name=name: self.send(name)  # type: ignore[misc]
        for name, step in loops.items():
            self.beats[name] = time.monotonic()
            thread = threading.Thread(target=self._loop, args=(name, step), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, timeout_s: float = 30.0) -> None:
        """Take no more, and let each loop end its step."""
        self._stop.set()
        self.receiver.stop()
        end = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0.0))

    def stuck(self, longer_than_s: float) -> list[str]:
        """Return the names of the loops that have made no step for so long."""
        now = time.monotonic()
        longest = {"answer": self._gateway.timeout_s}
        return [
            name
            for name, beat in self.beats.items()
            if now - beat > longer_than_s + longest.get(name, 0.0)
        ]

    # The steps; each returns whether there may be more to do at once.

    def judge(self) -> bool:
        """Make tasks of the series that no image has come for."""
        now = time.monotonic()
        for series in self.spool.open_series():
            heard = self._heard.setdefault(series.uid, now)  # after a start: one more quiet time
            if now - heard >= self._quiet_s(series):
                self._settle(series)
        if now >= self._next_housekeeping:
            self._next_housekeeping = now + 60.0
            self._housekeeping()
        return False

    def answer(self) -> bool:
        """Ask the model about the oldest task whose time has come."""
        for number, attempts in self.spool.waiting():
            if self._waits.may_try(("task", number), attempts):
                task = self.spool.task(number)
                if task is not None:
                    self._answer(task)
                return True
        return False

    def send(self, name: str) -> bool:
        """Send what waits for one destination."""
        due = [
            each
            for each in self.spool.deliveries(name)
            if self._waits.may_try((each.sop_uid, name), each.attempts)
        ][:_AT_A_TIME]
        if not due:
            return False
        outcomes = self._sender.send(self._named[name], due)
        give_up_s = self.settings.keep.held_h * _HOUR
        for each, outcome in zip(due, outcomes, strict=True):
            state, reason = outcome.state, outcome.reason
            if state == "waiting":
                self._waits.put_off((each.sop_uid, name), each.attempts + 1)
                if self.spool.now() - each.created > give_up_s:
                    state = "held"
            self.spool.delivered(each, state, reason)
            if state == "held":
                logger.error("task %d: a result is held: %s", each.task, reason)
        first = outcomes[0]
        if first.state == "waiting" and due[0].attempts == 0:
            logger.warning("results wait for %s: %s", name, first.reason)
        return len(due) == _AT_A_TIME

    # Inside.

    def _loop(self, name: str, step: Callable[[], bool]) -> None:
        failures = 0
        while not self._stop.is_set():
            more = False
            try:
                more = step()
                failures = 0
            except Exception as error:  # a full disk, a bug: the next step may be better
                failures += 1
                if failures & (failures - 1) == 0:  # the first, second, fourth, … of a row
                    text = str(error) if isinstance(error, OSError | sqlite3.Error) else ""
                    logger.error("%s: step failed (%s %s)", name, type(error).__name__, text)
            self.beats[name] = time.monotonic()
            if not more:
                wait = self.settings.tick_s * min(2**failures, 64)
                self._stop.wait(wait)

    def _settle(self, series: Series) -> None:
        images = self.spool.images(series.id)
        study = self._study(series, images)
        verdicts = judge(self.rules, images, series.calling, self._count, study)
        wanted = [Wanted(each.rule, each.images, each.reason, each.series) for each in verdicts]
        if not self.spool.settle(series, wanted):
            return
        self._heard.pop(series.uid, None)
        self._quiet.pop((series.id, series.arrivals), None)
        if not verdicts:
            logger.info("series %d: %d images, no rule is for them", series.id, len(images))
        for each in verdicts:
            said = f"not complete: {each.reason}" if each.reason else "complete"
            logger.info("series %d, rule %s: %d images, %s", series.id, each.rule,
                        len(each.images), said)  # fmt: skip

    def _study(self, series: Series, images: Sequence[Image]) -> list[StudySeries]:
        """Return the series of its study, where rules look at several."""
        if not images or not any(rule.inputs for rule in self.rules):
            return []
        return [
            StudySeries(
                each.id, each.calling, self.spool.images(each.id), is_open and each.id != series.id
            )
            for each, is_open in self.spool.study(images[0].facts.study_uid)
        ]

    def _quiet_s(self, series: Series) -> float:
        key = (series.id, series.arrivals)
        if key not in self._quiet:
            self._quiet.pop((series.id, series.arrivals - 1), None)
            self._quiet[key] = quiet_s(self.rules, self.spool.images(series.id), series.calling)
        return self._quiet[key]

    def _answer(self, task: Task) -> None:
        rule = self.rules.by_name.get(task.rule)
        if rule is None:
            self.spool.change(task.id, "held", "its rule is no longer in the file of rules")
            return
        began, status = time.monotonic(), "OK"
        images = [each for each in self.spool.task_images(task) if each.path is not None]
        try:
            if len(images) != len(task.images) or not all(_is_there(each) for each in images):
                raise FileNotFoundError
            with tracing.work("dicom.task", model=rule.model, images=len(images)):
                made, provenance = self._make(task, rule, images, began)
        except FileNotFoundError:
            self._hold(task, "an image has vanished from the state folder; send the series again")
            status, made, provenance = "NO_FILE", 0, (rule.version or "", "")
        except MedserveError as error:
            self._failed(task, rule, error)
            status, made, provenance = error.code, 0, (rule.version or "", "")
        self._write_audit(task, rule, status, made, provenance, time.monotonic() - began)

    def _make(
        self, task: Task, rule: Rule, images: Sequence[Image], began: float
    ) -> tuple[int, tuple[str, str]]:
        """Ask the model and keep the results; returns their bytes, and what answered."""
        files: Sequence[Path] = [each.path for each in images if each.path is not None]
        inputs = [rule.input_of(each.facts) or "" for each in images] if rule.inputs else []
        with tempfile.TemporaryDirectory(dir=self.spool.receiving) as name:
            folder = Path(name)
            if rule.deidentify:
                files = self._copies(task, rule, files, folder)
            answer = self._gateway.ask(rule, files, inputs)
            with tracing.work("dicom.objects"):
                objects = make_objects(task, rule, answer, files, folder)
            made = sum(each.file.stat().st_size for each in objects)
            named = rule.destinations() or self.settings.destinations
            if self.spool.finish(task, objects, [each.name for each in named]):
                logger.info("task %d (series %d, rule %s): answered with %d objects in %.1f s",
                            task.id, task.series, task.rule, len(objects),
                            time.monotonic() - began)  # fmt: skip
        return made, (answer.provenance.version, answer.provenance.archive_digest)

    def _copies(
        self, task: Task, rule: Rule, files: Sequence[Path], folder: Path
    ) -> Sequence[Path]:
        """Write de-identified copies of images, about which the model is asked."""
        if rule.burned_in:
            logger.warning("task %d (rule %s): de-identified whatever its pixels may show",
                           task.id, rule.name)  # fmt: skip
        assert self._pseudonyms is not None  # a rule of this node de-identifies
        copies = [folder / f"{place:05d}" for place in range(len(files))]
        for file, copy in zip(files, copies, strict=True):
            copy_without_identity(file, copy, self._pseudonyms, may_show_text=rule.burned_in)
        return copies

    def _failed(self, task: Task, rule: Rule, error: MedserveError) -> None:
        passing = isinstance(error, _PASSING) or (
            isinstance(error, ServerFailedError) and task.attempts + 1 < _FAILURES
        )
        reason = f"{error.code}: {error.message}"
        if not passing or self.spool.now() - task.created > rule.give_up_h * _HOUR:
            self._hold(task, reason)
            return
        if task.attempts == 0:
            logger.warning("task %d (series %d, rule %s) waits: %s", task.id, task.series,
                           task.rule, reason)  # fmt: skip
        self._waits.put_off(("task", task.id), task.attempts + 1)
        self.spool.change(task.id, "waiting", reason, tried=True)

    def _hold(self, task: Task, reason: str) -> None:
        logger.error("task %d (series %d, rule %s) is held: %s", task.id, task.series, task.rule,
                     reason)  # fmt: skip
        self.spool.change(task.id, "held", reason, tried=True)

    def _write_audit(
        self, task: Task, rule: Rule, status: str, made: int, of: tuple[str, str], took_s: float
    ) -> None:
        if self._audit is None:
            return
        version, digest = of
        self._audit.write(
            AuditRecord(
                who=task.rule,
                face="dicom",
                request_id=f"task {task.id}",
                model=rule.model,
                version=version,
                archive=digest,
                request_bytes=len(task.images),
                response_bytes=made,
                status=status,
                took_ms=round(took_s * 1000, 1),
            )
        )

    def _housekeeping(self) -> None:
        keep, now = self.settings.keep, self.spool.now()
        for task in self.spool.tasks("incomplete"):
            rule = self.rules.by_name.get(task.rule)
            if rule is None or now - task.created > rule.give_up_h * _HOUR:
                self._hold(task, f"still not complete: {task.reason}")
            elif rule.query is not None:
                self.spool.look_again(task.series)
        self.spool.purge(keep.done_h * _HOUR, keep.held_h * _HOUR, keep.remember_days * 24 * _HOUR)
        self.spool.sweep(24 * _HOUR)  # a large object over a slow line takes its time

    def _has_room(self) -> bool:
        """Tell whether one more object may be taken; looked up once a second."""
        looked, has_room = self._room
        now = time.monotonic()
        if now - looked > 1.0:
            room, found = self.settings.room, self.spool.counts()
            disk = shutil.disk_usage(self.spool.folder)
            has_room = (
                disk.free >= room.free_share * disk.total
                and found["bytes"]["images"] <= room.most_bytes
                and found["task"]["waiting"] <= room.most_waiting
            )
            self._room = (now, has_room)
        return has_room

    def _on_arrival(self, series_uid: str) -> None:
        self._heard[series_uid] = time.monotonic()

    def _count(self, archive: Destination, study: str, series: str) -> int | None:
        title = self.settings.receiver.ae_title
        return image_count(title, archive, study, series, self._sender.tls)

    def _every_destination(self) -> list[Destination]:
        of_rules = [each for rule in self.rules for each in rule.destinations()]
        waiting = [Destination(name) for name in self.spool.destinations()]
        named = {each.name for each in (*of_rules, *self.settings.destinations)}
        if gone := [each.name for each in waiting if each.name not in named]:
            logger.warning("results wait for %d destinations that are no longer named", len(gone))
        return [*of_rules, *self.settings.destinations]


def _is_there(image: Image) -> bool:
    return image.path is not None and image.path.exists()
