"""Read what a page tells its reader to run, and see whether a port is free to run it."""

from __future__ import annotations

import re
import socket
from pathlib import Path

__all__ = ["blocks", "listens"]

_BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of one language, in order."""
    text = page.read_text(encoding="utf-8")
    return [match["body"] for match in _BLOCK.finditer(text) if match["language"] == language]


def listens(port: int) -> bool:
    """Whether something answers on this port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
