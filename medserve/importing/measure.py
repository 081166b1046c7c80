"""What one call of a network takes in memory, measured in a process of its own.

python -m medserve.importing.measure FOLDER ENGINE 1,1,64,64,64
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medserve.cores import available_cores
from medserve.errors import ServerFailedError
from medserve.inference.engines import load_engine
from medserve.spec import EngineName

__all__ = ["network_bytes", "peak_bytes"]

_STATUS = Path("/proc/self/status")
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


def network_bytes(folder: Path, engine: EngineName, shape: Sequence[int]) -> int:
    """Return by how much the first call of a network raises the peak of its process.

    Args:
        folder: Of the artifact.
        engine: What executes it.
        shape: Of one batch of windows.

    Raises:
        ServerFailedError: the process came to no figure.
    """
    sides = ",".join(map(str, shape))
    command = [sys.executable, "-m", __name__, str(folder), engine.value, sides]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0 or not run.stdout.strip().isdecimal():
        reason = (run.stderr.strip().splitlines() or ["no output"])[-1]
        raise ServerFailedError(f"expected the memory of one call of {engine}, got: {reason}")
    return int(run.stdout)


def peak_bytes() -> int:
    """Return the most memory that this process has held resident.

    `getrusage` does not tell it: its maximum begins with that of the process that started this one.
    """
    found = _PEAK.search(_STATUS.read_text(encoding="ascii"))
    assert found is not None  # every process of Linux that has memory of its own
    return int(found[1]) * 1024


def _main(folder: str, engine: str, sides: str) -> None:
    shape = tuple(int(side) for side in sides.split(","))
    loaded = load_engine(EngineName(engine), Path(folder), threads=available_cores())
    windows = np.zeros(shape, dtype=np.float32)
    before = peak_bytes()
    loaded.run(windows)
    print(peak_bytes() - before)


if __name__ == "__main__":
    _main(*sys.argv[1:])
