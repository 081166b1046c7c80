"""Tests in several processes (`pytest --numprocesses 2 --dist loadgroup`): groups stay together.

pytest-xdist does not see the tests itself, and gives them out by their names. So each of its
workers writes down the groups that `tests.tiers` made, and the first process reads them.
"""

from __future__ import annotations

import json
import os
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.tiers import COUNTS, GROUP

_FILE = "groups_file"
_NOT_RUN = "tests_not_run"


class Grouped(LoadScopeScheduling):  # type: ignore[misc]
    """Gives out a whole group, or a single test that has none, in the order of the collection."""

    @cached_property
    def groups(self) -> dict[str, str]:
        """Name of a test -> its group, as the workers found it."""
        groups: dict[str, str] = json.loads(_groups_file().read_text(encoding="utf-8"))
        return groups

    def _split_scope(self, nodeid: str) -> str:
        return self.groups.get(nodeid, nodeid)


def _groups_file() -> Path:
    """Return the place of the groups; to be asked in the first process."""
    return Path(tempfile.gettempdir()) / f"medserve-test-groups-{os.getpid()}.json"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Grouped | None:
    """Take the place of the scheduler for `--dist loadgroup`."""
    if config.getoption("dist") != "loadgroup":
        return None
    config.option.loadscopereorder = False
    return Grouped(config, log)


def pytest_configure_node(node: Any) -> None:
    """Tell a worker where to write the groups."""
    node.workerinput[_FILE] = str(_groups_file())


def pytest_collection_finish(session: pytest.Session) -> None:
    """Write them, in a worker; each writes the same."""
    given = getattr(session.config, "workerinput", None)
    if given is not None:
        groups = {item.nodeid: item.stash[GROUP] for item in session.items if GROUP in item.stash}
        written = Path(f"{given[_FILE]}.{given['workerid']}")
        written.write_text(json.dumps(groups), encoding="utf-8")
        written.replace(given[_FILE])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the counts of what is not run from a worker to the process that prints them."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_NOT_RUN] = session.config.stash[COUNTS]


def pytest_testnodedown(node: Any) -> None:
    """Take them; each worker has the same."""
    counts = getattr(node, "workeroutput", {}).get(_NOT_RUN)
    if counts is not None:
        node.config.stash[COUNTS] = counts


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the file of the groups."""
    if not hasattr(config, "workerinput"):
        _groups_file().unlink(missing_ok=True)
