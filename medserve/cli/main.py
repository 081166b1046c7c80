"""The `medserve` command: its list of commands, and how an error leaves it.

Exit codes: 0 all fine, 1 some inputs failed, 2 wrong usage or no server. A command is imported
when it is asked for, so each starts as fast as what it needs.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from medserve import __version__
from medserve.errors import MedserveError

__all__ = ["app", "main"]

# Name of the command -> module of medserve.cli that has a function or group of that name; shown in
# this order, by what a newcomer needs first.
_COMMANDS = {
    "demo": "demo",
    "serve": "serve",
    "gateway": "gateway",
    "predict": "predict",
    "sample": "sample",
    "sort": "sort",
    "models": "models",
    "ping": "models",
    "package": "package",
    "import": "importing",
    "try": "importing",
    "init": "describing",
    "spec": "describing",
    "inspect": "package",
    "token": "access",
    "audit": "access",
    "doctor": "doctor",
}


class _Commands(TyperGroup):
    """A group that imports a command's module only when the command is needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Every command, in reading order."""
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"medserve.cli.{_COMMANDS[cmd_name]}")
        # Words of Python cannot be names of functions: those of import and try end with _.
        found = getattr(module, cmd_name, None) or getattr(module, f"{cmd_name}_")
        if isinstance(found, typer.Typer):  # a command with commands of its own
            return typer.main.get_command(found)
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(cmd_name)(found)
        return typer.main.get_command(single)


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medserve {__version__}")
        raise typer.Exit


@app.callback()
def _medserve(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Serve medical-imaging models over gRPC. Research use, not a medical device."""


def main() -> None:
    """Run the command line; every expected error becomes one line on stderr and exit code 2."""
    try:
        app()
    except MedserveError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"[bold red]error:[/] {_escape(error.message)}"
        )
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
