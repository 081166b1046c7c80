"""`medserve dicom`: a DICOM node between a PACS and the models, and what its operator needs."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medserve import __version__, tracing
from medserve.cli.ready import ReadyFile, announced_in
from medserve.cli.show.console import configure_logging
from medserve.errors import ConfigError
from medserve.settings import Address, Settings

if TYPE_CHECKING:
    import sqlite3

    from medserve.dicom.node import Node, NodeSettings
    from medserve.dicom.receive import ReceiverSettings
    from medserve.dicom.rules import Rules
    from medserve.dicom.send import Sender
    from medserve.dicom.web.server import WebServer
    from medserve.gateway.core.tls import CertificateFiles

__all__ = ["dicom"]

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_NEEDED = ("highdicom", "prometheus_client", "pynetdicom")
_State = Annotated[Path, typer.Option(help="The node's folder: its queue and the images.")]
_Rules = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, help="The file of rules (TOML).")
]
_Title = Annotated[str, typer.Option(help="The AE title of this node.")]
_Ids = Annotated[list[int], typer.Argument(help="Numbers of tasks, as `queue` shows them.")]

dicom = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Answer a PACS: images come in over DICOM, segmentations and reports go back.",
)


@dicom.command()
def serve(  # one parameter an option: the command line is the interface
    rules: _Rules,
    state: _State = Path("dicom-node"),
    destination: Annotated[
        list[str] | None,
        typer.Option(
            help="Where results go: AE@host:port, tls:AE@host:port, or the URL of a STOW-RS "
            "service."
        ),
    ] = None,
    ae_title: _Title = "MEDSERVE",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="DICOM port; 0 takes a free one.")] = 11112,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="Who may send: AE, AE@address or AE@network/bits, * for any title. Must be given "
            "where the node listens beyond loopback."
        ),
    ] = None,
    address: Annotated[str, typer.Option(help="The gateway's gRPC port.")] = "127.0.0.1:8001",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one answer.")] = 600.0,
    tls_cert: Annotated[
        Path | None, typer.Option(help="TLS certificate of both ports (PEM).")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="TLS private key of both (PEM).")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="Senders must show a certificate of this authority (PEM).")
    ] = None,
    destination_ca: Annotated[
        Path | None,
        typer.Option(
            help="Authority (PEM) of destinations with TLS; the system's if left out. One that "
            "asks for a certificate is shown --tls-cert."
        ),
    ] = None,
    web: Annotated[
        str | None, typer.Option(help="Open the DICOMweb face at this address, host:port.")
    ] = None,
    web_tokens: Annotated[
        Path | None,
        typer.Option(
            help="Tokens for DICOMweb (`medserve token --model dicom`). Must be given, or "
            "--client-ca, where that face listens beyond loopback."
        ),
    ] = None,
    associations: Annotated[int, typer.Option(min=1, help="Open at the same time.")] = 20,
    max_gb: Annotated[float, typer.Option(min=0.001, help="Most stored images, GB.")] = 200.0,
    free_percent: Annotated[float, typer.Option(min=0, max=99, help="Disk that stays free.")] = 5.0,
    keep_hours: Annotated[float, typer.Option(min=0, help="Keep images after the results.")] = 24.0,
    held_hours: Annotated[float, typer.Option(min=0, help="Keep images of held tasks.")] = 336.0,
    remember_days: Annotated[
        float, typer.Option(min=0, help="Know a series again, so that it is answered once.")
    ] = 365.0,
    metrics: Annotated[
        str, typer.Option(help="Address of /dicom, /metrics and /healthz.")
    ] = "127.0.0.1:8012",
    audit_log: Annotated[Path | None, typer.Option(help="A line for each task; chained.")] = None,
    ready_file: ReadyFile = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Receive images, ask the models, and send the results back, until Ctrl-C or SIGTERM.

    The token for the gateway is read from MEDSERVE_TOKEN, its authority from MEDSERVE_CA_FILE, and
    the token for STOW-RS from MEDSERVE_DICOM_TOKEN.
    """
    configure_logging(log_level)
    _require_dicom()
    from medserve.dicom import peers
    from medserve.dicom.node import Keep, NodeSettings, Room
    from medserve.dicom.rules import Rules
    from medserve.dicom.send import Sender, trusting

    certificates = _certificates(tls_cert, tls_key, client_ca)
    settings = NodeSettings(
        receiver=_receiver(ae_title, Address(host, port), allow or [], associations, certificates),
        destinations=tuple(peers.read_destination(each) for each in destination or []),
        room=Room(most_bytes=int(max_gb * 1e9), free_share=free_percent / 100),
        keep=Keep(keep_hours, held_hours, remember_days),
    )
    known = Rules.read(rules)
    token = Settings.from_environment().dicom_token
    trusted = trusting(destination_ca, tls_cert, tls_key)
    sender = Sender(settings.receiver.ae_title, token, trusted)
    with _node(settings, known, sender, state, (address, timeout), audit_log) as node:
        face = None
        if web is not None:
            face = _web(node, _listening(web, "--web"), certificates, web_tokens)
        with announced_in(ready_file) as ready:
            _run_until_signal(node, _listening(metrics, "--metrics"), face, ready)


