"""A real Ray cluster of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medserve.batch.processes import ArchiveAsker
from medserve.batch.receipts import BatchFolder
from medserve.batch.report import write_report
from medserve.batch.studies import Shard
from medserve.batch.work import Became
from tests.archives import packaged_fixture
from tests.batch.stand_in import run_batch
from tests.tiny_room import bright_tile

pytest.importorskip("ray", reason="the extra ray is not installed")
pytestmark = [pytest.mark.ray, pytest.mark.archive]

IMAGES = 60


def test_ray_and_this_machine_share_a_batch_and_the_table_is_that_of_one_run(
    tmp_path: Path,
) -> None:
    images, archive = tmp_path / "images", packaged_fixture("tiny", tmp_path)
    images.mkdir()
    for number in range(IMAGES):
        (images / f"{number}.png").write_bytes(bright_tile(number % 6))
    (images / "broken.png").write_bytes(b"broken")
    asker = ArchiveAsker(archive, workers=1)
    try:
        run_batch(images, tmp_path / "alone", asker)
        begun = run_batch(images, tmp_path / "out", asker, Shard(0, 4))
    finally:
        asker.close()
    command = [sys.executable, "-m", "medserve", "batch", images, "--archive", archive]
    flags = ["--out", tmp_path / "out", "--runner", "ray", "--workers", "2"]
    ended = subprocess.run([*map(str, command + flags)], capture_output=True, text=True)
    assert ended.returncode == 1, ended.stderr  # one of them is broken
    answered = begun[Became.ANSWERED]
    assert f"{IMAGES - answered} answered" in ended.stdout
    attempts = [each.attempt for each in BatchFolder(tmp_path / "out").receipts()]
    assert attempts == [1] * (IMAGES + 1)
    write_report(BatchFolder(tmp_path / "alone"))
    same = [(tmp_path / each / "results.csv").read_bytes() for each in ("alone", "out")]
    assert same[0] == same[1]


def test_an_archive_that_does_not_prove_itself_ends_the_run_in_one_line(tmp_path: Path) -> None:
    images, archive = tmp_path / "images", packaged_fixture("tiny", tmp_path)
    images.mkdir()
    (images / "1.png").write_bytes(bright_tile(1))
    command = [sys.executable, "-m", "medserve", "batch", images, "--archive", archive]
    flags = ["--out", tmp_path / "out", "--runner", "ray", "--workers", "1"]
    ended = subprocess.run(
        [*map(str, command + flags)],
        capture_output=True,
        text=True,
        env=os.environ | {"MEDSERVE_ENGINE": "none"},  # no engine has this name
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("error:")
