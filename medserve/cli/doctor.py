"""`medserve doctor`: look at all that serving needs and say what to do about each finding."""

from __future__ import annotations

import enum
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medserve.errors import MedserveError, ServerUnreachableError
from medserve.settings import Settings

if TYPE_CHECKING:
    from medserve.gateway.settings import GatewaySettings

__all__ = ["doctor"]

_MIN_FREE_BYTES = 2 * 2**30  # archives are unpacked once per start; logs go nowhere
_SERVING = ("torchserve", "torch-model-archiver", "torch", "psutil")


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
) -> None:
    """Look at all that serving needs and say what to do; exit code 1 if something must be fixed."""
    settings = Settings.from_environment()
    checks: tuple[Callable[[], Iterator[_Finding]], ...] = (
        _python,
        _java,
        _libraries,
        lambda: _archives(store or settings.store),
        _disk,
        lambda: _server(settings),
        _gateway,
    )
    findings = [finding for check in checks for finding in check()]
    table = Table("", "what", box=None, pad_edge=False)
    table.add_column("found", overflow="fold")
    table.add_column("what to do", overflow="fold")
    for finding in findings:
        table.add_row(finding.level, finding.what, escape(finding.found), escape(finding.advice))
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


def _libraries() -> Iterator[_Finding]:
    """What serving needs, and the engines of which one is enough."""
    install = "pip install 'medserve[serve]'"
    for package in _SERVING:
        version = _installed(package)
        level = _Level.OK if version else _Level.FAIL
        yield _Finding(package, level, version or "missing", "" if version else install)
    engines = {name: _installed(name) for name in ("openvino", "onnxruntime", "torch")}
    found = ", ".join(f"{name} {version}" for name, version in engines.items() if version)
    level = _Level.OK if all(engines.values()) else _Level.NOTE
    yield _Finding("engines", level, found or "none", "" if all(engines.values()) else install)


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


def _server(settings: Settings) -> Iterator[_Finding]:
    """Either a server answers, or its port is free for one."""
    from medserve.cli.connection import connect
    from medserve.engine.torchserve.ports import Ports, choose_ports, resolve

    what = f"server at {settings.address}"
    try:
        with connect(None, None, None, timeout_s=5.0) as client:
            models = client.models()
    except ServerUnreachableError:
        try:
            choose_ports(resolve(settings.address.host), Ports(settings.address.port))
        except MedserveError as error:
            yield _Finding(what, _Level.FAIL, "another program has its port", error.message)
        else:
            yield _Finding(what, _Level.NOTE, "nobody answers", "start one: medserve serve")
    except MedserveError as error:
        yield _Finding(what, _Level.FAIL, "does not answer as it should", error.message)
    else:
        ready = ", ".join(f"{model.name} {model.version}" for model in models if model.ready)
        level = _Level.OK if ready else _Level.FAIL
        advice = "" if ready else "see its output, or start it again: medserve serve"
        yield _Finding(what, level, f"ready: {ready or 'no model'}", advice)


def _gateway() -> Iterator[_Finding]:
    """Its packages, and whether one that runs here serves."""
    from medserve.cli.gateway import require_gateway
    from medserve.gateway.settings import GatewaySettings

    try:
        require_gateway()
        settings = GatewaySettings.read()
    except MedserveError as error:
        yield _Finding("gateway", _Level.NOTE, "cannot be started", error.message)
        return
    port = settings.grpc_port
    what = f"gateway at {settings.host}:{port}"
    try:
        status = _health(settings)
    except MedserveError as error:
        yield _Finding(what, _Level.NOTE, "nobody answers", error.message)
        return
    page = f", page at port {settings.http_port}" if settings.page else ""
    if status == "SERVING":
        yield _Finding(what, _Level.OK, f"every model serves{page}")
    else:
        advice = "see its output; `medserve models` names the model"
        yield _Finding(what, _Level.FAIL, f"health says {status}", advice)


def _health(settings: GatewaySettings) -> str:
    """What grpc.health.v1 says of the gateway on this machine."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from medserve.engine.torchserve.ports import reachable_host, resolve
    from medserve.settings import Address

    address = str(Address(reachable_host(resolve(settings.host)), settings.grpc_port))
    options = [("grpc.enable_http_proxy", 0)]
    if settings.tls_cert is None:
        channel = grpc.insecure_channel(address, options)
    else:
        credentials = grpc.ssl_channel_credentials(settings.tls_cert.read_bytes())
        channel = grpc.secure_channel(address, credentials, options)
    with channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=5
            )
        except grpc.RpcError as error:
            raise ServerUnreachableError("start one: medserve serve") from error
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
