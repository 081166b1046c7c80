"""The table of a node: its rows, and what commands and pages read of it beside the node itself."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from medserve.dicom.disk import remove

__all__ = [
    "DEIDENTIFIED",
    "counts",
    "drop_bytes",
    "forget",
    "open_database",
    "queue",
    "transaction",
    "undelivered",
]

DEIDENTIFIED = "deidentified "  # how kinds begin that are not shown beside their originals
_SCHEMA = """
CREATE TABLE IF NOT EXISTS series (
    id INTEGER PRIMARY KEY, uid TEXT NOT NULL UNIQUE, calling TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('open', 'settled')),
    arrived REAL NOT NULL, arrivals INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS image (
    sop_uid TEXT PRIMARY KEY, series INTEGER NOT NULL REFERENCES series (id),
    digest TEXT NOT NULL, bytes INTEGER NOT NULL, file TEXT, facts TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS image_series ON image (series);
CREATE INDEX IF NOT EXISTS image_stored ON image (bytes) WHERE file IS NOT NULL;
CREATE TABLE IF NOT EXISTS task (
    id INTEGER PRIMARY KEY, series INTEGER NOT NULL REFERENCES series (id), rule TEXT NOT NULL,
    content TEXT NOT NULL, images TEXT NOT NULL,
    state TEXT NOT NULL
        CHECK (state IN ('incomplete', 'waiting', 'held', 'answered', 'replaced')),
    reason TEXT NOT NULL DEFAULT '', attempts INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL, changed REAL NOT NULL, UNIQUE (series, rule, content));
CREATE INDEX IF NOT EXISTS task_state ON task (state);
CREATE TABLE IF NOT EXISTS part (
    task INTEGER NOT NULL REFERENCES task (id), series INTEGER NOT NULL REFERENCES series (id),
    PRIMARY KEY (task, series));
CREATE INDEX IF NOT EXISTS part_series ON part (series);
CREATE VIEW IF NOT EXISTS needs (id, series, state, changed) AS
    SELECT id, series, state, changed FROM task
    UNION ALL SELECT id, part.series, state, changed FROM part JOIN task ON task.id = part.task;
CREATE TABLE IF NOT EXISTS object (
    sop_uid TEXT PRIMARY KEY, task INTEGER NOT NULL REFERENCES task (id), kind TEXT NOT NULL,
    sop_class TEXT NOT NULL, series_uid TEXT NOT NULL, digest TEXT NOT NULL, file TEXT,
    made REAL NOT NULL);
CREATE INDEX IF NOT EXISTS object_series ON object (series_uid);
CREATE TABLE IF NOT EXISTS delivery (
    object TEXT NOT NULL REFERENCES object (sop_uid), destination TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'sent', 'held')),
    reason TEXT NOT NULL DEFAULT '', attempts INTEGER NOT NULL DEFAULT 0,
    changed REAL NOT NULL, PRIMARY KEY (object, destination));
CREATE INDEX IF NOT EXISTS delivery_state ON delivery (state);
CREATE TABLE IF NOT EXISTS count (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS image_study ON image (json_extract(facts, '$.study_uid'));
CREATE VIEW IF NOT EXISTS shown (study, series, sop_uid, file) AS
    SELECT json_extract(facts, '$.study_uid'), json_extract(facts, '$.series_uid'), sop_uid, file
    FROM image WHERE file IS NOT NULL
    UNION ALL SELECT (SELECT json_extract(facts, '$.study_uid') FROM image
        WHERE image.series = task.series LIMIT 1), series_uid, sop_uid, file
    FROM object JOIN task ON task.id = task
    WHERE file IS NOT NULL AND kind NOT LIKE 'deidentified %';
"""
_DATABASE = "node.sqlite"
_BUSY_S = 30.0
_TASKS = "(SELECT id FROM task WHERE series = ?)"
_FILES = """
SELECT file FROM image WHERE series = ? AND file IS NOT NULL
UNION SELECT file FROM object WHERE file IS NOT NULL
    AND task IN (SELECT id FROM task WHERE series = ?)
"""


def open_database(folder: Path) -> sqlite3.Connection:
    """Open the table of a state folder; commits are on the disk when they return."""
    connection = sqlite3.connect(
        folder / _DATABASE, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
    )
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.executescript(_SCHEMA)
    return connection


def counts(database: sqlite3.Connection) -> dict[str, Counter[str]]:
    """Return how many series, tasks, deliveries and events there are, by state or name."""
    found = {}
    for table in ("series", "task", "delivery"):
        rows = database.execute(f"SELECT state, count(*) AS n FROM {table} GROUP BY state")
        found[table] = Counter({row["state"]: row["n"] for row in rows})
    rows = database.execute("SELECT name, value FROM count")
    found["count"] = Counter({row["name"]: row["value"] for row in rows})
    stored = database.execute("SELECT coalesce(sum(bytes), 0) AS n FROM image "
                              "WHERE file IS NOT NULL").fetchone()  # fmt: skip
    found["bytes"] = Counter({"images": stored["n"]})
    return found


def queue(database: sqlite3.Connection, *, everything: bool = False) -> list[sqlite3.Row]:
    """Return the tasks that are not done, or all of them, the oldest first; no patient is named."""
    hidden = "" if everything else "WHERE state NOT IN ('answered', 'replaced')"
    return database.execute(
        "SELECT id, series, rule, json_array_length(images) AS images, state, attempts, changed, "
        f"reason FROM task {hidden} ORDER BY id"
    ).fetchall()


def undelivered(database: sqlite3.Connection) -> list[sqlite3.Row]:
    """Return what is not sent, by task, destination and state."""
    return database.execute(
        "SELECT object.task AS task, destination, delivery.state AS state, count(*) AS objects, "
        "max(reason) AS reason FROM delivery JOIN object ON object = sop_uid "
        "WHERE delivery.state <> 'sent' GROUP BY task, destination, delivery.state"
    ).fetchall()


def drop_bytes(database: sqlite3.Connection, folder: Path, series: int) -> None:
    """Delete images and results of a series from the disk; their rows say what there was."""
    with transaction(database):
        files = [row["file"] for row in database.execute(_FILES, (series, series))]
        database.execute("UPDATE image SET file = NULL WHERE series = ?", (series,))
        database.execute(f"UPDATE object SET file = NULL WHERE task IN {_TASKS}", (series,))
    for file in files:  # after the commit: a row never names a file that is gone
        remove(folder / file)


def forget(database: sqlite3.Connection, folder: Path, series: int) -> None:
    """Delete everything that is known of a series; sent again, it counts as new."""
    drop_bytes(database, folder, series)
    with transaction(database):
        of_series = f"(SELECT sop_uid FROM object WHERE task IN {_TASKS})"
        database.execute(f"DELETE FROM delivery WHERE object IN {of_series}", (series,))
        database.execute(f"DELETE FROM object WHERE task IN {_TASKS}", (series,))
        database.execute(f"DELETE FROM part WHERE series = ? OR task IN {_TASKS}", (series,) * 2)
        for table, column in (("task", "series"), ("image", "series"), ("series", "id")):
            database.execute(f"DELETE FROM {table} WHERE {column} = ?", (series,))


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Commit what is done inside, or nothing of it."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # a full disk rolls back by itself
            database.execute("ROLLBACK")
        raise
