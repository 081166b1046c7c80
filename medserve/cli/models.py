"""`medserve models` and `medserve ping`: what a server has, and whether it can answer."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from medserve.cli.connection import (
    Address,
    CaFile,
    ManagementAddress,
    Timeout,
    TokenFile,
    connect,
)
from medserve.cli.inputs import shown
from medserve.cli.records import console_for_people
from medserve.client import ModelStatus

__all__ = ["models", "ping"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def models(
    as_json: Json = False,
    address: Address = None,
    management_address: ManagementAddress = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: Timeout = 10.0,
) -> None:
    """List the models of a server: versions, workers that are ready, batch size."""
    with connect(address, token_file, ca_file, timeout, management_address) as client:
        found = client.models()
    if as_json:
        print(json.dumps([_content(status) for status in found]))
        return
    shape = Table("model", "version", "default", "workers ready", "batch size", "waiting", box=None)
    for status in found:
        shape.add_row(
            Text(shown(status.name)),
            Text(shown(status.version)),
            "yes" if status.default else "",
            Text(f"{status.workers_ready}/{status.workers}", style=_colour(status)),
            str(status.batch_size),
            str(status.pending),
        )
    console_for_people().print(shape if found else "the server has no model")


def ping(
    as_json: Json = False,
    address: Address = None,
    management_address: ManagementAddress = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: Timeout = 10.0,
) -> None:
    """Tell whether a server can answer: it is up, and every model has a worker that is ready.

    Exit code: 0 all ready, 1 some model is not or there is none, 2 no server.
    """
    with connect(address, token_file, ca_file, timeout, management_address) as client:
        health = client.ping()
        found = client.models()
    ready = bool(found) and all(status.ready for status in found)
    if as_json:
        content = {"ready": ready, "process": health, "models": [_content(each) for each in found]}
        print(json.dumps(content))
    else:
        console = console_for_people()
        for status in found:
            word = "ready" if status.ready else "NOT READY"
            console.print(Text(f"{shown(status.name)} {shown(status.version)}: {word}"))
        console.print("ready" if ready else "not ready" if found else "not ready: no model")
    if not ready:
        raise typer.Exit(1)


def _content(status: ModelStatus) -> dict[str, object]:
    return {**dataclasses.asdict(status), "ready": status.ready}


def _colour(status: ModelStatus) -> str:
    if not status.ready:
        return "red"
    return "green" if status.workers_ready == status.workers else "yellow"
