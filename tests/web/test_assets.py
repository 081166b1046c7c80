"""What comes from npm: pinned, checked, from no particular place, and only where it belongs."""

from __future__ import annotations

import json
import re

from medserve.gateway.faces.page.rendering import Templates
from tests.tiny_room import REPOSITORY

LOCK = json.loads((REPOSITORY / "package-lock.json").read_text(encoding="utf-8"))
WANTED = json.loads((REPOSITORY / "package.json").read_text(encoding="utf-8"))


def test_every_package_is_pinned_by_version_and_checksum() -> None:
    packages = {name: entry for name, entry in LOCK["packages"].items() if name}
    assert all(entry["integrity"].startswith("sha512-") for entry in packages.values())
    for name, version in {**WANTED["dependencies"], **WANTED["devDependencies"]}.items():
        assert packages[f"node_modules/{name}"]["version"] == version


def test_the_lock_names_no_registry() -> None:
    assert not any("resolved" in entry for entry in LOCK["packages"].values())


def test_an_installed_viewer_is_the_pinned_one() -> None:
    """Without it the page does without: that is a state, not a failure."""
    viewer = Templates().viewer
    version = WANTED["dependencies"]["@niivue/niivue"]
    assert viewer is None or viewer.endswith(f"/vendor/niivue-{version}.js")


def test_an_installed_reader_of_the_api_description_is_the_pinned_one() -> None:
    reader = Templates().api_reader
    version = WANTED["dependencies"]["swagger-ui-dist"]
    for address, suffix in zip(reader or (), ("js", "css"), strict=False):
        assert address.endswith(f"/vendor/swagger-ui-{version}.{suffix}")


def test_the_image_has_these_files_where_the_page_looks_for_them() -> None:
    copied = re.findall(
        r"^COPY --from=page /vendor \S+/site-packages/(\S+)$",
        (REPOSITORY / "docker" / "Dockerfile").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert {REPOSITORY / place for place in copied} == {Templates().static / "vendor"}


def test_the_page_asks_for_nothing_that_is_not_here() -> None:
    static = Templates().static
    for path in static.glob("js/*.js"):
        for name in re.findall(r'from "\./([\w.]+)"', path.read_text(encoding="utf-8")):
            assert (static / "js" / name).is_file(), f"{path.name}: {name}"
    for template in (static.parent / "templates").glob("*.html"):
        for name in re.findall(r"\{\{ static \}\}/([\w./]+)", template.read_text(encoding="utf-8")):
            assert (static / name).is_file(), f"{template.name}: {name}"
