"""`medserve token` and `medserve audit`: who may call the gateway, and who did."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["audit", "token"]


def token(
    name: Annotated[str, typer.Argument(help="Who gets it; stands in the audit log.")],
    file: Annotated[Path, typer.Option(help="The gateway's --tokens-file; made where missing.")],
    model: Annotated[
        list[str] | None, typer.Option(help="A model that it opens; every model if not given.")
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Days that it counts; no end.")] = None,
    manage: Annotated[bool, typer.Option("--manage", help="Let it change what is served.")] = False,
) -> None:
    """Make a token, keep its hash in the file and print it once; a running gateway takes it over.

    To take a token back, delete its entry.
    """
    from medserve.gateway.core.calls import EVERY_MODEL
    from medserve.gateway.core.tokens import add_token, new_token

    expires = datetime.now(UTC).date() + timedelta(days=days) if days else None
    text, entry = new_token(name, model or (EVERY_MODEL,), expires, manages=manage)
    add_token(file, entry)
    typer.echo(text)


def audit(
    log: Annotated[Path, typer.Argument(help="The gateway's --audit-log.")],
    expect: Annotated[
        str, typer.Option(help="Hash that a line must have: shows that no end was cut off.")
    ] = "",
) -> None:
    """Check that no line of an audit log was changed, removed or inserted."""
    from medserve.gateway.core.audit import verify

    verdict = verify(log, expect)
    typer.echo(f"{log}: {verdict.lines} lines, intact; last hash {verdict.last_hash}")
