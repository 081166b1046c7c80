"""What the tests of real servers share; `tests/servers.py` starts those that they all talk to.

Tests that start a server of their own build stores with `tiny_archive`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medserve.client import Client
from tests.archives import packaged
from tests.backends import Backend
from tests.tiny_room import make_checkout

TinyArchive = Callable[..., Path]


@pytest.fixture(autouse=True)
def _real(engine_installed: None) -> None:
    """Everything in this folder needs a real engine."""


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    """A client of the shared gateway, patient with a busy machine."""
    with Client(address, timeout_s=120) as client:
        yield client


@pytest.fixture(scope="session")
def models(backend: Backend) -> tuple[str, ...]:
    """Names of the served models, sorted."""
    return tuple(sorted({archive.name for archive in backend.archives}))


@pytest.fixture(scope="session")
def classifiers(models: tuple[str, ...]) -> tuple[str, ...]:
    """Names of those of them that take packed images."""
    return tuple(
        name for name in ("blood_cell", "mednist", "tiny", "tiny_colour") if name in models
    )


@pytest.fixture
def needs_mednist(models: tuple[str, ...]) -> None:
    """Skip where the trained weights of mednist are not in the checkout."""
    if "mednist" not in models:
        pytest.skip("models/mednist/weights is not complete; python -m training.mednist")


@pytest.fixture(scope="session")
def tiny_archive(tmp_path_factory: pytest.TempPathFactory) -> TinyArchive:
    """`tiny_archive(store, version="1.0", change=None)` builds `tiny` into a store.

    `change(checkout)` may spoil the room before it is packaged.
    """
    checkouts = tmp_path_factory.mktemp("checkouts")
    pristine: dict[str, Path] = {}

    def build(
        store: Path, version: str = "1.0", change: Callable[[Path], object] | None = None
    ) -> Path:
        if version not in pristine:
            pristine[version] = make_checkout(checkouts / version, version=version)
        checkout = pristine[version]
        if change is not None:
            checkout = shutil.copytree(checkout, checkouts / f"{version}-{store.parent.name}")
            change(checkout)
        return packaged("tiny", store, checkout)

    return build
