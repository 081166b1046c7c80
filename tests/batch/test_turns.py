"""Two runs at once in one folder: never of the same studies."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from medserve.batch.receipts import BatchFolder
from medserve.batch.studies import Shard
from medserve.batch.turns import turn
from medserve.errors import ConfigError
from tests.batch.test_kills import wait_for
from tests.cli.conftest import Medserve, medserve
from tests.client.fake_gateway import FakeGateway, held, passing, serving

__all__ = ["medserve"]

IMAGES = 40


@pytest.mark.process
@pytest.mark.loopback
def test_a_run_keeps_others_from_its_studies_until_it_ends_however_it_ends(
    medserve: Medserve, tmp_path: Path
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for number in range(IMAGES):
        (images / f"{number}.png").write_bytes(b"Hand %d" % number)
    answered = threading.Event()
    with serving(FakeGateway(hooks=[held(answered), passing])) as fake:
        command = ["batch", images, "--model", "mednist", "--server", fake.address, "--out", out]
        first = subprocess.Popen(
            [sys.executable, "-m", "medserve", *map(str, command), "--shard", "0/2"]
        )
        try:
            wait_for(lambda: bool(fake.requests) or first.poll() is not None)
            for part in ([], ["--shard", "0/2"], ["--shard", "2/4"]):
                refused = medserve(*command, *part)
                assert refused.code == 2
                assert f"another run works on these studies (process {first.pid}" in refused.err
            other = medserve(*command, "--shard", "1/2")
            assert (other.code, other.err) == (0, "")
            first.kill()
            first.wait()
            assert medserve(*command).code == 0
        finally:
            answered.set()
            first.kill()
            first.wait()
    assert len(list(BatchFolder(out).receipts())) == IMAGES


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("others", [1, 2, 4, 9])
def test_parts_meet_where_a_study_can_belong_to_both(count: int, others: int) -> None:
    keys = [f"{number:032x}" for number in range(0, 36 << 64, 1 << 64)]
    for one in (Shard(index, count) for index in range(count)):
        for other in (Shard(index, others) for index in range(others)):
            assert one.meets(other) == any(one.has(key) and other.has(key) for key in keys)


def test_two_runs_of_parts_that_share_studies_do_not_live_in_one_process(tmp_path: Path) -> None:
    with (
        turn(tmp_path, Shard(1, 4)),
        pytest.raises(ConfigError, match="another run"),
        turn(tmp_path, Shard(3, 6)),
    ):
        pass
    with turn(tmp_path, Shard(3, 6)) as has_locks:
        assert has_locks


@pytest.mark.loopback
def test_a_file_system_without_locks_is_told_in_a_line(
    medserve: Medserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(b"Hand")
    monkeypatch.setattr(fcntl, "flock", refuse)
    with serving(FakeGateway()) as fake:
        where = ("--model", "mednist", "--server", fake.address, "--out", tmp_path / "out")
        run = medserve("batch", tmp_path / "images", *where)
    assert run.code == 0
    assert run.err.count("\n") == 1
    assert "has no locks" in run.err
