"""The image without TorchServe: the gateway alone, with the models in workers of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

import docker
from scripts import images
from scripts.stack import Stack
from tests.archives import packaged, packaged_fixture
from tests.tiny_room import LABELS, bright_tile

pytestmark = pytest.mark.docker

_MOST_MB = 520  # 500 is aimed at; the check of signatures alone brings 12


@pytest.fixture(scope="module")
def direct(built: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The service as `docker compose up direct` starts it, healthy."""
    if os.environ.get("MEDSERVE_IMAGES") != "kept":
        images.build("cpu-direct")
    store = tmp_path_factory.mktemp("direct") / "store"
    for name in ("tiny", "tiny_volume", "tiny_frame"):
        packaged_fixture(name, store).chmod(0o644)
    packaged("mednist", store).chmod(0o644)  # runs on OpenVINO, the others on ONNX Runtime
    store.chmod(0o755)
    with Stack(store, project=f"medserve-direct-{os.getpid()}") as running:
        running.up("direct")
        yield running


def test_it_is_small(direct: Stack) -> None:
    client = images.engine()
    assert images.facts(client, images.tag("cpu-direct")).size_mb <= _MOST_MB
    client.close()


def test_a_model_answers(direct: Stack) -> None:
    answer = json.loads(direct.predict("tiny", bright_tile(4)))
    assert answer["label"] == LABELS[4]


def test_it_carries_neither_torch_nor_java(direct: Stack) -> None:
    find = "import importlib.util as u; print([u.find_spec(name) for name in ('torch', 'ts')])"
    code, said = direct.run_inside("direct", "python", "-c", find)
    assert (code, said.strip()) == (0, "[None, None]")
    assert direct.run_inside("direct", "sh", "-c", "command -v java")[0] != 0


def test_a_killed_worker_comes_back(direct: Stack) -> None:
    workers = (
        "for p in /proc/[0-9]*; do grep -q direct/worker[.]py $p/cmdline && echo ${p#/proc/}; done"
    )
    code, _ = direct.run_inside("direct", "sh", "-c", f"kill -9 $({workers})")
    assert code == 0
    answer = json.loads(direct.predict("tiny", bright_tile(1)))
    assert answer["label"] == LABELS[1]


def test_it_stops_in_good_order(direct: Stack) -> None:
    direct.compose("stop", "direct")
    assert direct.state("direct")["ExitCode"] in (0, 143)
