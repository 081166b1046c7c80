"""What the system tells about the process of a worker, so that one that stands still is noticed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["STANDING_S", "STOPPED_S", "ProcessState"]

STOPPED_S = 4.0  # a worker that a signal stopped is ended after this time
STANDING_S = 8.0  # and one that has work and uses no processor time after this


@dataclass(frozen=True)
class ProcessState:
    """One look at a process.

    Attributes:
        stopped: By a signal.
        cpu_ticks: Processor time that it has used.
        runnable: Whether it runs, or only waits for a processor that others use.
    """

    stopped: bool
    cpu_ticks: int
    runnable: bool = False

    @classmethod
    def of(cls, pid: int) -> ProcessState | None:
        """Return the state of a process, None where there is none (or no /proc to tell)."""
        try:
            content = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        fields = content.rpartition(")")[2].split()  # the name before it may hold anything
        if fields[0] in ("Z", "X"):
            return None
        ticks = int(fields[11]) + int(fields[12])
        return cls(fields[0] in ("T", "t"), ticks, runnable=fields[0] == "R")
