"""Every command of a training in the documentation and the cards is one that can be given."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.pages import blocks
from training.core import config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "models").rglob("README.md")),
]
_COMMAND = re.compile(r"python -m (training\.[\w.]+)(.*)")
_TO_BE_MADE = {"training.skin", "training.liver"}  # rooms that a page makes


def commands(page: Path) -> list[str]:
    """The commands of the shell blocks of a page, one line each."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    found = [match for match in map(_COMMAND.search, lines) if match]
    return [match[0] for match in found if match[1] not in _TO_BE_MADE]


COMMANDS = sorted({command for page in PAGES for command in commands(page)})


def test_the_pages_have_commands() -> None:
    assert len(COMMANDS) > 20


@pytest.mark.cpu  # imports torch and Lightning
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []

    def only_read(
        main: Callable[..., object],
        kind: type[object],
        arguments: Sequence[str] | None = None,
        read_by: Callable[..., object] = config.parse,
        **more: Callable[..., object],
    ) -> int:
        read.append(more.get("read", read_by)(kind, arguments))
        return 0

    text = command.partition(" #")[0].partition(" >")[0]
    _, _, module, *flags = shlex.split(text)
    monkeypatch.setattr(config, "run", only_read)
    monkeypatch.setattr(sys, "argv", [module, *flags])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert (ended.value.code, len(read)) == (0, 0 if "--help" in flags else 1)
