"""Start a server over a store, be interrupted at one step, and tell what is left of it.

python -m tests.interrupted_start OWNER STEP before|after STORE
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from medserve.engine.torchserve import lifecycle
from medserve.engine.torchserve.java import Java
from medserve.engine.torchserve.lifecycle import Server, ServerConfig
from medserve.engine.torchserve.log import EngineLog
from medserve.run_folder import RunFolder

OWNERS: dict[str, Any] = {"folder": RunFolder, "server": Server, "log": EngineLog}


def main(owner: str, step: str, when: str, store: str) -> dict[str, object]:
    """Return how the start ended, and how each process that it started did."""
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def asleep(_command: Any, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        started.append(popen(command, **options))
        return started[-1]

    original = getattr(OWNERS[owner], step)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if when == "before":
            signal.raise_signal(signal.SIGTERM)
        result = original(*arguments, **options)
        if when == "after":
            signal.raise_signal(signal.SIGTERM)
        return result

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as in `medserve serve`
    setattr(OWNERS[owner], step, interrupted)
    setattr(lifecycle, "find_java", lambda: Java(Path("java"), 17, "a test"))  # noqa: B010
    setattr(subprocess, "Popen", asleep)  # noqa: B010
    ended = "ready"
    try:
        with Server(ServerConfig(store=Path(store))):
            pass
    except BaseException as error:
        ended = type(error).__name__
    left = [each.poll() for each in started]
    for process in started:
        process.kill()
        process.wait()
    return {"ended": ended, "exit_codes": left}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
