"""Make the pages of the documentation that follow from the project: cards, commands, reference.

mkdocs calls `on_config` and `on_files` (https://www.mkdocs.org/user-guide/configuration/#hooks).
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

import models
from medserve import spec, tasks
from medserve.cli.main import app

__all__ = [
    "card_pages",
    "command_page",
    "configuration_page",
    "on_config",
    "on_files",
    "options_page",
]

_DECISIONS = Path("decisions")
_ABOUT_OPTIONS = (
    "What a caller may ask of a model, by its task. The names are the keys of the JSON object "
    "`params` in a gRPC call, the keys of a query over HTTP, the parameters of the Open Inference "
    "Protocol, and, with dashes, the flags of the command line. A model may narrow the bounds. "
    "Where no default is given, the model decides."
)


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
        "reference/model-config.md": configuration_page(spec.schema()),
        "reference/options.md": options_page(),
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


def options_page() -> str:
    """Return the reference of the options of a call, a table for each task."""
    lines = ["# Options of a call", "", _ABOUT_OPTIONS]
    for task, options in tasks.OPTIONS.items():
        lines += ["", f"## {task.value.capitalize()}", ""]
        lines += ["| option | value | default | meaning |", "|---|---|---|---|"]
        for option in tasks.declared(options):
            default = "" if option.default is None else f"`{json.dumps(option.default)}`"
            cells = (f"`{option.key}`", option.expected, default, option.help)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def configuration_page(schema: Mapping[str, Any]) -> str:
    """Return the reference of `model-config.yaml`, a table for each kind of section."""
    definitions: Mapping[str, Any] = schema["$defs"]
    keys = _keys(schema, definitions)
    lines = ["# model-config.yaml"]
    for name, paths in keys.items():
        content = definitions[name]
        if any(paths):
            lines += ["", f"## {', '.join(f'`{path}`' for path in paths)} {{#{name.lower()}}}"]
        lines += ["", inspect.cleandoc(content["description"]), ""]
        lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
        for key, value in content["properties"].items():
            sections = _sections(value, definitions)
            links = [f"section [{key}](#{each.lower()})" for each in sections]
            cells = [f"`{key}`", *(links or [_values(value, definitions)])]
            cells.append("required" if key in content["required"] else _default(value, sections))
            lines.append(f"| {' | '.join(cells)} | {value.get('description', '')} |")
    return "\n".join([*lines, ""])


def _keys(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return every section by the name of its definition, with the keys under which it stands."""
    found: dict[str, list[str]] = {}
    waiting = [("", name) for name in _sections(schema, definitions)]
    while waiting:
        path, name = waiting.pop(0)
        found.setdefault(name, []).append(path)
        for key, value in definitions[name]["properties"].items():
            inside = f"{path}.{key}".lstrip(".")
            waiting += [(inside, each) for each in _sections(value, definitions)]
    return found


def _sections(value: Mapping[str, Any], definitions: Mapping[str, Any]) -> list[str]:
    """Return the names of the definitions with keys of their own that a value may be."""
    if "anyOf" in value:
        return [name for each in value["anyOf"] for name in _sections(each, definitions)]
    if isinstance(value.get("additionalProperties"), Mapping):
        return _sections(value["additionalProperties"], definitions)
    if value.get("items"):  # of a tuple of one length it is false
        return _sections(value["items"], definitions)
    name = value.get("$ref", "").removeprefix("#/$defs/")
    return [name] if "properties" in definitions.get(name, {}) else []


def _values(value: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Say in words what a key may hold."""
    content = definitions.get(value.get("$ref", "").removeprefix("#/$defs/"), value)
    if "anyOf" in content:
        words = [_values(each, definitions) for each in content["anyOf"]]
        return " or ".join(word for word in words if word != "null")
    if "enum" in content:
        return ", ".join(f"`{each}`" for each in content["enum"])
    if "prefixItems" in content:  # so many, and no more
        return f"{len(content['prefixItems'])} of {_values(content['prefixItems'][0], definitions)}"
    if content["type"] == "array":
        return f"list of {_values(content['items'], definitions)}"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {content[name]}" for name, sign in bounds.items() if name in content]
    return ", ".join([content["type"], *limits])


def _default(value: Mapping[str, Any], sections: Sequence[str]) -> str:
    default = value.get("default")
    return "" if default is None or sections else f"`{json.dumps(default)}`"
