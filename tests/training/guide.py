"""The commands of the guide to training, for tests that run them.

A test takes a command as the page has it and adds flags that make it small and lead it to drawn
data: of a flag that is given twice, the last one counts.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.pages import blocks

__all__ = ["GUIDE", "ROOT", "command_of", "documented", "guided"]

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "build" / "training.md"
_COMMAND = re.compile(r"python -m (training\.[\w.]+.*)")


def documented(page: Path) -> list[str]:
    """The commands of a page that train or measure, from the name of the module on."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    found = [match[1] for match in map(_COMMAND.search, lines) if match]
    return [command.partition(" #")[0].partition(" >")[0].strip() for command in found]


def command_of(words: str) -> str:
    """The shortest command of the guide that has all these words."""
    wanted = set(words.split())
    found = [each for each in documented(GUIDE) if wanted <= set(each.split())]
    assert found, f"the guide has no command with {words}"
    return min(found, key=len)


def guided(words: str, *small: object) -> list[str]:
    """The arguments of the command with these words, and behind them what makes it small."""
    return [*shlex.split(command_of(words))[1:], *map(str, small)]
