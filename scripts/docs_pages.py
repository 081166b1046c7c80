"""Make the pages of the documentation that follow from the project: cards, commands, reference.

mkdocs calls `on_config` and `on_files` (https://www.mkdocs.org/user-guide/configuration/#hooks).
"""

from __future__ import annotations

import re
from pathlib import Path

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

import models
from medserve.cli.main import app

__all__ = ["card_pages", "command_page", "on_config", "on_files"]

_DECISIONS = Path("decisions")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the parts `Cards` and `Decisions` of the navigation with what there is."""
    decisions = sorted(Path(config.docs_dir).glob(f"{_DECISIONS}/[0-9]*.md"))
    parts = {
        "Cards": list(card_pages()),
        "Decisions": [
            f"{_DECISIONS}/{name}" for name in ("index.md", *(p.name for p in decisions))
        ],
    }
    for entry in config.nav or []:
        for title in entry.keys() & parts.keys():
            entry[title] = parts[title]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those that lie in the folder `docs`."""
    pages = {
        **card_pages(),
        "reference/cli.md": command_page(),
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def card_pages() -> dict[str, str]:
    """Return the path and the text of each model card, those of the variants included."""
    pages = {}
    for name in models.names():
        for variant in ("", *models.variants(name)):
            card = models.room(name, variant) / "README.md"
            path = "-".join(filter(None, (name, variant)))
            pages[f"cards/{path}.md"] = card.read_text(encoding="utf-8")
    return pages


def command_page() -> str:
    """Return the reference of the command line, taken from the commands themselves."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="medserve")
    text = get_docs_for_click(obj=command, ctx=context, name="medserve", title="Command line")
    return re.sub(r"\[dim\](\w+)\[/\]", r"Variable `\1`.", text)
