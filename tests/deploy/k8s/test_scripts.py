"""The shell lines inside the manifests, run as the containers would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from medserve.batch.receipts import BatchFolder, Receipt
from medserve.batch.studies import Shard, study_key
from tests.client.conftest import fake
from tests.client.fake_gateway import FakeGateway, serving
from tests.deploy.k8s.rendering import K8S, Manifest, only

__all__ = ["fake"]

pytestmark = pytest.mark.process

STUDIES = 23


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """A volume with images whose names are as unkind as names can be."""
    folder = tmp_path / "studies" / "input"
    for number in range(STUDIES):
        kind = ("a b", "ünï", "-n", "new\nline", "quote'\"")[number % 5]
        within = folder / f"{kind} folder" if number % 4 == 0 else folder
        within.mkdir(parents=True, exist_ok=True)
        (within / f"{kind} {number}.png").write_bytes(b"Hand")
    (folder / ".DS_Store").touch()
    return tmp_path / "studies"


def run_shard(studies: Path, address: str, index: int, shards: int) -> int:
    """Return the exit code of one pod of the job, which runs the real command."""
    container = container_of("batch-predict")
    programs = studies.parent / "bin"
    programs.mkdir(exist_ok=True)
    program = programs / "medserve"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m medserve "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    script = container["args"][0].replace("/studies", str(studies))
    script = script.replace("/caller", str(studies.parent / "caller"))
    environment = os.environ | {each["name"]: each["value"] for each in container["env"]}
    environment |= {"SHARDS": str(shards), "JOB_COMPLETION_INDEX": str(index), "MODEL": "mednist"}
    environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "MEDSERVE_ADDRESS": address}
    done = subprocess.run([*container["command"], script], env=environment, capture_output=True)
    return done.returncode


def container_of(job: str) -> dict[str, Any]:
    """Return the container of a job's pods."""
    manifest = yaml.safe_load((K8S / f"jobs/{job}.yaml").read_text(encoding="utf-8"))
    found: dict[str, Any] = manifest["spec"]["template"]["spec"]["containers"][0]
    return found


def receipts(studies: Path) -> list[Receipt]:
    return list(BatchFolder(studies / "output").receipts())


def test_the_shards_take_every_study_exactly_once(studies: Path, fake: FakeGateway) -> None:
    assert [run_shard(studies, fake.address, index, 3) for index in range(3)] == [0] * 3
    files = [path for path in (studies / "input").rglob("*.png")]
    assert sorted(each.source for each in receipts(studies)) == sorted(map(str, files))
    assert {each.attempt for each in receipts(studies)} == {1}


def test_a_pod_that_is_started_again_asks_nothing_again(studies: Path, fake: FakeGateway) -> None:
    assert run_shard(studies, fake.address, 0, 1) == 0
    asked = len(fake.requests)
    assert run_shard(studies, fake.address, 0, 1) == 0
    assert len(fake.requests) == asked


def test_a_token_and_an_authority_are_used_where_they_are_given(studies: Path) -> None:
    caller = studies.parent / "caller"
    caller.mkdir()
    with serving(FakeGateway(token="ms_1_secret")) as guarded:
        assert run_shard(studies, guarded.address, 0, 8) != 0
        (caller / "token").write_text("ms_1_secret\n", encoding="utf-8")
        assert run_shard(studies, guarded.address, 0, 8) == 0
        (caller / "ca.crt").write_text("PEM", encoding="utf-8")  # turns TLS on
        assert run_shard(studies, guarded.address, 1, 8) != 0


def test_more_shards_than_studies_is_no_failure(studies: Path, fake: FakeGateway) -> None:
    empty = next(
        index
        for index in range(999)
        if not any(
            Shard(index, 999).has(study_key(str(path.relative_to(studies / "input"))))
            for path in (studies / "input").rglob("*.png")
        )
    )
    assert run_shard(studies, fake.address, empty, 999) == 0
    assert receipts(studies) == []


def test_a_refused_study_does_not_fail_its_shard(studies: Path, fake: FakeGateway) -> None:
    (studies / "input" / "broken.png").write_bytes(b"broken")
    assert run_shard(studies, fake.address, 0, 1) == 0
    assert sum(each.status == "error" for each in receipts(studies)) == 1


def test_a_server_that_is_not_there_fails_the_shard_so_that_it_is_tried_again(
    studies: Path,
) -> None:
    assert run_shard(studies, "127.0.0.1:1", 0, 2) != 0


def test_shards_and_completions_are_the_same_number() -> None:
    job = yaml.safe_load((K8S / "jobs/batch-predict.yaml").read_text(encoding="utf-8"))["spec"]
    shards = next(
        each["value"] for each in container_of("batch-predict")["env"] if each["name"] == "SHARDS"
    )
    assert int(shards) == job["completions"]


def test_the_report_is_made_where_the_batch_has_written() -> None:
    *command, folder = container_of("batch-report")["command"]
    assert command == ["medserve", "batch", "report"]
    assert f"--out {folder} " in container_of("batch-predict")["args"][0]


def copy_models(base: list[Manifest], image: Path, store: Path) -> subprocess.CompletedProcess[str]:
    pod = only(base, "Deployment")["spec"]["template"]["spec"]
    container = pod["initContainers"][0]
    script = container["args"][0].replace("/models", str(image)).replace("/store", str(store))
    return subprocess.run([*container["command"], script], capture_output=True, text=True)


def test_the_archives_of_the_image_are_copied(base: list[Manifest], tmp_path: Path) -> None:
    image, store = tmp_path / "image", tmp_path / "out"
    for folder in (image, store):
        folder.mkdir()
    for name in ("mednist-1.0.mar", "blood_cell-1.0.mar"):
        (image / name).write_text(name, encoding="utf-8")
    assert copy_models(base, image, store).returncode == 0
    assert {path.name: path.read_text() for path in store.iterdir()} == {
        name: name for name in ("mednist-1.0.mar", "blood_cell-1.0.mar")
    }


def test_an_image_without_archives_says_so_in_one_line(
    base: list[Manifest], tmp_path: Path
) -> None:
    (tmp_path / "image").mkdir()
    done = copy_models(base, tmp_path / "image", tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "models-pvc" in done.stderr
