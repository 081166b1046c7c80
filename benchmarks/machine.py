"""The machine and the versions that a measurement was made with."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib import metadata
from pathlib import Path

import psutil

from medserve import __version__
from medserve.engine.torchserve.java import find_java
from medserve.errors import ConfigError

__all__ = ["describe_machine"]

_PACKAGES = ("grpcio", "numpy", "onnxruntime", "openvino", "pillow", "torch", "torchserve")


def describe_machine() -> dict[str, object]:
    """What a reader needs to compare; no host name, no path."""
    versions = {"medserve": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    with contextlib.suppress(ConfigError):
        versions["java"] = str(find_java().version)
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
        "versions": versions,
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
