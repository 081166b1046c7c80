"""The environment in which an engine starts the processes that run archives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["CANCELLED", "UPLOADS", "worker_environment"]

CANCELLED = "cancelled"  # in the private folder: ids of calls that nobody waits for any more
UPLOADS = "uploads"  # and files that are too large for a message

_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|PRIVATE", re.IGNORECASE)
_MARGIN_BYTES = 2**14  # for what a server puts around an answer


def worker_environment(
    given: Mapping[str, str], folder: Path, threads: int, max_message_bytes: int
) -> dict[str, str]:
    """Return an environment without secrets and with thread counts, for a private folder.

    PYTHONPATH is dropped: it would stand before the archive, whose own code has to win. What
    Python compiles of the archive is kept in the folder, for the workers after the first.
    """
    environment = {
        key: value
        for key, value in given.items()
        if not _SECRET.search(key) and key not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    }
    count = str(threads)
    return environment | {
        "TMPDIR": str(folder / "tmp"),
        "MEDSERVE_ENGINE_THREADS": count,
        "MEDSERVE_CANCELLED_DIR": str(folder / CANCELLED),
        "MEDSERVE_UPLOAD_DIR": str(folder / UPLOADS),
        # The handler refuses a larger answer before the server would have to.
        "MEDSERVE_MAX_RESPONSE_BYTES": str(max_message_bytes - _MARGIN_BYTES),
        # Libraries in a worker would each take every core.
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "MALLOC_ARENA_MAX": "2",  # glibc otherwise keeps an arena a thread
    }
