"""`medserve models` and `medserve ping`: what a gateway has, and whether it can answer."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from medserve.cli.connection import Address, CaFile, Timeout, TokenFile, connect
from medserve.cli.show.console import console_for_people, shown
from medserve.client import ModelStatus

__all__ = ["models", "ping"]

_STATES = {True: ("ready", "green"), False: ("NOT READY", "red")}
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def models(
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
