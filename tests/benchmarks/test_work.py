"""What every contender serves, on the tiny room of the packaging tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from benchmarks.archives import unpack, with_batch_size
from medserve.archive.read import verify_archive
from tests.archives import packaged_fixture
from tests.tiny_room import LABELS, bright_tile

REPOSITORY = Path(__file__).parent.parent.parent
ENVIRONMENT = {**os.environ, "MEDSERVE_ENGINE": "onnxruntime", "MEDSERVE_ENGINE_THREADS": "1"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packaged_fixture("tiny", tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def unpacked(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(archive, tmp_path_factory.mktemp("unpacked"))


def test_the_work_is_the_handlers_own_answer(unpacked: Path, tmp_path: Path) -> None:
    for tile in range(6):
        (tmp_path / f"{tile}.png").write_bytes(bright_tile(tile))
    code = (
        "import sys; from pathlib import Path; from benchmarks.work import load_work; "
        "from benchmarks.load import read_payload; "
        "answers = load_work(Path(sys.argv[1]))(read_payload(Path(sys.argv[2]))); "
        "print(b'\\n'.join(answers).decode())"
    )
    answers = _python("-c", code, str(unpacked), str(tmp_path)).splitlines()

    assert [json.loads(answer)["label"] for answer in answers] == list(LABELS)


def test_in_process_measures_every_worker(unpacked: Path, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(bright_tile(2))
    plan = ["--archive-dir", str(unpacked), "--payload", str(tmp_path), "--workers", "2"]
    output = _python(
        "-m", "benchmarks.inprocess", *plan, "--batch", "4", "--seconds", "0.5", "--warmup-s", "0.1"
    )
    measured = json.loads(output)

    assert measured["images"] % 4 == 0
    assert measured["images_per_s"] > 0
    assert measured["server_cpu_ms"] > 0
    assert LABELS[2] in measured["sample"]


def test_another_batch_size_leaves_an_intact_archive(archive: Path, tmp_path: Path) -> None:
    variant = with_batch_size(archive, tmp_path / archive.name, batch_size=1)
    with zipfile.ZipFile(variant) as content:
        config = yaml.safe_load(content.read("model-config.yaml"))

    assert config["batchSize"] == 1
    assert verify_archive(variant).spec.serving.batch_size == 1
    assert verify_archive(archive).spec.serving.batch_size == 8


@pytest.mark.benchmark
def test_a_short_run_measures_ratios_and_writes_them(archive: Path, tmp_path: Path) -> None:
    shutil.copy(archive, tmp_path)
    out = tmp_path / "bench.json"
    flags = ["--archive", str(tmp_path / archive.name), "--workers", "1", "--concurrency", "2"]
    flags += ["--rounds", "1", "--seconds", "0.5", "--engine", "onnxruntime", "--out", str(out)]
    flags += ["--only", "in-process,torchserve,grpc", "--model", "tiny"]
    table = _python("-m", "benchmarks.serve", *flags)
    result = json.loads(out.read_text())

    assert "1 worker, 2 in flight" in table
    assert result["format"] == 1
    assert result["skipped"] == {}
    assert [each["contender"] for each in result["summaries"]] == [
        "in-process", "torchserve", "grpc",
    ]  # fmt: skip
    assert all(each["errors"] == 0 for each in result["summaries"])
    assert {each["word"] for each in result["targets"]} == {"not measured"}
    assert result["machine"]["cores"] >= 1
    assert str(tmp_path) not in out.read_text()


def _python(*arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout
