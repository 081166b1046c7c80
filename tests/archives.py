"""Archives for tests: built once for equal inputs, however many tests and runs ask for them.

- `packaged` packages a room of the checkout, or of another one;
- `packaged_fixture` one of the small rooms whose right answers are known, by its name.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import medserve.archive
from medserve.archive import build
from medserve.archive.requirements import required_distributions
from medserve.spec import ModelSpec
from tests.gateway.sketcher_room import make_sketcher_checkout
from tests.gateway.streaming_room import make_streaming_checkout
from tests.painter_room import make_painter_checkout
from tests.tiny_colour_room import make_colour_checkout
from tests.tiny_frame_room import make_frame_checkout
from tests.tiny_room import REPOSITORY, make_checkout
from tests.tiny_volume_room import make_volume_checkout

__all__ = ["FIXTURE_ROOMS", "packaged", "packaged_fixture"]

FIXTURE_ROOMS: Mapping[str, Callable[[Path], Path]] = {
    "painter": make_painter_checkout,
    "sketcher": make_sketcher_checkout,
    "ticker": make_streaming_checkout,
    "tiny": make_checkout,
    "tiny_colour": make_colour_checkout,
    "tiny_frame": make_frame_checkout,
    "tiny_volume": make_volume_checkout,
}
_CACHE = REPOSITORY / "build" / "test-archives"
_KEPT = 60  # the set of one state of the code is about twenty


def packaged(name: str, store: Path, root: Path = REPOSITORY, variant: str = "") -> Path:
    """Put the archive of a room into `store`, as `build_archive` would, and return its path.

    What an earlier call built from the same bytes is copied; its commit may be an older one. Tests
    of building itself call `build_archive`.
    """
    return _copied(_kept(name, root, variant), store)


def packaged_fixture(name: str, store: Path) -> Path:
    """Do the same for one of `FIXTURE_ROOMS`."""
    return _copied(_kept_fixture(name), store)


@functools.cache
def _kept_fixture(name: str) -> Path:
    with tempfile.TemporaryDirectory() as folder:
        return _kept(name, FIXTURE_ROOMS[name](Path(folder) / "checkout"), "")


def _copied(kept: Path, store: Path) -> Path:
    [archive] = kept.glob("*.mar")
    store.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(archive, store))


def _kept(name: str, root: Path, variant: str) -> Path:
    """Return the folder that holds the archive, built if it is the first of its inputs."""
    kept = _CACHE / _digest(name, root, variant)
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.is_dir():
            with tempfile.TemporaryDirectory(dir=_CACHE) as folder:
                build.build_archive(name, Path(folder) / "built", root, variant)
                (Path(folder) / "built").rename(kept)
        os.utime(kept)
        found = sorted((each for each in _CACHE.iterdir() if each.is_dir()), key=_last_used)
        for outdated in found[:-_KEPT]:
            shutil.rmtree(outdated)
    return kept


def _digest(name: str, root: Path, variant: str) -> str:
    """Return the digest of all that decides about the archive's bytes, its commit excepted."""
    room = root / "models" / name / (f"variants/{variant}" if variant else "")
    spec = ModelSpec.from_file(room / "model-config.yaml")
    sources = build._sources(root, room, spec)
    required = required_distributions(f"{spec.name}.py", sources)
    found = hashlib.sha256(platform.python_version().encode())
    for package in (*required, *build._RECORDED):
        found.update(f"{package}=={build._installed(package)}\n".encode())
    builder = {path.name: path for path in Path(medserve.archive.__path__[0]).glob("*.py")}
    for inside, source in (sources | builder).items():
        found.update(f"{inside}\n".encode())
        found.update(hashlib.sha256(source.read_bytes()).digest())
    return found.hexdigest()[:32]


def _last_used(folder: Path) -> float:
    return folder.stat().st_mtime
