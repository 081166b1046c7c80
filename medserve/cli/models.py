"""`medserve models` and `medserve ping`: what a gateway serves, changes of it, and its health."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from medserve.cli.connection import Address, CaFile, Timeout, TokenFile, connect, manage
from medserve.cli.show.console import console_for_people, shown
from medserve.client import ModelStatus

__all__ = ["models", "ping"]

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
