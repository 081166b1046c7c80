"""A progress bar on standard error, so that standard output stays for the answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["counted"]

T = TypeVar("T")


def counted(items: Iterable[T], total: int, title: str) -> Iterator[T]:
    """The items as they come, with a bar that shows how many came; none where nobody watches."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal or total < 2,
    )
    with bar:
        task = bar.add_task(title, total=total)
        for item in items:
            yield item
            bar.advance(task)
