"""The durable queue of a node: a folder of objects, and a table that says what became of each.

The contract that it keeps, whatever kills the process:

1. `receive` returns after the object is on the disk and its row is committed. What has been
   acknowledged is never lost.
2. A series of images that is complete has one task for each rule, whatever order, number and time
   its images came in, and one set of results: their bytes are on the disk before they are sent for
   the first time, and the same bytes are sent again.
3. Images that come late make a new task for all images of the series; a task that was not answered
   by then is replaced.

Rows hold identifiers of studies and the few elements that rules look at. They lie in a folder that
is closed to other users, and in no log.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from medserve.dicom.disk import IMAGES, move, refuse_network_disk, remove, sync
from medserve.dicom.headers import Facts
from medserve.dicom.table import counts, drop_bytes, forget, open_database, transaction
from medserve.errors import ConfigError

__all__ = [
    "Delivery",
    "Image",
    "MadeObject",
    "Receipt",
    "Series",
    "Spool",
    "Stored",
    "Task",
    "Wanted",
    "content_of",
]

T = TypeVar("T")

_LOCK, _RECEIVING, _RESULTS = "lock", "receiving", "results"
_LEVELS = ("study", "series", "sop_uid")  # columns of the view `shown`


class Receipt(enum.Enum):
    """What became of an object that was sent to the node."""

    NEW = "new"
    SAME = "same"  # it was there, with the same bytes
    OTHER_BYTES = "other-bytes"  # another object has this UID; the first one is kept


@dataclass(frozen=True)
class Series:
    """A series that images have come for since it was last looked at.

    Attributes:
        arrivals: How many new images have ever come; tells whether one came meanwhile.
    """

    id: int
    uid: str
    calling: str
    arrivals: int
    arrived: float


@dataclass(frozen=True)
class Image:
    """A stored image; `path` is None once its bytes were deleted."""

    facts: Facts
    path: Path | None


@dataclass(frozen=True)
class Stored:
    """A group of objects whose bytes are here: a study, a series or a single one.

    Attributes:
        path: Of one of its objects, an image where there is one.
        series: How many series it has, or is of.
        objects: How many objects.
    """

    path: Path
    series: int
    objects: int


@dataclass(frozen=True)
class Wanted:
    """What a rule says of images that it is for.

    Attributes:
        images: Their SOP Instance UIDs.
        reason: Why they are not complete; "" where they are.
        series: Of which they are: the task belongs to the first one and needs the others, too.
            Empty for the series that is settled.
    """

    rule: str
    images: tuple[str, ...]
    reason: str
    series: tuple[int, ...] = ()


@dataclass(frozen=True)
class Task:
    """One series, or several series of a study, for one rule."""

    id: int
    series: int
    rule: str
    content: str
    images: tuple[str, ...]
    state: str
    reason: str
    attempts: int
    created: float


@dataclass(frozen=True)
class MadeObject:
    """An object that was made for a task, as it is sent.

    Attributes:
        file: With its bytes, on the disk of the state folder; it is moved away.
    """

    sop_uid: str
    sop_class: str
    series_uid: str
    kind: str
    file: Path


@dataclass(frozen=True)
class Delivery:
    """An object on its way to one destination."""

    sop_uid: str
    sop_class: str
    destination: str
    path: Path | None
    digest: str
    task: int
    attempts: int
    created: float


def content_of(images: Sequence[str]) -> str:
    """Return the digest of a set of images, given by their SOP Instance UIDs."""
    return sha256("\n".join(sorted(images)).encode()).hexdigest()


class Spool:
    """The queue in one folder; safe to share between threads, closed to a second process.

    Args:
        folder: Made with mode 0700 where it is missing.
        now: Wall clock in seconds; it only decides how long something is kept. Where it was set
            back since the last row was written, time goes on from that row.

    Raises:
        ConfigError: the folder cannot be used, lies on a network disk, or another node uses it.
    """

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._clock, self._ahead_s = now, 0.0
        self._strays: dict[str, float] = {}  # in `receiving`: when each was first seen
        self._guard = threading.RLock()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            for name in (_RECEIVING, IMAGES, _RESULTS):
                (folder / name).mkdir(mode=0o700, exist_ok=True)
            refuse_network_disk(folder)
            self._lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"state folder {folder}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ConfigError(f"state folder {folder}: another node uses it") from None
        try:
            self._db = open_database(folder)
            self._recover()
            self._ahead_s = max(0.0, self._latest() - now())
        except sqlite3.Error as error:
            os.close(self._lock)
            raise ConfigError(f"state folder {folder}: {error}") from error

    @property
    def receiving(self) -> Path:
        """The folder for objects that are on their way in; it lies on the same disk."""
        return self.folder / _RECEIVING

    def now(self) -> float:
        """Return the time by which ages are counted."""
        return self._clock() + self._ahead_s

    def close(self) -> None:
        """Let go of the folder."""
        with self._guard:
            self._db.close()
            os.close(self._lock)

    # What comes in.

    def receive(self, file: Path, facts: Facts, calling: str) -> Receipt:
        """Keep an object; it is safe on the disk when this returns.

        Args:
            file: The whole object, in `receiving`; it is moved away.
            facts: What its header says.
            calling: The AE title of its sender.

        Raises:
            OSError: the disk is full or broken; nothing is kept.
        """
        digest, size = sync(file)
        place = _place(facts)
        with self._guard:
            known = self._one("SELECT digest, file FROM image WHERE sop_uid = ?", facts.sop_uid)
            if known is not None and known["digest"] != digest:
                self.count("other_bytes")
                return Receipt.OTHER_BYTES
            if known is not None and known["file"] is not None:
                return Receipt.SAME
            target = self.folder / place
            move(file, target)
            with transaction(self._db):
                series = self._open_series(facts, calling)
                self._db.execute(
                    "INSERT OR REPLACE INTO image (sop_uid, series, digest, bytes, file, facts) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (facts.sop_uid, series, digest, size, place, _to_json(facts)),
                )
            return Receipt.NEW

    def is_own(self, facts: Facts) -> bool:
        """Tell whether an object is a result of this node that has come back."""
        found = self._one("SELECT 1 FROM object WHERE series_uid = ? LIMIT 1", facts.series_uid)
        return found is not None

    def count(self, name: str) -> None:
        """Count one event, for good."""
        with self._guard:
            self._db.execute(
                "INSERT INTO count VALUES (?, 1) ON CONFLICT DO UPDATE SET value = value + 1",
                (name,),
            )

    # From images to tasks.

    def open_series(self) -> list[Series]:
        """Return the series that have to be looked at."""
        rows = self._all("SELECT id, uid, calling, arrivals, arrived FROM series "
                         "WHERE state = 'open' ORDER BY id")  # fmt: skip
        return [Series(row["id"], row["uid"], row["calling"], row["arrivals"], row["arrived"])
                for row in rows]  # fmt: skip

    def images(self, series: int) -> list[Image]:
        """Return the images of a series, also those whose bytes were deleted."""
        rows = self._all("SELECT file, facts FROM image WHERE series = ? ORDER BY sop_uid", series)
        return [self._image(row) for row in rows]

    def study(self, study_uid: str) -> list[tuple[Series, bool]]:
        """Return all series of a study, and whether each has still to be looked at."""
        rows = self._all(
            "SELECT id, uid, calling, state, arrivals, arrived FROM series WHERE id IN "
            "(SELECT series FROM image WHERE json_extract(facts, '$.study_uid') = ?) ORDER BY id",
            study_uid,
        )
        return [
            (Series(row["id"], row["uid"], row["calling"], row["arrivals"], row["arrived"]),
             row["state"] == "open")
            for row in rows
        ]  # fmt: skip

    def settle(self, series: Series, wanted: Sequence[Wanted]) -> bool:
        """Make the tasks of a series, unless an image has come since it was read.

        Args:
            series: As `open_series` gave it.
            wanted: What the rules say of its images.

        Returns:
            False where an image has come meanwhile: it has to be looked at again.
        """
        with self._guard, transaction(self._db):
            now = self._one("SELECT arrivals FROM series WHERE id = ?", series.id)
            if now is None or now["arrivals"] != series.arrivals:
                return False
            for each in wanted:
                self._want(each, each.series or (series.id,))
            self._db.execute("UPDATE series SET state = 'settled' WHERE id = ?", (series.id,))
        return True

    def look_again(self, series: int) -> None:
        """Let a series be judged once more, though no image has come."""
        with self._guard:
            self._db.execute("UPDATE series SET state = 'open' WHERE id = ?", (series,))

    def tasks(self, *states: str) -> list[Task]:
        """Return the tasks in these states, the oldest first."""
        marks = ", ".join("?" * len(states))
        rows = self._all(f"SELECT * FROM task WHERE state IN ({marks}) ORDER BY id", *states)
        return [_task(row) for row in rows]

    def waiting(self) -> list[tuple[int, int]]:
        """Return number and attempts of each task that waits for the model, the oldest first."""
        rows = self._all("SELECT id, attempts FROM task WHERE state = 'waiting' ORDER BY id")
        return [(row["id"], row["attempts"]) for row in rows]

    def task(self, number: int) -> Task | None:
        """Return a task; None where it was forgotten meanwhile."""
        row = self._one("SELECT * FROM task WHERE id = ?", number)
        return None if row is None else _task(row)

    def task_images(self, task: Task) -> list[Image]:
        """Return the images of a task, in the order of their identifiers."""
        rows = self._all(
            "SELECT file, facts FROM image WHERE series = ? "
            "OR series IN (SELECT series FROM part WHERE task = ?)",
            task.series,
            task.id,
        )
        by_uid = {image.facts.sop_uid: image for image in map(self._image, rows)}
        return [by_uid[uid] for uid in task.images if uid in by_uid]

    def change(self, task: int, state: str, reason: str, *, tried: bool = False) -> None:
        """Put a task into another state; `tried` counts one more attempt."""
        with self._guard:
            self._db.execute(
                "UPDATE task SET state = ?, reason = ?, attempts = attempts + ?, changed = ? "
                "WHERE id = ? AND state NOT IN ('answered', 'replaced')",
                (state, reason, int(tried), self.now(), task),
            )

    # From tasks to results.

    def finish(
        self, task: Task, objects: Sequence[MadeObject], destinations: Sequence[str]
    ) -> bool:
        """Keep the results of a task; from now on these bytes are sent, and no others.

        A de-identified copy of an image that an earlier task has made is the same object.

        Returns:
            False where late images have replaced the task meanwhile: its results are dropped.

        Raises:
            OSError: the disk is full; nothing is kept, and the task waits as before.
        """
        kept = [_keep(self.folder, made) for made in objects]
        now = self.now()
        with self._guard, transaction(self._db):
            state = self._one("SELECT state FROM task WHERE id = ?", task.id)
            if state is None or state["state"] != "waiting":
                for place, _ in kept:
                    if self._one("SELECT 1 FROM object WHERE file = ?", place) is None:
                        remove(self.folder / place)
                return False
            for made, (place, digest) in zip(objects, kept, strict=True):
                self._db.execute(
                    "INSERT INTO object VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (sop_uid) "
                    "DO UPDATE SET digest = excluded.digest, file = excluded.file",
                    (made.sop_uid, task.id, made.kind, made.sop_class, made.series_uid, digest,
                     place, now),
                )  # fmt: skip
                for destination in destinations:
                    self._db.execute(
                        "INSERT OR IGNORE INTO delivery (object, destination, state, changed) "
                        "VALUES (?, ?, 'waiting', ?)",
                        (made.sop_uid, destination, now),
                    )
            self._db.execute(
                "UPDATE task SET state = 'answered', reason = '', changed = ? WHERE id = ?",
                (now, task.id),
            )
        return True

    def deliveries(self, destination: str) -> list[Delivery]:
        """Return what has still to be sent there, the oldest first."""
        rows = self._all(
            "SELECT sop_uid, sop_class, destination, file, digest, task, delivery.attempts, made "
            "FROM delivery JOIN object ON object = sop_uid WHERE delivery.state = 'waiting' "
            "AND destination = ? ORDER BY made, kind",
            destination,
        )
        return [
            Delivery(row["sop_uid"], row["sop_class"], row["destination"], self._path(row["file"]),
                     row["digest"], row["task"], row["attempts"], row["made"])
            for row in rows
        ]  # fmt: skip

    def delivered(self, delivery: Delivery, state: str, reason: str = "") -> None:
        """Say what became of an attempt to send: `sent`, `waiting` or `held`."""
        with self._guard:
            self._db.execute(
                "UPDATE delivery SET state = ?, reason = ?, attempts = attempts + 1, changed = ? "
                "WHERE object = ? AND destination = ?",
                (state, reason, self.now(), delivery.sop_uid, delivery.destination),
            )

    def destinations(self) -> list[str]:
        """Return the destinations that something has still to be sent to."""
        rows = self._all("SELECT DISTINCT destination FROM delivery WHERE state = 'waiting'")
        return [row["destination"] for row in rows]

    def counts(self) -> dict[str, Counter[str]]:
        """Return how many series, tasks, deliveries and stored bytes there are, by state."""
        return counts(self._db)

    # What is shown of it.

    def read(self, look: Callable[[sqlite3.Connection], T]) -> T:
        """Return what a function reads of the table."""
        with self._guard:
            return look(self._db)

    def stored(self, level: str, within: Mapping[str, str]) -> list[Stored]:
        """Return the studies, series or objects whose bytes are here, images and results.

        Args:
            level: `study`, `series` or `sop_uid`.
            within: Identifiers by level that narrow it.
        """
        assert {level, *within} <= set(_LEVELS)
        conditions = " AND ".join(f"{name} = ?" for name in within) or "TRUE"
        rows = self._all(
            "SELECT min(file) AS file, count(DISTINCT series) AS series, count(*) AS objects "
            f"FROM shown WHERE {conditions} GROUP BY {level} ORDER BY {level}",
            *within.values(),
        )
        return [Stored(self.folder / row["file"], row["series"], row["objects"]) for row in rows]

    # What time takes away.

    def purge(self, keep_s: float, held_s: float, remember_s: float) -> int:
        """Delete what is no longer needed; returns how many series lost their images.

        Args:
            keep_s: How long images and results stay after the last step was done.
            held_s: How long they stay where a step is held or the images are incomplete.
            remember_s: How long rows without any bytes stay, so that nothing is answered twice.
        """
        now = self.now()
        done = self._all(
            "SELECT id, uid FROM series WHERE state = 'settled' AND EXISTS (SELECT 1 FROM image "
            "WHERE series = series.id AND file IS NOT NULL) "
            f"AND ({_LAST_STEP}) < CASE WHEN {_IS_HELD} THEN ? ELSE ? END AND NOT {_IS_BUSY}",
            now - held_s,
            now - keep_s,
        )
        for row in done:
            self.drop_bytes(row["id"])
        old = self._all(
            "SELECT id FROM series WHERE state = 'settled' AND NOT EXISTS (SELECT 1 FROM image "
            f"WHERE series = series.id AND file IS NOT NULL) AND ({_LAST_STEP}) < ? "
            f"AND NOT {_IS_BUSY}",
            now - remember_s,
        )
        for row in old:
            self.forget(row["id"])
        return len(done)

    def forget(self, series: int) -> None:
        """Delete everything that is known of a series; sent again, it counts as new."""
        with self._guard:
            forget(self._db, self.folder, series)

    def drop_bytes(self, series: int) -> None:
        """Delete images and results of a series from the disk; their rows say what there was."""
        with self._guard:
            drop_bytes(self._db, self.folder, series)

    def sweep(self, older_than_s: float) -> None:
        """Delete what broken associations have left behind in `receiving`.

        Times of the file system are not asked: the clock may have been set since.
        """
        now = self.now()
        self._strays = {
            path.name: self._strays.get(path.name, now) for path in self.receiving.iterdir()
        }
        for name, seen in self._strays.items():
            if now - seen > older_than_s:
                with contextlib.suppress(OSError):
                    (self.receiving / name).unlink()

    # Inside.

    def _recover(self) -> None:
        """Bring folder and table together after a kill."""
        shutil.rmtree(self.receiving)
        self.receiving.mkdir(mode=0o700)
        rows = self._all("SELECT file FROM image UNION SELECT file FROM object")
        known = {row["file"] for row in rows}
        for top in (IMAGES, _RESULTS):
            for path in sorted((self.folder / top).rglob("*"), reverse=True):
                if path.is_dir():
                    with contextlib.suppress(OSError):  # it is not empty
                        path.rmdir()
                elif str(path.relative_to(self.folder)) not in known:
                    path.unlink()  # nobody was told that it is here: it was not committed

    def _latest(self) -> float:
        """Return the time of the newest row; 0 without any."""
        row = self._one(
            "SELECT max(coalesce((SELECT max(arrived) FROM series), 0), "
            "coalesce((SELECT max(changed) FROM task), 0), "
            "coalesce((SELECT max(changed) FROM delivery), 0)) AS latest"
        )
        return 0.0 if row is None else float(row["latest"])

    def _open_series(self, facts: Facts, calling: str) -> int:
        row = self._db.execute(
            "INSERT INTO series (uid, calling, state, arrived, arrivals) "
            "VALUES (?, ?, 'open', ?, 1) ON CONFLICT (uid) DO UPDATE SET state = 'open', "
            "arrived = excluded.arrived, arrivals = arrivals + 1 RETURNING id",
            (facts.series_uid, calling, self.now()),
        ).fetchone()
        number: int = row["id"]
        return number

    def _want(self, wanted: Wanted, series: tuple[int, ...]) -> None:
        """Insert a task, or look again at one that was incomplete; its elder siblings end."""
        content, now = content_of(wanted.images), self.now()
        first, *others = series
        self._db.execute(
            "UPDATE task SET state = 'replaced', changed = ? WHERE series = ? AND rule = ? "
            "AND content <> ? AND state IN ('incomplete', 'waiting', 'held')",
            (now, first, wanted.rule, content),
        )
        self._db.execute(
            "INSERT INTO task (series, rule, content, images, state, reason, created, changed) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET state = excluded.state, "
            "reason = excluded.reason, changed = excluded.changed "
            "WHERE task.state IN ('incomplete', 'replaced')",
            (first, wanted.rule, content, _to_json(wanted.images),
             "incomplete" if wanted.reason else "waiting", wanted.reason, now, now),
        )  # fmt: skip
        for each in others:
            self._db.execute(
                "INSERT OR IGNORE INTO part SELECT id, ? FROM task "
                "WHERE series = ? AND rule = ? AND content = ?",
                (each, first, wanted.rule, content),
            )

    def _image(self, row: sqlite3.Row) -> Image:
        return Image(msgspec.json.decode(row["facts"], type=Facts), self._path(row["file"]))

    def _path(self, file: str | None) -> Path | None:
        return None if file is None else self.folder / file

    def _one(self, query: str, *values: Any) -> sqlite3.Row | None:
        with self._guard:
            row: sqlite3.Row | None = self._db.execute(query, values).fetchone()
            return row

    def _all(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._guard:
            return self._db.execute(query, values).fetchall()


_LAST_STEP = """
SELECT max(arrived, coalesce((SELECT max(changed) FROM needs WHERE series = series.id), 0),
    coalesce((SELECT max(delivery.changed) FROM delivery JOIN object ON object = sop_uid
        JOIN needs ON task = needs.id WHERE needs.series = series.id), 0))
