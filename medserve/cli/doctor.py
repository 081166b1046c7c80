"""`medserve doctor`: look at all that serving needs and say what to do about each finding."""

from __future__ import annotations

import enum
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medserve.cli.connection import Address, CaFile, TokenFile, connect
from medserve.client import Client
from medserve.errors import AuthenticationError, MedserveError, ServerUnreachableError
from medserve.settings import Address as _Address
from medserve.settings import EngineKind, Settings

__all__ = ["doctor"]

_MIN_FREE_BYTES = 2 * 2**30  # archives are unpacked once per start; logs go nowhere
_SERVING = ("torchserve", "torch-model-archiver", "torch", "psutil")
_INSTALL = "pip install 'medserve[serve]'"


class _Level(enum.StrEnum):
    """How bad a finding is; only `FAIL` changes the exit code."""

    OK = "[green]ok[/]"
    NOTE = "[yellow]note[/]"
    FAIL = "[bold red]fix[/]"


@dataclass(frozen=True)
class _Finding:
    """One line of the table."""

    what: str
    level: _Level
    found: str
    advice: str = ""


def doctor(
    store: Annotated[
        Path | None, typer.Option(help="Folder of the archives (MEDSERVE_STORE).")
    ] = None,
    address: Address = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
) -> None:
    """Look at a gateway, and at all that serving needs where it is installed; say what to do.

    Exit code: 0 nothing has to be fixed, 1 something has to.
    """
    settings = Settings.from_environment()
    findings = [*_python()]
    direct = settings.engine_kind is EngineKind.DIRECT
    if direct or any(map(_installed, _SERVING)):
        serving: tuple[Callable[[], Iterator[_Finding]], ...] = (
            *((_direct,) if direct else (_java, _libraries)),
            _engines,
            lambda: _archives(store or settings.store),
            _disk,
        )
        findings += [finding for check in serving for finding in check()]
    else:
        advice = f"to serve models from here: {_INSTALL}"
        findings.append(_Finding("serving", _Level.NOTE, "not installed: a client alone", advice))
    findings += _gateway(connect(address, token_file, ca_file, timeout_s=5.0))
    table = Table("", "what", box=None, pad_edge=False)
    table.add_column("found", overflow="fold")
    table.add_column("what to do", overflow="fold")
    for finding in findings:
        table.add_row(
            finding.level, escape(finding.what), escape(finding.found), escape(finding.advice)
        )
    Console(highlight=False).print(table)
    if any(finding.level is _Level.FAIL for finding in findings):
        raise typer.Exit(1)


def _python() -> Iterator[_Finding]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    yield _Finding("Python", _Level.OK, f"{version} ({sys.prefix})")


def _java() -> Iterator[_Finding]:
    from medserve.engine.torchserve.java import find_java

    try:
        java = find_java()
    except MedserveError as error:
        yield _Finding("Java", _Level.FAIL, "none that is new enough", error.message)
    else:
        yield _Finding("Java", _Level.OK, f"{java.version} by {java.source} ({java.path})")


def _direct() -> Iterator[_Finding]:
    if sys.platform == "linux":
        yield _Finding("engine", _Level.OK, "direct: neither Java nor TorchServe is needed")
    else:
        advice = "take TorchServe: MEDSERVE_ENGINE_KIND=torchserve"
        yield _Finding("engine", _Level.FAIL, "direct, which needs Linux", advice)


def _libraries() -> Iterator[_Finding]:
    """What TorchServe needs."""
    for package in _SERVING:
        version = _installed(package)
        level = _Level.OK if version else _Level.FAIL
        yield _Finding(package, level, version or "missing", "" if version else _INSTALL)


def _engines() -> Iterator[_Finding]:
    """The libraries that execute networks, of which one is enough."""
    engines = {name: _installed(name) for name in ("openvino", "onnxruntime", "torch")}
    found = ", ".join(f"{name} {version}" for name, version in engines.items() if version)
    level = _Level.OK if all(engines.values()) else _Level.NOTE
    yield _Finding("engines", level, found or "none", "" if all(engines.values()) else _INSTALL)


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _archives(store: Path) -> Iterator[_Finding]:
    """Every archive is verified by itself: one altered file is named, the others stay fine."""
    from medserve.archive.read import verify_archive

    files = sorted(store.glob("*.mar"))
    if not files:
        advice = "build them: medserve package --all"
        yield _Finding("archives", _Level.FAIL, f"none in {store}", advice)
    for file in files:
        try:
            info = verify_archive(file)
        except MedserveError as error:
            yield _Finding(file.name, _Level.FAIL, "damaged or altered", error.message)
        else:
            found = f"{info.name} {info.version}, {len(info.members)} members verified"
            yield _Finding(file.name, _Level.OK, found)


def _disk() -> Iterator[_Finding]:
    import tempfile

    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    found = f"{free / 2**30:.1f} GiB free in {folder}"
    if free >= _MIN_FREE_BYTES:
        yield _Finding("disk", _Level.OK, found)
    else:
        advice = "archives are unpacked there; free some space or set TMPDIR"
        yield _Finding("disk", _Level.NOTE, found, advice)


def _gateway(client: Client) -> Iterator[_Finding]:
    """Tell what a gateway at the address has, or why this client cannot use it."""
    what = f"gateway at {client.address}"
    try:
        with client:
            models = client.models()
    except AuthenticationError as error:
        yield _Finding(what, _Level.NOTE, "answers, and asks for a token", error.message)
    except ServerUnreachableError as error:
        if _listens(client.address):
            yield _Finding(what, _Level.FAIL, "answers, but not this client", error.message)
        else:
            yield _Finding(what, _Level.NOTE, "nobody answers", "start one: medserve serve")
    except MedserveError as error:
        yield _Finding(what, _Level.FAIL, "does not answer as it should", error.message)
    else:
        ready = ", ".join(f"{model.name} {model.version}" for model in models if model.ready)
        missing = ", ".join(model.name for model in models if not model.ready)
        level = _Level.OK if ready and not missing else _Level.FAIL
        found = f"ready: {ready or 'no model'}" + (f"; not ready: {missing}" if missing else "")
        advice = "" if level is _Level.OK else "see its output, or start it again: medserve serve"
        yield _Finding(what, level, found, advice)


def _listens(address: _Address) -> bool:
    try:
        socket.create_connection((address.host, address.port), timeout=2.0).close()
    except OSError:
        return False
    return True
