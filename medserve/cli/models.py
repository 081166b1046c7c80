"""`medserve models` and `medserve ping`: what a gateway serves, changes of it, and its health."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from medserve.cli.connection import Address, CaFile, Timeout, TokenFile, connect, manage
from medserve.cli.show.console import console_for_people, shown
from medserve.cli.show.promotion import write_promotion
from medserve.client import ModelStatus
from medserve.errors import InvalidRequestError

__all__ = ["models", "ping", "promote"]

_STATES = {True: ("ready", "green"), False: ("NOT READY", "red")}
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


models = typer.Typer(
    no_args_is_help=False,
    invoke_without_command=True,
    help="List the models of a gateway, or change what it serves while it serves.",
)
_Model = Annotated[str, typer.Argument(help="Name of the model.")]
_Change = Annotated[float, typer.Option(metavar="SECONDS", min=1.0, help="Time for the change.")]


@models.callback()
def _listed(
    context: typer.Context,
    as_json: Json = False,
    address: Address = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: Timeout = 10.0,
) -> None:
    """List the models of a gateway, or change what it serves while it serves."""
    if context.invoked_subcommand is None:
        _list(as_json, address, token_file, ca_file, timeout)


@models.command("list")
def _list(
    as_json: Json = False,
    address: Address = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: Timeout = 10.0,
) -> None:
    """List the models of a gateway: versions, tasks, and whether they are ready."""
    with connect(address, token_file, ca_file, timeout) as client:
        found = client.models()
    if as_json:
        print(json.dumps([_content(status) for status in found]))
        return
    shape = Table("model", "version", "default", "task", "state", "title", box=None)
    for status in found:
        shape.add_row(
            Text(shown(status.name)),
            Text(shown(status.version)),
            "yes" if status.default else "",
            status.task or "unknown",
            Text(*_STATES[status.ready]),
            Text(shown(status.title)),
        )
    console_for_people().print(shape if found else "the gateway has no model")


@models.command("add")
def _add(
    archive: Annotated[str, typer.Argument(help="File in the server's store: mednist-1.1.mar.")],
    default: Annotated[
        bool, typer.Option("--default", help="Make it the default version.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="0: what the archive asks for.")] = 0,
    address: Address = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: _Change = 600.0,
) -> None:
    """Serve an archive that lies in the server's store, once it has answered its golden input."""
    manager = manage(address, token_file, ca_file, timeout)
    print(manager.add(archive, workers=workers, default=default))


@models.command("remove")
def _remove(
    model: _Model,
    version: Annotated[str, typer.Argument(help="Not needed where there is one.")] = "",
    address: Address = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: _Change = 600.0,
) -> None:
    """Serve a version no more, after the calls to it have ended; its archive stays."""
    print(manage(address, token_file, ca_file, timeout).remove(model, version))


@models.command("default")
def _default(
    model: _Model,
    version: Annotated[str, typer.Argument(help="For requests that name none.")],
    address: Address = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: _Change = 600.0,
) -> None:
    """Make a served version the default, also for the next start of the server."""
    print(manage(address, token_file, ca_file, timeout).set_default(model, version))


@models.command("rollback")
def _rollback(
    model: _Model,
    address: Address = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: _Change = 600.0,
) -> None:
    """Make the default version of before the default again; it is loaded where it has gone."""
    version = manage(address, token_file, ca_file, timeout).roll_back(model)
    print(f"{version} is the default version of {model} again")


@models.command("scale")
def _scale(
    model: _Model,
    workers: Annotated[int, typer.Argument(min=1, help="Worker processes.")],
    version: Annotated[str, typer.Option(help="The default version if not given.")] = "",
    address: Address = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: _Change = 600.0,
) -> None:
    """Change the number of workers of a version, until the next start of the server."""
    print(manage(address, token_file, ca_file, timeout).scale(model, workers, version))