"""
_IS_HELD = """
(EXISTS (SELECT 1 FROM needs WHERE series = series.id AND state IN ('held', 'incomplete'))
OR EXISTS (SELECT 1 FROM delivery JOIN object ON object = sop_uid JOIN needs ON task = needs.id
    WHERE needs.series = series.id AND delivery.state = 'held'))
"""
_IS_BUSY = """
(EXISTS (SELECT 1 FROM needs WHERE series = series.id AND state = 'waiting')
OR EXISTS (SELECT 1 FROM delivery JOIN object ON object = sop_uid JOIN needs ON task = needs.id
    WHERE needs.series = series.id AND delivery.state = 'waiting'))
"""


def _task(row: sqlite3.Row) -> Task:
    images = tuple(msgspec.json.decode(row["images"], type=list[str]))
    return Task(row["id"], row["series"], row["rule"], row["content"], images, row["state"],
                row["reason"], row["attempts"], row["created"])  # fmt: skip


def _to_json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _place(facts: Facts) -> str:
    """Return where an image lies: names say nothing of it."""
    series, image = (sha256(uid.encode()).hexdigest()[:32]
                     for uid in (facts.series_uid, facts.sop_uid))  # fmt: skip
    return f"{IMAGES}/{series}/{image}.dcm"


def _keep(folder: Path, made: MadeObject) -> tuple[str, str]:
    """Move an object to where results lie, through to the disk; returns its place and digest."""
    place = f"{_RESULTS}/{sha256(made.sop_uid.encode()).hexdigest()[:32]}.dcm"
    digest, _ = sync(made.file)
    move(made.file, folder / place)
    return place, digest
