"""A real TorchServe for the tests of this folder, started once.

The fixture `server` is a `medserve.engine.torchserve.Server`, proven ready, on free ports of
loopback:

- `server.inference_address`, `server.management_address`: `host:port` for gRPC;
- `server.metrics_url`: the Prometheus page;
- `server.ready`: one `ReadyModel` per model and version.

It serves `tiny` 1.0 (see `tests/tiny_room.py`: which of six tiles is the brightest, so the right
answer is known), `tiny_colour` (see `tests/tiny_colour_room.py`: which colour is the strongest)
and, where their trained weights are committed, `mednist` and `blood_cell`. The fixture `models`
names what is there; `needs_mednist` skips a test without it. Tests that start a server of their
own build stores with `tiny_archive`.

The fixture `volume_server` is a second one, for volumes: `tiny_volume` (see
`tests/tiny_volume_room.py`) and, where its trained weights are committed, `segmentation_3d`.

The fixture `frame_server` is a third one, for frames: `tiny_frame` (see
`tests/tiny_frame_room.py`) and, where its trained weights are committed, `trus_prostate`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medserve.archive.build import build_archive
from medserve.client import Client
from medserve.engine.torchserve import Server, ServerConfig
from medserve.engine.torchserve.java import find_java
from medserve.errors import ArchiveError, ConfigError, UnknownModelError
from tests.tiny_colour_room import make_colour_checkout
from tests.tiny_frame_room import make_frame_checkout
from tests.tiny_room import REPOSITORY, make_checkout
from tests.tiny_volume_room import make_volume_checkout

TinyArchive = Callable[..., Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder talks to a real TorchServe."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.serving)


@pytest.fixture(scope="session", autouse=True)
def _engine_installed() -> None:
    """Skip with the reason where TorchServe or Java is missing."""
    for module in ("ts", "model_archiver", "onnxruntime", "openvino"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed; pip install -e '.[serve]'")
    try:
        find_java()
    except ConfigError as error:
        pytest.skip(str(error))


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
        return build_archive("tiny", store, checkout)

    return build


@pytest.fixture(scope="session")
def store(tiny_archive: TinyArchive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `tiny`, `tiny_colour` and, if they are trained, `mednist` and `blood_cell`."""
    folder = tmp_path_factory.mktemp("served") / "store"
    tiny_archive(folder)
    colours = make_colour_checkout(tmp_path_factory.mktemp("colours") / "checkout")
    build_archive("tiny_colour", folder, colours)
    for name in ("mednist", "blood_cell"):
        with contextlib.suppress(ArchiveError, UnknownModelError):  # not trained in this checkout
            build_archive(name, folder, REPOSITORY)
    return folder


@pytest.fixture(scope="session")
def server(store: Path) -> Iterator[Server]:
    """The running server; stopped after the last test."""
    with Server(ServerConfig(store=store)) as running:
        yield running


@pytest.fixture(scope="session")
def models(server: Server) -> tuple[str, ...]:
    """Names of the served models, sorted."""
    return tuple(sorted({model.name for model in server.ready}))


@pytest.fixture
def needs_mednist(models: tuple[str, ...]) -> None:
    """Skip where the trained weights of mednist are not in the checkout."""
    if "mednist" not in models:
        pytest.skip("models/mednist/weights is not complete; python -m training.mednist")


@pytest.fixture(scope="session")
def volume_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of volumes: `tiny_volume` and, if it is trained, `segmentation_3d`."""
    folder = tmp_path_factory.mktemp("volumes")
    build_archive("tiny_volume", folder / "store", make_volume_checkout(folder / "checkout"))
    with contextlib.suppress(ArchiveError):  # not trained in this checkout
        build_archive("segmentation_3d", folder / "store", REPOSITORY)
    with Server(ServerConfig(store=folder / "store")) as running:
        yield running


@pytest.fixture
def volume_client(volume_server: Server) -> Iterator[Client]:
    """A client of it, patient with a busy machine."""
    with Client(
        volume_server.inference_address,
        management_address=volume_server.management_address,
        timeout_s=120,
    ) as client:
        yield client


@pytest.fixture(scope="session")
def frame_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of frames: `tiny_frame` and, if it is trained, `trus_prostate`."""
    folder = tmp_path_factory.mktemp("frames")
    build_archive("tiny_frame", folder / "store", make_frame_checkout(folder / "checkout"))
    with contextlib.suppress(ArchiveError, UnknownModelError):  # not trained in this checkout
        build_archive("trus_prostate", folder / "store", REPOSITORY)
    with Server(ServerConfig(store=folder / "store")) as running:
        yield running


@pytest.fixture
def frame_client(frame_server: Server) -> Iterator[Client]:
    """A client of it, patient with a busy machine."""
    with Client(
        frame_server.inference_address,
        management_address=frame_server.management_address,
        timeout_s=120,
    ) as client:
        yield client
