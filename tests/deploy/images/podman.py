"""Podman for the tests: the pod of a manifest, run by `podman play kube` without a cluster.

Podman keeps its images in a folder of this run. It is installed only where the variable CI is set.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["Podman", "running_podman"]

# runc and cgroupfs work on both versions of control groups; crun and systemd want the newer.
_FLAGS = ("--runtime", "runc", "--cgroup-manager", "cgroupfs")
_PROCESSES = 8192  # and threads: some hundreds are needed
_PACKAGES = ("podman", "runc", "netavark", "aardvark-dns", "catatonit", "iptables")


class Podman:
    """Commands over a storage of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Podman's own defaults are more than a process in a sandbox may hand on.
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        limits = f'["nofile={files}:{files}", "nproc={_PROCESSES}:{_PROCESSES}"]'
        text = (
            f'[containers]\ndefault_ulimits = {limits}\n[network]\nnetwork_backend = "netavark"\n'
        )
        (folder / "containers.conf").write_text(text, encoding="utf-8")
        self._environment = os.environ | {"CONTAINERS_CONF": str(folder / "containers.conf")}

    def command(self, *arguments: str) -> list[str]:
        """The whole command line."""
        places = ["--root", str(self._folder / "root"), "--runroot", str(self._folder / "run")]
        return ["podman", *places, *_FLAGS, *arguments]

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run it and keep what it prints."""
        done = subprocess.run(
            self.command(*arguments), env=self._environment, capture_output=True, text=True
        )
        if check and done.returncode:
            raise AssertionError(f"podman {' '.join(arguments)}: {done.stderr}")
        return done

    def load(self, image: str) -> None:
        """Take an image over from Docker."""
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saved:
            subprocess.run(
                self.command("load"),
                env=self._environment,
                stdin=saved.stdout,
                stdout=subprocess.DEVNULL,
                check=True,
            )
        assert saved.returncode == 0


@contextmanager
def running_podman() -> Iterator[Podman]:
    """Podman with an empty storage, removed at the end; skips with the reason where none can be."""
    if os.geteuid() != 0:
        pytest.skip("podman play kube needs root here")
    if shutil.which("podman") is None:
        if not os.environ.get("CI"):
            pytest.skip("needs podman (Debian: apt-get install podman runc)")
        install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends"]
        for command in (["apt-get", "update", "--quiet"], [*install, *_PACKAGES]):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"podman cannot be installed: {done.stderr[-200:]}")
    # Short: a socket's path below it has room for about a hundred characters.
    folder = Path(tempfile.mkdtemp(prefix="medserve-podman-"))
    podman = Podman(folder)
    try:
        yield podman
    finally:
        podman.run("pod", "rm", "--all", "--force", check=False)
        podman.run("rmi", "--all", "--force", check=False)
        shutil.rmtree(folder, ignore_errors=True)
