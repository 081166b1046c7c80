"""From the folder of a training into a room, alike for every task."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from training.core.export import sha256

__all__ = ["install_files"]

_log = logging.getLogger(__name__)


def install_files(copies: Mapping[Path, Iterable[Path]]) -> None:
    """Copy files into the folders of a room, where packaging takes them from.

    Args:
        copies: Folder, made where it is missing -> the files that go there under their names. The
            digest of each is logged.
    """
    for target, sources in copies.items():
        target.mkdir(parents=True, exist_ok=True)
        for source in sorted(sources):
            shutil.copyfile(source, target / source.name)
            _log.info("%s  %s", sha256(source), target / source.name)
