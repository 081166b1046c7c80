"""Three tiers of tests: what each one runs, and the line in which it says what it left out.

A marker names the resource that a test needs beyond a second of one core; a test without one is a
unit test. `pytest --tier check` runs the unit tests, `--tier test` also what one machine answers
within minutes, `--tier all` (as plain `pytest`) everything. Several fixtures bring their marker
with them, see `FIXTURES`.

A unit test that starts a process, opens a socket or takes more than three seconds of processor time
fails: it has to be made smaller, or to name what it needs. A second is meant; the rest is the
difference between processors.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest

from medserve.cores import available_cores

__all__ = ["COUNTS", "GROUP", "RESOURCES", "NoUnitTestError", "left_out"]

TIERS = ("check", "test", "all")
_COMMANDS = {"test": "make test", "all": "make test-all"}
_CPU_LIMIT_S = 3.0
COUNTS = pytest.StashKey[
    dict[str, int]
]()  # of a run: how many tests its tier leaves out, by marker
GROUP = pytest.StashKey[str]()  # of a test: the others that it has to run with, in one process
_LATE = ("highdicom", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Resource:
    """What a test needs, and the first tier that has it."""

    why: str
    tier: str


RESOURCES = {
    "process": Resource("starts a process", "test"),
    "loopback": Resource("serves and calls over loopback within its own process", "test"),
    "cpu": Resource("computes for more than a second", "test"),
    "archive": Resource("reads a built archive, or builds one", "test"),
    "torchserve": Resource("starts or calls the real TorchServe (needs Java)", "test"),
    "browser": Resource("drives the page with Chromium", "test"),
    "training": Resource("trains a network, or exports one that no room ships", "all"),
    "benchmark": Resource("measures a served model in a short run", "all"),
    "walk": Resource("follows a page of the documentation on the ports that it names", "all"),
    "clone": Resource("installs everything from nothing in a fresh clone", "all"),
    "ray": Resource("starts a Ray cluster of this machine", "all"),
    "docker": Resource("builds and runs images with a real Docker engine", "all"),
    "pacs": Resource("exchanges images with a real DICOM archive", "all"),
    "data": Resource("reads the public training data in the folder MEDSERVE_DATA", "all"),
    "gpu": Resource("needs a CUDA device", "all"),
}
# A test that uses the fixture needs the resource.
FIXTURES = {
    "archive": "archive",
    "chromium": "browser",
    "fake": "loopback",
    "rendered": "process",
    "engine_installed": "torchserve",
    "store": "archive",
    "tiny_store": "archive",
}
# Tests that share one server, one engine or one set of ports run in one process, one by one.
_SHARED = {"servers": "torchserve", "chromium": "torchserve"}
_ALONE = {"walk": "ports", "clone": "ports", "docker": "docker"}
# The longest come first, so that two processes end at about the same time.
_ORDER = ("docker", "walk", "clone", "browser", "torchserve", "training", "data", "cpu", "archive")


def left_out(counts: Mapping[str, int], tier: str) -> str:
    """Return the line that says which tests a tier did not run, and which command runs them."""
    if not counts:
        return f"tier {tier}: no test was left out"
    parts = []
    for command in _COMMANDS.values():
        first = [name for name in RESOURCES if counts.get(name) and _command(name) == command]
        if first:
            listed = ", ".join(f"{counts[name]} {name}" for name in first)
            parts.append(f"{listed} ({command})")
    return f"tier {tier}: {sum(counts.values())} tests were not run: {'; '.join(parts)}"


def _command(name: str) -> str:
    return _COMMANDS[RESOURCES[name].tier]


class NoUnitTestError(BaseException):
    """A test without a marker does what no unit test does; no `except Exception` hides it."""


class _Guard:
    """Watches over the running test, as long as it is a unit test."""

    def __init__(self) -> None:
        self.watching = False

    def refuse(self, deed: str, marker: str) -> None:
        if self.watching:
            raise NoUnitTestError(
                f"expected a unit test to need no process and no socket, got {deed}; mark the "
                f"test {marker!r}, or take the place of what it calls"
            )

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Refuse processes and sockets; see the table of audit events of Python."""
        if not self.watching:
            return
        if event in ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"):
            self.refuse(event, "process")
        if event in ("socket.bind", "socket.connect", "socket.sendto"):
            self.refuse(event, "loopback")

    def wrap(self, owner: Any, name: str) -> None:
        """Refuse gRPC's own sockets, of which Python hears nothing."""
        opened: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(opened)
        def watched(*arguments: Any, **options: Any) -> Any:
            self.refuse(f"{owner.__name__}.{name}", "loopback")
            return opened(*arguments, **options)

        setattr(owner, name, watched)


