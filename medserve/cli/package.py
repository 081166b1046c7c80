"""`medserve package` builds model archives; `medserve inspect` shows and verifies one."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from medserve.archive.build import build_archive, find_checkout, room_names
from medserve.archive.read import ArchiveInfo, inspect_archive
from medserve.errors import ArchiveError
from medserve.settings import Settings

__all__ = ["inspect", "package"]


def package(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Rooms of models/ to package.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Package every room.")] = False,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="Package this variant of NAME, such as svm of mednist; repeatable."),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Folder for the archives.", show_default="model_store")
    ] = None,
) -> None:
    """Build one self-contained archive (.mar) per model from its trained weights.

    A variant is another version of the same model: its archive stands beside the model's own, and
    a request chooses by version.
    """
    root = find_checkout()
    wanted = room_names(root) if every else names or []
    if not wanted:
        raise typer.BadParameter(f"give --all or a NAME out of: {', '.join(room_names(root))}")
    if variant and (every or len(wanted) != 1):
        raise typer.BadParameter("--variant: expected exactly one NAME whose variants are meant")
    folder = store or Settings.from_environment().store
    failures = 0
    for name, version in itertools.product(wanted, variant or [""]):
        try:
            info = inspect_archive(build_archive(name, folder, root, version))
        except ArchiveError as error:
            failures += 1
            Console(stderr=True, soft_wrap=True).print(
                f"[red]{escape(name)}:[/] {escape(str(error))}"
            )
            continue
        Console(soft_wrap=True, highlight=False).print(
            f"{escape(str(info.path))}  {_size(info.size_bytes)}  {info.digest}"
        )
    if failures:
        raise typer.Exit(1)


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE.mar", help="The archive to look into.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show card, labels, metrics and digests of an archive, and verify every member."""
    info = inspect_archive(file)
    if as_json:
        typer.echo(json.dumps(_as_json(info), indent=2, ensure_ascii=False))
    else:
        _print_info(info, Console(highlight=False))
    if not info.intact:
        raise typer.Exit(1)


def _as_json(info: ArchiveInfo) -> dict[str, Any]:
    return {
        "path": str(info.path),
        "name": info.name,
        "version": info.version,
        "title": info.spec.title,
        "task": info.spec.task.value,
        "labels": list(info.spec.labels),
        "metrics": dict(info.metrics),
        "size_bytes": info.size_bytes,
        "sha256": info.sha256,
        "digest": info.digest,
        "medserve_version": info.medserve_version,
        "git_commit": info.git_commit,
        "versions": dict(info.versions),
        "members": [dataclasses.asdict(member) for member in info.members],
        "intact": info.intact,
        "problems": list(info.problems),
    }


def _print_info(info: ArchiveInfo, console: Console) -> None:
    """Everything of foreign origin is made plain: a card cannot paint over the verdict."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    rows = {
        "model": f"{info.name} {info.version}: {info.spec.title}",
        "labels": ", ".join(info.spec.labels),
        "metrics": ", ".join(_figures(info)),
        "built from": f"commit {info.git_commit}, medserve {info.medserve_version}",
        "with": ", ".join(f"{key} {value}" for key, value in info.versions.items()),
        "file": f"{info.path}, {_size(info.size_bytes)}",
        "sha256": info.sha256,
        "digest": info.digest,
    }
    for key, value in rows.items():
        facts.add_row(key, _plain(value))
    console.print(facts)
    console.print()
    console.print(_members(info))
    console.print()
    console.print(Markdown(_printable(_intended_use(info.card))))
    console.print()
    if info.intact:
        console.print(f"[green]verified:[/] all {len(info.members)} members are as packaged")
    for problem in info.problems:
        console.print(f"[bold red]altered:[/] {_plain(problem)}", soft_wrap=True)


def _figures(info: ArchiveInfo) -> list[str]:
    """Numbers of the evaluation, six digits at most."""
    figures = {key: value for key, value in info.metrics.items() if isinstance(value, int | float)}
    return [f"{key} {value:.6g}" for key, value in figures.items()]


def _members(info: ArchiveInfo) -> Table:
    table = Table("member", "size", "sha256", "", box=None, padding=(0, 2, 0, 0))
    for member in info.members:
        table.add_row(
            _plain(member.path),
            _size(member.size_bytes),
            member.sha256[:12] or "unreadable",
            "[green]ok[/]" if member.intact else "[bold red]ALTERED[/]",
        )
    return table


def _intended_use(card: str) -> str:
    """Title and first section of the card: what the model is for."""
    sections = card.split("\n## ")
    return "\n## ".join(sections[:2]).strip()


def _plain(text: str) -> str:
    """Text without markup and without the codes that move a terminal's cursor."""
    return escape(_printable(text))


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() or each == "\n" else "\ufffd" for each in text)


def _size(size_bytes: int) -> str:
    if size_bytes < 1000:
        return f"{size_bytes} B"
    if size_bytes < 1_000_000:
        return f"{size_bytes / 1000:.1f} kB"
    return f"{size_bytes / 1_000_000:.1f} MB"