@dicom.command()
def check(
    rules: _Rules,
    folder: Annotated[Path, typer.Argument(exists=True, help="A folder with DICOM files.")],
    calling: Annotated[str, typer.Option(help="The AE title that they would come from.")] = "",
) -> None:
    """Say what a node would do with the files of a folder; nothing is sent anywhere."""
    _require_dicom()
    from medserve.dicom.dry_run import dry_run
    from medserve.dicom.headers import quiet_libraries
    from medserve.dicom.rules import Rules

    quiet_libraries()
    console = Console(highlight=False, soft_wrap=True)
    table = Table("series", "images", "rule", "model", "verdict", box=None, pad_edge=False)
    outcome = dry_run(Rules.read(rules), folder, calling)
    for row in outcome.rows:
        table.add_row(str(row.series), str(row.images), row.rule, row.model, escape(row.verdict))
    console.print(table)
    console.print(f"{outcome.skipped} files are no DICOM images")
    raise typer.Exit(
        1 if any(row.rule and row.verdict != "complete" for row in outcome.rows) else 0
    )


@dicom.command()
def echo(
    peer: Annotated[str, typer.Argument(help="AE@host:port or tls:AE@host:port")],
    ae_title: _Title = "MEDSERVE",
    destination_ca: Annotated[
        Path | None, typer.Option(help="Its authority (PEM), where it has TLS.")
    ] = None,
) -> None:
    """Ask another DICOM node whether it is there (C-ECHO)."""
    _require_dicom()
    from medserve.dicom import send
    from medserve.dicom.peers import read_destination

    other = read_destination(peer)
    if other.address is None:
        raise ConfigError(f"expected AE@host:port, got {peer!r}")
    is_there = send.echo(ae_title, other, send.trusting(destination_ca))
    typer.echo(f"{peer} answers" if is_there else f"{peer} does not answer")
    raise typer.Exit(0 if is_there else 1)


@dicom.command()
def pull(
    service: Annotated[str, typer.Argument(help="URL of a DICOMweb service.")],
    study: Annotated[str, typer.Argument(help="Study Instance UID.")],
    series: Annotated[str | None, typer.Option(help="One series alone: its UID.")] = None,
    to: Annotated[
        str, typer.Option(help="The node that gets the objects.")
    ] = "MEDSERVE@127.0.0.1:11112",
    ae_title: Annotated[str, typer.Option(help="The AE title to send under.")] = "PULL",
    destination_ca: Annotated[
        Path | None, typer.Option(help="Authority (PEM) of both, where they have TLS.")
    ] = None,
) -> None:
    """Fetch a study from a DICOMweb archive (WADO-RS), and send it to a running node.

    The token of the service is read from MEDSERVE_DICOM_TOKEN.
    """
    _require_dicom()
    from medserve.dicom.peers import read_destination
    from medserve.dicom.pull import fetch
    from medserve.dicom.send import forward, trusting

    node = read_destination(to)
    if node.address is None:
        raise ConfigError(f"--to: expected AE@host:port, got {to!r}")
    token, tls = Settings.from_environment().dicom_token, trusting(destination_ca)
    with tempfile.TemporaryDirectory() as folder:
        files = fetch(service, study, series, Path(folder), token, tls)
        statuses = forward(ae_title, node, files, tls)
    taken = statuses[0]
    typer.echo(f"{taken} of {len(files)} objects were taken by {to}")
    for status, number in sorted(statuses.items()):
        if status != 0:
            said = "not accepted" if status < 0 else f"status {status:04X}"
            typer.echo(f"{number}: {said}")
    raise typer.Exit(0 if taken == len(files) else 1)


