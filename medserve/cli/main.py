"""The `medserve` command: its list of commands, and how an error leaves it.

Exit codes: 0 all fine, 1 some inputs failed, 2 wrong usage or no server. A command is imported
when it is asked for, so each starts as fast as what it needs.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from medserve import __version__
from medserve.errors import MedserveError

__all__ = ["app", "main"]

# Name of the command -> module of medserve.cli that has a function, or a group of commands, of that
# name; shown in this order, by what a newcomer needs first.
_COMMANDS = {
    "demo": "demo",
    "serve": "serve",
    "gateway": "gateway",
    "predict": "predict",
    "sample": "sample",
    "sort": "sort",
    "review": "review",
    "batch": "batch",
    "models": "models",
    "promote": "models",
    "ping": "models",
    "dicom": "dicom",
    "package": "package",
    "import": "importing",
    "try": "importing",
    "init": "describing",
    "spec": "describing",
    "inspect": "package",
    "sketch": "sketching",
    "keygen": "signing",
    "sign": "signing",
    "verify": "signing",
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
        if isinstance(found, typer.Typer):
            group = typer.main.get_command(found)
            assert isinstance(group, TyperGroup)
            group.name = cmd_name  # also in the reference of the commands
            if group.callback is not None and group.invoke_without_command:
                group.callback = _ending_in_one_line(group.callback)
            for each in group.commands.values():
                assert each.callback is not None
                each.callback = _ending_in_one_line(each.callback)
            return group
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(cmd_name)(_ending_in_one_line(found))
        return typer.main.get_command(single)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the first argument names, or say which one may be meant."""
        if args[0] not in _COMMANDS and not args[0].startswith("-"):
            from medserve.cli.show.console import nearest, shown

            ctx.fail(f"There is no command {shown(args[0])}{nearest(args[0], _COMMANDS)}.")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Commands,
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
    """Run the command line."""
    app()


def _ending_in_one_line(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command, of which every expected failure ends in one line on standard error.

    Exit code: 2, and 130 after Ctrl-C, as shells have it.
    """

    @functools.wraps(command)
    def run(*arguments: Any, **named: Any) -> None:
        try:
            command(*arguments, **named)
            sys.stdout.flush()
        except MedserveError as error:
            _end(error.message)
        except KeyboardInterrupt:
            _end("interrupted; run the same command again to go on", 130)
        except OSError as error:
            _leave_standard_output()
            _end(_what_failed(error))

    return run


def _end(message: str, code: int = 2) -> NoReturn:
    text = Text.assemble(("error:", "bold red"), " ", message)
    Console(stderr=True, soft_wrap=True, highlight=False).print(text)
    raise typer.Exit(code)


def _what_failed(error: OSError) -> str:
    if error.errno == errno.EPIPE:
        return "whoever read the output has closed it; the rest was not written"
    where = "the output" if error.filename is None else str(error.filename)
    return f"{where}: {error.strerror or error}; mend that and run the same command again"


def _leave_standard_output() -> None:
    """Let what is still to be written go nowhere, so that the interpreter ends quietly."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


if __name__ == "__main__":
    main()