@models.command("route")
def _route(
    model: _Model,
    canary: Annotated[str, typer.Option(help="Version for a share of the callers.")] = "",
    canary_share: Annotated[float, typer.Option(min=0, max=1, help="Of callers, or cases.")] = 0.0,
    caller: Annotated[
        list[str] | None, typer.Option(help="Name of a token that gets it whatever the share.")
    ] = None,
    shadow: Annotated[str, typer.Option(help="Version that gets copies of calls.")] = "",
    shadow_share: Annotated[float, typer.Option(min=0, max=1, help="Of the calls.")] = 0.0,
    address: Address = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: _Change = 600.0,
) -> None:
    """Lead a share of the callers, and copies of a share of the calls, to a version.

    Without options the default version answers everybody again.
    """
    manage(address, token_file, ca_file, timeout).set_route(
        model,
        canary=canary,
        canary_share=canary_share,
        canary_callers=caller or (),
        shadow=shadow,
        shadow_share=shadow_share,
    )
    told = [f"{canary_share:.0%} of the callers get {canary}"] if canary else []
    told += [f"{shadow_share:.0%} of the calls are copied to {shadow}"] if shadow else []
    print(f"{model}: {', '.join(told) or 'the default version answers everybody'}")


_Allowed = Annotated[
    float,
    typer.Option(min=1e-6, max=0.999, help="Share of other classes, or what Dice may lack of 1."),
]
_Report = Annotated[
    Path | None, typer.Option(metavar="FILE.html", help="Write the figures and plots there.")
]


@models.command("evidence")
def _evidence(
    model: _Model,
    allowed: _Allowed = 0.02,
    report: _Report = None,
    as_json: Json = False,
    address: Address = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: _Change = 600.0,
) -> None:
    """Tell how the answers of the shadowed version compare with those that callers got."""
    found = manage(address, token_file, ca_file, timeout).evidence(model, allowed)
    if report is not None:
        write_promotion(report, found, promoted=False)
    print(json.dumps(found) if as_json else _told(found))


def promote(
    model: _Model,
    version: Annotated[str, typer.Argument(help="The version that was compared.")],
    allowed: _Allowed = 0.02,
    report: _Report = None,
    address: Address = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: _Change = 600.0,
) -> None:
    """Make a version the default, if the calls copied to it exclude that it is worse than allowed.

    Begin with medserve models route MODEL --shadow VERSION --shadow-share 0.2. The figures stand in
    the audit log, and with --report in a page.
    """
    manager = manage(address, token_file, ca_file, timeout)
    try:
        found, promoted = manager.promote(model, version, allowed), True
    except InvalidRequestError:
        if report is not None:
            write_promotion(report, manager.evidence(model, allowed), promoted=False)
        raise
    if report is not None:
        write_promotion(report, found, promoted)
    print(f"{version} is the default version of {model}: {_told(found)}")


def _told(found: Mapping[str, Any]) -> str:
    """Say in one line what a comparison has found."""
    return (
        f"{found['pairs']} answers of {found['after']} compared with those of {found['before']}, "
        f"{found['failed']} failed, {found['dropped']} copies dropped; it may be worse by "
        f"{found['worst']:.2%} (95 %), {found['allowed']:.2%} is allowed"
    )


def ping(
    as_json: Json = False,
    address: Address = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: Timeout = 10.0,
) -> None:
    """Tell whether a gateway can answer: it is up, and every model has proven itself.

    Exit code: 0 all ready, 1 some model is not or there is none, 2 no server.
    """
    with connect(address, token_file, ca_file, timeout) as client:
        health = client.ping()
        found = client.models()
    ready = bool(found) and all(status.ready for status in found)
    if as_json:
        content = {"ready": ready, "process": health, "models": [_content(each) for each in found]}
        print(json.dumps(content))
    else:
        console = console_for_people()
        for status in found:
            word, _ = _STATES[status.ready]
            console.print(Text(f"{shown(status.name)} {shown(status.version)}: {word}"))
        console.print("ready" if ready else "not ready" if found else "not ready: no model")
    if not ready:
        raise typer.Exit(1)


def _content(status: ModelStatus) -> dict[str, object]:
    """The members of a model in JSON, without its long texts."""
    content = dataclasses.asdict(status)
    return {key: value for key, value in content.items() if key not in ("card", "metrics")}