@dicom.command()
def queue(
    state: _State = Path("dicom-node"),
    everything: Annotated[bool, typer.Option("--all", help="Answered tasks, too.")] = False,
) -> None:
    """Show what waits, what is held and why; no patient is named."""
    from medserve.dicom import table as rows

    with _database(state) as database:
        console = Console(highlight=False, soft_wrap=True)
        table = Table("task", "series", "rule", "images", "state", "tries", "reason", box=None,
                      pad_edge=False)  # fmt: skip
        shown = ("id", "series", "rule", "images", "state", "attempts", "reason")
        for row in rows.queue(database, everything=everything):
            table.add_row(*(escape(str(row[name])) for name in shown))
        console.print(table)
        for row in rows.undelivered(database):
            console.print(
                f"task {row['task']}: {row['objects']} objects {row['state']} for "
                f"{escape(row['destination'])} {escape(row['reason'])}"
            )
        console.print(_summary(database))


@dicom.command()
def retry(ids: _Ids, state: _State = Path("dicom-node")) -> None:
    """Let held tasks, and held results of theirs, be tried again."""
    with _database(state) as database:
        for task in ids:
            changed = database.execute(
                "UPDATE task SET state = 'waiting', attempts = 0, reason = '' "
                "WHERE id = ? AND state = 'held'", (task,)
            ).rowcount  # fmt: skip
            changed += database.execute(
                "UPDATE delivery SET state = 'waiting', attempts = 0, reason = '' WHERE "
                "state = 'held' AND object IN (SELECT sop_uid FROM object WHERE task = ?)", (task,)
            ).rowcount  # fmt: skip
            typer.echo(f"task {task}: {'tried again' if changed else 'nothing of it is held'}")


@dicom.command()
def forget(ids: _Ids, state: _State = Path("dicom-node")) -> None:
    """Delete images, results and rows of the tasks' series; sent again, they count as new."""
    from medserve.dicom import table as rows

    with _database(state) as database:
        for task in ids:
            found = database.execute("SELECT series FROM needs WHERE id = ?", (task,)).fetchall()
            if not found:
                typer.echo(f"task {task}: there is none")
                continue
            for row in found:
                rows.forget(database, state, row["series"])
            typer.echo(f"task {task}: its series is forgotten")


def _receiver(
    ae_title: str,
    address: Address,
    allow: Sequence[str],
    associations: int,
    certificates: CertificateFiles | None,
) -> ReceiverSettings:
    """Return how images come in; a node beyond loopback has to name its senders."""
    from medserve.dicom import peers
    from medserve.dicom.receive import ReceiverSettings

    if address.host not in _LOOPBACK and not allow:
        raise ConfigError(
            "--allow: expected the senders of a node that listens beyond loopback, got none; name "
            "each as AE@address, or give '*' to admit everybody"
        )
    return ReceiverSettings(
        ae_title=peers.ae_title(ae_title, "--ae-title"),
        address=address,
        senders=tuple(peers.Sender.parse(each) for each in allow),
        associations=associations,
        tls=None if certificates is None else certificates.context(),
    )


@contextmanager
def _node(
    settings: NodeSettings,
    rules: Rules,
    sender: Sender,
    state: Path,
    gateway: tuple[str, float],
    audit_log: Path | None,
) -> Iterator[Node]:
    """Open a node with its queue, its gateway (address, seconds for one answer) and its logs."""
    from medserve.dicom.ask import Gateway
    from medserve.dicom.node import Clock, Node
    from medserve.dicom.spool import Spool
    from medserve.gateway.core.audit import AuditLog

    environment = Settings.from_environment()
    address, timeout_s = gateway
    with contextlib.ExitStack() as stack:
        tracing.begin("medserve-dicom", __version__)
        stack.callback(tracing.end)
        spool = stack.enter_context(contextlib.closing(Spool(state, Clock())))
        asked = Gateway(
            address,
            token=environment.token,
            ca_file=environment.ca_file,
            scratch=spool.receiving,
            timeout_s=timeout_s,
        )
        stack.callback(asked.close)
        audit = None
        if audit_log is not None:
            audit = stack.enter_context(contextlib.closing(AuditLog(audit_log)))
        yield Node(settings, rules, spool, asked, sender, audit)


