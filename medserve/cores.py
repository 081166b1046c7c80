"""How many processor cores this process may use."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["available_cores"]

_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # "quota period" in microseconds, or "max period"


def available_cores() -> int:
    """The process's affinity, cut by its container's quota; at least 1."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = _CGROUP_LIMIT.read_text(encoding="ascii").split()
        limit = max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or "max"
        return usable or 1
    return min(usable or 1, limit)
