"""Worker processes that hold an archive: those of today and those of an earlier release."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medserve.archive.read import verify_archive
from medserve.batch.asking import Answer
from medserve.batch.processes import ArchiveAsker, archive_target
from medserve.errors import (
    ArchiveError,
    ConfigError,
    DeadlineError,
    InvalidImageError,
    ServerBusyError,
)
from medserve.imaging.codecs import nifti
from tests.archives import packaged_fixture
from tests.frame_phantoms import scan
from tests.phantoms import raster_bytes
from tests.tiny_room import LABELS, bright_tile
from tests.tiny_volume_room import known_mask, phantom

pytestmark = [pytest.mark.process, pytest.mark.archive]

OLD = Path(__file__).parent.parent / "old_archives"


def archive_of(age: str, name: str, folder: Path) -> Path:
    return OLD / f"{name}-1.0.mar" if age == "old" else packaged_fixture(name, folder)


@pytest.fixture(params=["today", "old"])
def age(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[ArchiveAsker]:
    asker = ArchiveAsker(packaged_fixture("tiny", tmp_path), workers=1)
    yield asker
    asker.close()


def asked(archive: Path, content: bytes, params: Mapping[str, Any]) -> Answer:
    asker = ArchiveAsker(archive, workers=1)
    try:
        [found] = asker.ask([content], params)
    finally:
        asker.close()
    assert isinstance(found, Answer)
    return found


def test_images_are_packed_and_a_broken_one_costs_no_other(age: str, tmp_path: Path) -> None:
    asker = ArchiveAsker(archive_of(age, "tiny", tmp_path), workers=1)
    try:
        found = asker.ask([*map(bright_tile, range(6)), b"broken"], {"top_k": 1})
    finally:
        asker.close()
    answers = [each for each in found if isinstance(each, Answer)]
    assert [each.members["label"] for each in answers] == list(LABELS)
    assert isinstance(found[-1], InvalidImageError)
    assert answers[0].provenance.archive_digest == asker.target.archive_digest


def test_a_volume_gets_its_mask(age: str, tmp_path: Path) -> None:
    archive = archive_of(age, "tiny_volume", tmp_path)
    found = asked(archive, nifti.encode(phantom()), {"output": "json"})
    assert set(found.files) == {"mask.nii.gz"}
    mask = nifti.decode(found.files["mask.nii.gz"])
    np.testing.assert_array_equal(mask.array, known_mask(phantom()))
    assert set(found.members["volumes_ml"]) == {"dim", "bright"}


def test_a_frame_gets_its_mask(age: str, tmp_path: Path) -> None:
    archive = archive_of(age, "tiny_frame", tmp_path)
    content = raster_bytes(scan())
    found = asked(archive, content, {"output": "json", "overlay": True})
    assert set(found.files) == {"mask.nii.gz", "mask.png", "overlay.png"}
    assert found.members["stack"]["frames_found"] == 1


def test_a_heat_map_is_a_file(tiny: ArchiveAsker) -> None:
    found = tiny.ask([bright_tile(2)], {"explain": True})[0]
    assert isinstance(found, Answer)
    assert found.files["heatmap.png"].startswith(b"\x89PNG")
    assert found.members["explanation"]["label"] == LABELS[2]


def test_a_lost_worker_is_started_again(tiny: ArchiveAsker) -> None:
    [worker] = tiny._workers
    assert worker._process is not None
    worker._process.kill()
    worker._process.wait()
    with pytest.raises(ServerBusyError, match="was lost"):
        tiny.ask([bright_tile(1)], {})
    assert isinstance(tiny.ask([bright_tile(1)], {})[0], Answer)


def test_a_worker_that_is_started_again_holds_the_archive_that_was_there_at_the_begin(
    tmp_path: Path,
) -> None:
    archive = packaged_fixture("tiny", tmp_path)
    asker = ArchiveAsker(archive, workers=1)
    try:
        [before] = asker.ask([bright_tile(1)], {})
        replaced_by_an_older_one(archive)
        [worker] = asker._workers
        worker._stop()
        [after] = asker.ask([bright_tile(1)], {})
    finally:
        asker.close()
    assert isinstance(before, Answer)
    assert isinstance(after, Answer)
    assert before.provenance == after.provenance
    assert after.provenance.archive_digest == asker.target.archive_digest


def test_an_actor_that_starts_later_refuses_an_archive_that_was_replaced(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    from medserve.batch.cluster import ClusterRun, _Actor

    archive = packaged_fixture("tiny", tmp_path)
    target = archive_target(verify_archive(archive))
    replaced_by_an_older_one(archive)
    with pytest.raises(ArchiveError, match="was replaced while the batch was running"):
        _Actor(ClusterRun(archive, tmp_path, tmp_path / "out", target))


def replaced_by_an_older_one(archive: Path) -> None:
    """Put another archive of the same model in the place of one, as a deployment does."""
    (archive.parent / "new").write_bytes((OLD / "tiny-1.0.mar").read_bytes())
    (archive.parent / "new").replace(archive)


def test_a_worker_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    asker = ArchiveAsker(packaged_fixture("tiny", tmp_path), workers=1, timeout_s=1e-6)
    try:
        with pytest.raises(DeadlineError):
            asker.ask([bright_tile(1)] * 30, {})
        assert asker._workers[0]._process is None
    finally:
        asker.close()


def test_no_process_and_no_folder_stays(tiny: ArchiveAsker) -> None:
    [process] = [each._process for each in tiny._workers]
    folder = tiny._folder.path
    tiny.close()
    assert process is not None
    assert process.poll() is not None
    assert not folder.exists()


def test_an_archive_that_was_altered_does_not_run(tmp_path: Path) -> None:
    archive = packaged_fixture("tiny", tmp_path)
    content = bytearray(archive.read_bytes())
    content[content.index(b"brightest")] ^= 1
    archive.write_bytes(content)
    with pytest.raises(ArchiveError):
        ArchiveAsker(archive, workers=1)


def test_an_archive_that_draws_images_answers_no_studies() -> None:
    with pytest.raises(ConfigError, match="got a sampler"):
        ArchiveAsker(OLD / "painter-1.0.mar", workers=1)
