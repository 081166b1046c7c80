"""The pages of the documentation agree with the tree and with the commands."""

from __future__ import annotations

import ast
import importlib
import re
import stat
import tomllib
from pathlib import Path

import pytest
import typer

import models
from medserve.cli.main import app
from medserve.gateway.faces.page import PageLimits
from medserve.run_folder import RunFolder
from medserve.spec import schema
from medserve.tasks import OPTIONS, declared
from scripts.docs_pages import card_pages, command_page, configuration_page, options_page
from tests.pages import blocks

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "models").rglob("README.md")),
]
_FILE = re.compile(
    r"(?<![\w/.-])((?:annotation|benchmarks|docker|docs|handlers|k8s|medserve|models|protos|scripts"
    r"|simulation|tests|training)"
    r"/[\w/.-]+\.(?:json|md|proto|py|sh|ya?ml))\b"
)
_OWN = ("annotation", "handlers", "medserve", "models", "simulation", "training")
_ROOM_OF_THE_READER = re.compile(r"<name>|/clinic/")  # what a reader is told to make


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    named = set(_FILE.findall(page.read_text(encoding="utf-8")))
    named = {path for path in named if not _ROOM_OF_THE_READER.search(path)}
    roots = (ROOT, ROOT / "protos")  # a compiler reads protos from their own folder
    missing = [path for path in sorted(named) if not any((of / path).is_file() for of in roots)]
    assert missing == []


@pytest.mark.cpu  # imports torch and Lightning
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_import_that_an_example_shows_works(page: Path) -> None:
    for example in blocks(page, "python"):
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(_OWN):
                for name in (each.name for each in node.names):
                    module = importlib.import_module(str(node.module))
                    assert hasattr(module, name) or importlib.import_module(f"{node.module}.{name}")


def test_every_room_and_variant_has_its_card_among_the_pages() -> None:
    pages = card_pages()
    for name in models.names():
        for variant in ("", *models.variants(name)):
            path = f"cards/{name}-{variant}.md" if variant else f"cards/{name}.md"
            card = models.room(name, variant) / "README.md"
            assert pages.pop(path) == card.read_text(encoding="utf-8")
    assert pages == {}


def test_the_reference_of_the_command_line_has_every_command_and_option() -> None:
    text = command_page()
    group = typer.main.get_command(app)
    context = typer.Context(group)
    assert isinstance(group, typer.core.TyperGroup)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        section = text.partition(f"## `medserve {name}`\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert f"`{parameter.opts[0]}" in section, name
    assert "[dim]" not in text


def test_the_reference_of_the_options_has_every_option_of_every_task() -> None:
    text = options_page()
    for task, options in OPTIONS.items():
        section = text.partition(f"## {task.value.capitalize()}\n")[2].partition("\n## ")[0]
        rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.*) \| (.+) \|$", section, re.MULTILINE)
        assert [row[0] for row in rows] == [each.key for each in declared(options)]


def test_the_reference_of_the_configuration_has_every_key_with_its_meaning() -> None:
    content = schema()
    text = configuration_page(content)
    sections = [each for each in content["$defs"].values() if "properties" in each]
    assert len(sections) > 8
    assert text.count("|---|---|---|---|") == len(sections)
    for section in sections:
        for key in section["properties"]:
            assert f"| `{key}` | " in text
    anchors = set(re.findall(r"\{#(\w+)\}", text))
    assert set(re.findall(r"\]\(#(\w+)\)", text)) <= anchors


@pytest.mark.parametrize("page", ["use/page.md", "run/operations.md", "run/confidentiality.md"])
def test_the_pages_agree_on_how_long_an_upload_is_kept_and_who_can_read_it(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    minutes = PageLimits().retention_s / 60
    assert re.findall(r"(\d+) minutes", text) == [f"{minutes:.0f}"]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = RunFolder.create()
    try:
        assert folder.path.parent == tmp_path  # TMPDIR
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    finally:
        folder.remove()
    if page != "run/confidentiality.md":
        assert "`TMPDIR`" in text
        assert "mode 700" in text
    if page != "run/operations.md":
        assert "operations.md#logs-and-privacy" in text


def test_the_reference_of_python_is_made_from_docstrings_of_every_public_name() -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text("utf-8")
    assert "mkdocstrings" in (ROOT / "mkdocs.yml").read_text("utf-8")
    modules = re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)
    assert "medserve.client" in modules
    for module in map(importlib.import_module, modules):
        public = [getattr(module, name) for name in module.__all__]
        undocumented = [each for each in public if isinstance(each, type) and not each.__doc__]
        assert undocumented == [], module


def test_whoever_operates_finds_how_to_upgrade_to_go_back_and_what_to_keep() -> None:
    page = (ROOT / "docs" / "run" / "operations.md").read_text("utf-8")
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert {"Upgrade and roll back", "Without a network", "What to back up"} <= set(headings)


def test_the_architecture_lists_the_layers_in_the_order_that_is_held() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    [contract] = [each for each in project["tool"]["importlinter"]["contracts"]
                  if each.get("containers") == ["medserve"]]  # fmt: skip
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = text.partition("| layer of `medserve` |")[2].partition("\n\n")[0]
    rows = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in table.splitlines()[2:]]
    assert rows == [layer.split(" | ") for layer in contract["layers"]]
