"""The images, built once, and the compose project that serves every model of the checkout.

MEDSERVE_IMAGES=kept takes images that exist already, for who works on the tests.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import docker
from medserve.archive.build import room_names
from medserve.errors import ArchiveError
from scripts import images
from scripts.stack import Stack
from tests.archives import packaged
from tests.deploy.images.engine import EngineMissing, base_image, running_engine, torch_index
from tests.tiny_room import make_checkout


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[docker.DockerClient]:
    """A Docker engine; skips with the reason where none can run."""
    with contextlib.ExitStack() as stack:
        try:
            yield stack.enter_context(running_engine(tmp_path_factory.mktemp("engine")))
        except EngineMissing as reason:
            pytest.skip(str(reason))


@pytest.fixture(scope="session")
def built(
    engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory
) -> docker.DockerClient:
    """The engine, with the images for the CPU and the gateway built from this checkout."""
    if os.environ.get("MEDSERVE_IMAGES") == "kept":
        return engine
    folder = tmp_path_factory.mktemp("base")
    pinned = re.search(r"^torch==(\S+)$", (images.ROOT / "constraints.txt").read_text(), re.M)
    assert pinned is not None
    try:
        base_image(engine, folder)
    except EngineMissing as reason:
        pytest.skip(str(reason))
    with torch_index(folder, pinned[1]) as index:
        arguments = {"TORCH_INDEX_URL": index} if index else {}
        for target in ("cpu", "gateway"):  # the index is on this machine's loopback
            images.build(target, arguments, network="host" if index else "")
    return engine


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every model of the checkout, one that needs no trained weights, and one that takes time."""
    folder = tmp_path_factory.mktemp("images") / "store"
    checkouts = tmp_path_factory.mktemp("checkouts")
    for name in ("tiny", "sluggish"):
        checkout = make_checkout(checkouts / name, name=name)
        if name == "sluggish":
            handler = checkout / "handlers" / f"{name}.py"
            code = handler.read_text(encoding="utf-8")
            slow = "        __import__('time').sleep(0.02)\n        return"
            handler.write_text(code.replace("        return", slow), encoding="utf-8")
        packaged(name, folder, checkout)
    for name in room_names(images.ROOT):
        with contextlib.suppress(ArchiveError):  # not trained in this checkout
            packaged(name, folder)
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)  # read by the user of the container
    return folder


@pytest.fixture(scope="module")  # no longer than needed: it takes memory and cores
def stack(built: docker.DockerClient, store: Path) -> Iterator[Stack]:
    """The project as `docker compose up` starts it, healthy."""
    with Stack(store, project=f"medserve-test-{os.getpid()}") as running:
        running.up()
        yield running
