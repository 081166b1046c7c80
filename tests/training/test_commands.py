"""Every command of a training in the documentation and the cards is one that can be given."""

from __future__ import annotations

import runpy
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.training.guide import documented
from training.core import config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "models").rglob("README.md")),
]
_TO_BE_MADE = {"training.skin", "training.liver"}  # rooms that a page makes


COMMANDS = sorted(
    {command for page in PAGES for command in documented(page)
     if command.split()[0] not in _TO_BE_MADE}
)  # fmt: skip


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

    module, *flags = shlex.split(command)
    monkeypatch.setattr(config, "run", only_read)
    monkeypatch.setattr(sys, "argv", [module, *flags])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert (ended.value.code, len(read)) == (0, 0 if "--help" in flags else 1)
