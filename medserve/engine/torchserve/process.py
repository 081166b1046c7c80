"""TorchServe's process: started so that it can be drained, and ended with all it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["kill_group", "launch"]

# Java gets SIGTERM when the process that started it dies, whatever killed that one. Done by a
# first program that then becomes Java: code between fork and exec is unsafe beside threads.
_DIES_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]): sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def launch(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], lock_fd: int
) -> subprocess.Popen[str]:
    """Start Java in its folder, in a session of its own, with its output in a pipe.

    Of its own, because Ctrl-C must not reach the workers: they have requests to finish.
    """
    # The kernel watches the thread that starts Java, so only one that lasts will do.
    if sys.platform == "linux" and threading.current_thread() is threading.main_thread():
        guard = [sys.executable, "-I", "-S", "-c", _DIES_WITH_PARENT, str(os.getpid())]
        command = [*guard, *command]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        pass_fds=(lock_fd,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def kill_group(process: subprocess.Popen[str]) -> None:
    """End what is left of Java and its workers; they share one process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()
