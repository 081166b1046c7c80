from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from medserve.cli.main import main
from tests.client.fake_gateway import FakeGateway, serving


@dataclass(frozen=True)
class Run:
    """How one command ended."""

    code: int
    out: str
    err: str


Medserve = Callable[..., Run]


@pytest.fixture
def medserve(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Medserve:
    """Runs the command line as a shell would, in this process."""
    for name in os.environ:
        if name.startswith("MEDSERVE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object) -> Run:
        monkeypatch.setattr("sys.argv", ["medserve", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        else:
            code = 0
        return Run(code, *capfd.readouterr())

    return run


@pytest.fixture
def fake() -> Iterator[FakeGateway]:
    with serving(FakeGateway()) as server:
        yield server
