"""From the folder of a training into a room, alike for every task."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from medserve.archive.read import NETWORK
from medserve.archive.reference import REFERENCE
from training.core.export import sha256

__all__ = ["install_files"]

_log = logging.getLogger(__name__)


def install_files(copies: Mapping[Path, Iterable[Path]]) -> None:
    """Copy files into the folders of a room, where packaging takes them from.

    Args:
        copies: Folder, made where it is missing -> the files that go there under their names. The
            digest of each is logged. A new network takes away the reference for drift, which is
            of the network before.
    """
    for target, sources in copies.items():
        target.mkdir(parents=True, exist_ok=True)
        files = sorted(sources)
        if any(source.name == NETWORK for source in files):
            (target / REFERENCE).unlink(missing_ok=True)
        for source in files:
            shutil.copyfile(source, target / source.name)
            _log.info("%s  %s", sha256(source), target / source.name)