def _web(
    node: Node, address: Address, certificates: CertificateFiles | None, tokens: Path | None
) -> WebServer:
    """Make the DICOMweb face, which is closed to strangers unless it listens on loopback alone."""
    for name in ("starlette", "uvicorn", "python_multipart"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"--web needs {name}; install it with: pip install 'medserve[dicom]'")
    from medserve.dicom.web.app import WebLimits, create_app
    from medserve.dicom.web.server import WebServer
    from medserve.gateway.core.tokens import TokenFile

    on_loopback = address.host in _LOOPBACK
    asks_for_certificates = certificates is not None and certificates.client_ca is not None
    if not (on_loopback or tokens or asks_for_certificates):
        raise ConfigError(
            "--web: expected --web-tokens or --client-ca for a face that listens beyond loopback, "
            "got neither: everybody could read the images"
        )
    hosts = tuple(_LOOPBACK) if on_loopback else ("*",)
    app = create_app(
        node.spool,
        node.intake,
        None if tokens is None else TokenFile(tokens),
        WebLimits(node.settings.room.most_bytes, hosts),
    )
    return WebServer(app, address, certificates)


def _run_until_signal(
    node: Node,
    metrics: Address,
    web: WebServer | None,
    ready: Callable[[dict[str, str]], None],
) -> None:
    from medserve.dicom.watch import Watch

    console = Console(highlight=False, soft_wrap=True)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    watch = Watch(node, metrics)
    node.start()
    addresses = {"dicom": str(node.receiver.address), "metrics": str(watch.address)}
    if web is not None:
        web.start()
        addresses["web"] = str(web.address)
    console.print(
        f"DICOM [bold]{node.settings.receiver.ae_title}@{node.receiver.address}[/], metrics "
        f"http://{watch.address}/metrics, state {escape(str(node.spool.folder))}"
    )
    if web is not None:
        console.print(f"DICOMweb at {web.address}/dicom-web")
    try:
        ready(addresses)
        ended.wait()
        console.print("stopping; what is not done goes on at the next start")
    finally:
        if web is not None:
            web.stop()
        node.stop()
        watch.stop()


def _certificates(
    certificate: Path | None, key: Path | None, authority: Path | None
) -> CertificateFiles | None:
    from medserve.gateway.core.tls import CertificateFiles

    if certificate is None and key is None and authority is None:
        return None
    if certificate is None or key is None:
        raise ConfigError("TLS: expected --tls-cert and --tls-key together, got one of them")
    return CertificateFiles(certificate, key, authority)


def _summary(database: sqlite3.Connection) -> str:
    from medserve.dicom.table import counts

    found = counts(database)

    def told(states: Counter[str]) -> str:
        return ", ".join(f"{number} {state}" for state, number in sorted(states.items())) or "none"

    return (
        f"series: {told(found['series'])}; tasks: {told(found['task'])}; results to send: "
        f"{told(found['delivery'])}; {found['bytes']['images'] / 1e6:.1f} MB of images"
    )


@contextmanager
def _database(state: Path) -> Iterator[sqlite3.Connection]:
    """Open the table of a node, which may be running."""
    _require_dicom()
    from medserve.dicom.table import open_database

    if not (state / "node.sqlite").is_file():
        raise ConfigError(f"--state: expected the folder of a node, got {state}")
    database = open_database(state)
    try:
        yield database
    finally:
        database.close()


def _require_dicom() -> None:
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"the DICOM node needs {', '.join(missing)}; install it with: "
            "pip install 'medserve[dicom]'"
        )


def _listening(text: str, source: str) -> Address:
    """Read an address whose port may be 0."""
    host, colon, port = text.rpartition(":")
    return Address(host, 0) if colon and port == "0" else Address.parse(text, source)