_GUARD = _Guard()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--tier`."""
    parser.addoption("--tier", choices=TIERS, help="which tests to run; without it, all")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, and begin to watch."""
    for name, resource in RESOURCES.items():
        config.addinivalue_line("markers", f"{name}: {resource.why}")
    sys.addaudithook(_GUARD.audit)
    for owner in (grpc, grpc.aio):
        for name in ("server", "insecure_channel", "secure_channel"):
            _GUARD.wrap(owner, name)


def resources(item: pytest.Item) -> list[str]:
    """Return the names of the resources that a test needs, in the order of the table."""
    marked = {mark.name for mark in item.iter_markers()}
    return [name for name in RESOURCES if name in marked]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Do now what single tests would pay for by chance: late imports, and tidying up after all."""
    workers = getattr(session.config, "workerinput", {}).get("workercount", 0)
    for name in _LATE:
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(name)
    if workers and (torch := sys.modules.get("torch")):
        torch.set_num_threads(max(1, available_cores() // workers))
    gc.collect()
    gc.freeze()  # a million objects of imported modules stay; looking at each takes a second


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what follows from a test's fixtures, and bind tests that share something together."""
    used = set(getattr(item, "fixturenames", ()))
    for fixture in used & FIXTURES.keys():
        item.add_marker(FIXTURES[fixture])
    needed = resources(item)
    groups = {_SHARED[fixture] for fixture in used & _SHARED.keys()}
    groups = groups or {_ALONE[name] for name in needed if name in _ALONE}
    if needed:
        item.stash[GROUP] = min(groups, default=item.path.as_posix())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take the tests of the tier, the longest first."""
    tier = TIERS.index(config.getoption("--tier") or "all")
    taken, left, counts = [], [], Counter[str]()
    for item in items:
        beyond = [name for name in resources(item) if TIERS.index(RESOURCES[name].tier) > tier]
        if beyond:
            left.append(item)
            counts[beyond[-1]] += 1
        else:
            taken.append(item)
    config.stash[COUNTS] = dict(counts)
    if left:
        config.hook.pytest_deselected(items=left)
    items[:] = sorted(taken, key=_place)


def _place(item: pytest.Item) -> tuple[int, str]:
    """Order by kind; what shares a server stays together."""
    needed = resources(item)
    rank = next((place for place, name in enumerate(_ORDER) if name in needed), len(_ORDER))
    group = item.stash.get(GROUP, "")
    if group in _SHARED.values():
        return _ORDER.index("browser"), group
    return rank, group


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Watch over a unit test from its first fixture to its last."""
    _GUARD.watching = not resources(item)
    try:
        return (yield)
    finally:
        _GUARD.watching = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a unit test that computes for too long."""
    if not _GUARD.watching:
        return (yield)
    gc.disable()  # the garbage of all tests before is not this one's
    started = time.process_time()
    try:
        result = yield
    finally:
        took = time.process_time() - started
        gc.enable()
    if took > _CPU_LIMIT_S:
        pytest.fail(
            f"expected a unit test to take at most {_CPU_LIMIT_S} s of processor time, got "
            f"{took:.1f} s; make it smaller, or mark it 'cpu'",
            pytrace=False,
        )
    return result


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a parameter of unprintable bytes by its argument.

    Compressed bytes hold the second in which they were made, and two processes must collect the
    same names.
    """
    if isinstance(val, bytes) and not (val.isascii() and val.decode("ascii").isprintable()):
        return argname
    return None


def pytest_unconfigure(config: pytest.Config) -> None:
    """Say in the last line what was not run."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    tier = config.getoption("--tier")
    if tier and reporter and not hasattr(config, "workeroutput"):
        counts: dict[str, int] = config.stash.get(COUNTS, {})
        line = left_out(counts, tier)
        skipped = len(reporter.stats.get("skipped", []))
        reporter.write_line(f"{line}; {skipped} skipped for the reasons above")
