"""What a run makes of studies, with a stand-in that answers."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medserve.batch import work
from medserve.batch.receipts import BatchFolder, Receipt
from medserve.batch.report import write_report
from medserve.batch.studies import Shard, Study, study_key
from medserve.batch.work import Became
from medserve.errors import (
    AuthenticationError,
    ConfigError,
    InvalidRequestError,
    MedserveError,
    ServerBusyError,
    ServerFailedError,
    ServerUnreachableError,
)
from medserve.spec import Task
from tests.batch.stand_in import StandIn, run_batch, write_studies

ANSWERED, FAILED, KEPT, KEPT_FAILED = (
    Became.ANSWERED, Became.FAILED, Became.KEPT, Became.KEPT_FAILED
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_FIRST_WAIT_S", 0.0)


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    return write_studies(tmp_path / "studies", 6)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def receipt(out: Path, study_id: str) -> Receipt:
    found = BatchFolder(out).receipt(study_key(study_id))
    assert found is not None
    return found


def tables(out: Path) -> dict[str, bytes]:
    _, paths = write_report(BatchFolder(out))
    return {path.name: path.read_bytes() for path in paths if path.suffix == ".csv"}


def test_a_second_run_asks_nothing(studies: Path, out: Path) -> None:
    assert run_batch(studies, out, StandIn()) == {ANSWERED: 6}
    again = StandIn()
    assert run_batch(studies, out, again) == {KEPT: 6}
    assert again.asked == []


def test_the_files_of_an_answer_lie_under_the_key(studies: Path, out: Path) -> None:
    run_batch(studies, out, StandIn())
    folder = BatchFolder(out).answers(study_key("0003.nii.gz"))
    assert (folder / "mask.nii.gz").read_bytes() == b"mask of study 3"
    assert list((out / "partial").iterdir()) == []


def test_what_changed_is_repeated_and_what_was_only_touched_is_not(
    studies: Path, out: Path
) -> None:
    run_batch(studies, out, StandIn())
    (studies / "0001.nii.gz").write_bytes(b"another study")
    os.utime(studies / "0002.nii.gz", ns=(1, 1))
    again = StandIn()
    assert run_batch(studies, out, again) == {KEPT: 5, ANSWERED: 1}
    assert again.asked == [b"another study"]
    assert receipt(out, "0001.nii.gz").attempt == 2


def test_another_archive_or_other_options_ask_everything_again(studies: Path, out: Path) -> None:
    run_batch(studies, out, StandIn())
    assert run_batch(studies, out, StandIn(digest="sha256:2")) == {ANSWERED: 6}
    newer = StandIn(digest="sha256:2")
    asked = {"output": "json", "fill_holes": True}
    assert run_batch(studies, out, newer, options=asked) == {ANSWERED: 6}
    assert run_batch(studies, out, newer, options=asked) == {KEPT: 6}


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "another format"])
def test_a_receipt_that_is_not_whole_counts_for_nothing(
    studies: Path, out: Path, damage: str
) -> None:
    run_batch(studies, out, StandIn())
    key = study_key("0004.nii.gz")
    path = out / "receipts" / key[:3] / f"{key}.json"
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        spoilt = {"cut": content[:-9], "empty": b"", "another format": b'{"format": 9}'}
        path.write_bytes(spoilt[damage])
    assert run_batch(studies, out, StandIn()) == {KEPT: 5, ANSWERED: 1}


def test_an_answer_whose_file_is_gone_or_cut_is_made_again(studies: Path, out: Path) -> None:
    run_batch(studies, out, StandIn())
    (BatchFolder(out).answers(study_key("0000.nii.gz")) / "mask.nii.gz").unlink()
    (BatchFolder(out).answers(study_key("0001.nii.gz")) / "mask.nii.gz").write_bytes(b"")
    assert run_batch(studies, out, StandIn()) == {KEPT: 4, ANSWERED: 2}


def test_a_refused_study_costs_its_own_row_and_is_not_asked_again(studies: Path, out: Path) -> None:
    (studies / "0002.nii.gz").write_bytes(b"broken")
    assert run_batch(studies, out, StandIn()) == {ANSWERED: 5, FAILED: 1}
    assert receipt(out, "0002.nii.gz").code == "INVALID_IMAGE"
    again = StandIn()
    assert run_batch(studies, out, again) == {KEPT: 5, KEPT_FAILED: 1}
    assert again.asked == []


def test_what_cannot_be_read_costs_its_own_row_and_is_read_by_the_next_run(
    tmp_path: Path, studies: Path, out: Path
) -> None:
    manifest = tmp_path / "m.csv"
    rows = ["path", "studies/0000.nii.gz", "studies/missing.nii.gz", "studies/*1.nii.gz", "empty"]
    manifest.write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "empty").mkdir()
    assert run_batch(manifest, out, StandIn()) == {ANSWERED: 2, FAILED: 2}
    assert receipt(out, "studies/missing.nii.gz").code == "UNREADABLE"
    (studies / "missing.nii.gz").write_bytes(b"here now")
    (tmp_path / "empty" / "slice").write_bytes(b"slice")
    assert run_batch(manifest, out, StandIn()) == {KEPT: 2, ANSWERED: 2}


def test_what_has_no_end_or_is_no_file_costs_its_own_row(
    tmp_path: Path, studies: Path, out: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (studies / "loop").symlink_to("loop")
    (studies / "root").symlink_to(studies)
    manifest = tmp_path / "m.csv"
    rows = ["path", "/dev/zero", "pipe", "studies/loop", "studies/0000.nii.gz"]
    manifest.write_text("\n".join(rows), encoding="utf-8")
    assert run_batch(manifest, out, StandIn()) == {ANSWERED: 1, FAILED: 3}
    assert "got a device" in receipt(out, "pipe").message
    manifest.write_text("path\nstudies\nstudies/000*\n", encoding="utf-8")
    assert run_batch(manifest, tmp_path / "series", StandIn()) == {ANSWERED: 2}
    images = StandIn(task=Task.CLASSIFICATION)
    assert run_batch(manifest, tmp_path / "images", images) == {FAILED: 2}
    assert "a row of its own" in receipt(tmp_path / "images", "studies").message


def test_an_input_that_grows_while_it_is_read_is_asked_about_later(
    monkeypatch: pytest.MonkeyPatch, studies: Path, out: Path
) -> None:
    stamps = iter(range(100))
    monkeypatch.setattr("medserve.batch.inputs.stamp_of", lambda source: str(next(stamps)))
    growing = StandIn()
    assert run_batch(studies, out, growing) == {FAILED: 6}
    assert growing.asked == []
    monkeypatch.undo()
    assert run_batch(studies, out, StandIn()) == {ANSWERED: 6}


def test_an_answer_stays_when_its_input_is_moved_away(tmp_path: Path, studies: Path) -> None:
    manifest, out = tmp_path / "m.csv", tmp_path / "out"
    manifest.write_text("path\nstudies/0000.nii.gz\n", encoding="utf-8")
    run_batch(manifest, out, StandIn())
    (studies / "0000.nii.gz").unlink()
    assert run_batch(manifest, out, StandIn()) == {KEPT: 1}


def test_options_of_a_row_that_the_model_does_not_know_cost_that_row(
    tmp_path: Path, studies: Path, out: Path
) -> None:
    manifest = tmp_path / "m.jsonl"
    lines = ['{"path": "studies/0000.nii.gz", "options": {"colour": 1}}']
    manifest.write_text("\n".join([*lines, '{"path": "studies/0001.nii.gz"}']), encoding="utf-8")
    assert run_batch(manifest, out, StandIn()) == {FAILED: 1, ANSWERED: 1}
    assert run_batch(manifest, out, StandIn()) == {KEPT_FAILED: 1, KEPT: 1}


def test_a_busy_server_is_asked_again(studies: Path, out: Path) -> None:
    busy = ServerBusyError("busy")
    assert run_batch(studies, out, StandIn(errors=[busy, busy]), patience_s=60) == {ANSWERED: 6}


def test_a_study_that_ends_its_worker_costs_itself_alone(studies: Path, out: Path) -> None:
    asker = StandIn(task=Task.CLASSIFICATION, poison=(b"study 4", ServerBusyError("worker lost")))
    found = run_batch(studies, out, asker, patience_s=60, per_call=6)
    assert found == {ANSWERED: 5, FAILED: 1}
    assert receipt(out, "0004.nii.gz").can_pass
    assert run_batch(studies, out, StandIn(task=Task.CLASSIFICATION)) == {KEPT: 5, ANSWERED: 1}


def test_a_server_that_stays_away_ends_the_run_and_the_next_one_goes_on(
    studies: Path, out: Path
) -> None:
    gone = StandIn(errors=[None, None, None, *[ServerUnreachableError("gone")] * 99])
    with pytest.raises(ServerUnreachableError):
        run_batch(studies, out, gone)
    done = len(list(BatchFolder(out).receipts()))
    assert done == 3
    assert run_batch(studies, out, StandIn()) == {KEPT: 3, ANSWERED: 3}


@pytest.mark.parametrize("error", [AuthenticationError("no token"), InvalidRequestError("flag")])
def test_what_concerns_every_study_ends_the_run_at_once(
    studies: Path, out: Path, error: MedserveError
) -> None:
    with pytest.raises(type(error)):
        run_batch(studies, out, StandIn(errors=[error] * 20), patience_s=60)
    assert list(BatchFolder(out).receipts()) == []


def test_a_bug_of_the_server_costs_one_study(studies: Path, out: Path) -> None:
    asker = StandIn(poison=(b"study 3", ServerFailedError("internal error")))
    assert run_batch(studies, out, asker) == {ANSWERED: 5, FAILED: 1}


def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(
    monkeypatch: pytest.MonkeyPatch, studies: Path, out: Path
) -> None:
    left = [9]  # the head, and four studies with two files each

    def write(path: Path, content: bytes) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with path.open("wb") as file:
            return file.write(content)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(ConfigError, match="No space left on device; free some space"):
        run_batch(studies, out, StandIn())
    monkeypatch.undo()
    assert list((out / "partial").iterdir()) == []
    done = len(list(BatchFolder(out).receipts()))
    assert 3 <= done <= 4
    assert run_batch(studies, out, StandIn()) == {KEPT: done, ANSWERED: 6 - done}
    assert len(tables(out)["results.csv"].splitlines()) == 7


def test_four_shards_together_equal_one_run(tmp_path: Path) -> None:
    studies = write_studies(tmp_path / "studies", 40)
    (studies / "0007.nii.gz").write_bytes(b"broken")
    run_batch(studies, tmp_path / "whole", StandIn())
    counts = [
        run_batch(studies, tmp_path / "parts", StandIn(), Shard(index, 4)) for index in range(4)
    ]
    assert sum(count for each in counts for count in each.values()) == 40
    assert all(each.get(KEPT, 0) == 0 for each in counts)
    assert tables(tmp_path / "whole") == tables(tmp_path / "parts")


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)
@given(
    st.text(st.characters(exclude_categories=()), min_size=1, max_size=60)
    | st.sampled_from(
        ["../../escape", "/etc/passwd", "a/../../b", "..", "CON", "=1+1", "\udcff", "\ud800"]
    )
)
def test_no_id_leaves_the_folder_of_the_batch(tmp_path: Path, study_id: str) -> None:
    out = tmp_path / "out"
    source = tmp_path / "input"
    source.write_bytes(b"study")
    asker = StandIn()
    folder = BatchFolder(out)
    folder.open(work_head(asker))
    reading = work.Reading(folder, asker.target, {})
    sent = reading.begin(Study(study_id, str(source)))
    assert isinstance(sent, work.Sent)
    assert work.Answering(folder, asker).finish([sent]) == [ANSWERED]
    assert reading.begin(Study(study_id, str(source))) is KEPT
    assert {path.name for path in tmp_path.iterdir()} == {"out", "input"}
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {
        "batch.json", f"{study_key(study_id)}.json", "mask.nii.gz"
    }  # fmt: skip
    for path in files:
        if path.name != "batch.json":
            path.unlink()


def work_head(asker: StandIn) -> Any:
    from medserve.batch.receipts import BatchHead

    return BatchHead(model=asker.target.model, task=asker.target.task)


def test_a_folder_of_another_model_or_of_something_else_is_refused(
    studies: Path, out: Path
) -> None:
    run_batch(studies, out, StandIn())
    head = BatchFolder(out).head()
    with pytest.raises(ConfigError, match="got one of stand_in"):
        BatchFolder(out).open(type(head)(model="another", task=Task.VOLUMES))
    with pytest.raises(ConfigError, match="expected a folder that `medserve batch` has written"):
        write_report(BatchFolder(studies))


def test_a_case_of_several_images_is_asked_about_once_and_again_when_one_changes(
    tmp_path: Path, out: Path
) -> None:
    studies = tmp_path / "cases"
    studies.mkdir()
    for name in ("a_0000.nii", "a_0001.nii", "b_0000.nii", "b_0001.nii"):
        (studies / name).write_bytes(name.encode())
    both = ("t1", "flair")
    first, again = StandIn(channels=both), StandIn(channels=both)
    assert run_batch(studies, out, first) == {ANSWERED: 2}
    assert sorted(first.asked) == [b"0: a_0000.nii; 1: a_0001.nii", b"0: b_0000.nii; 1: b_0001.nii"]
    assert run_batch(studies, out, StandIn(channels=both)) == {KEPT: 2}
    (studies / "b_0001.nii").write_bytes(b"another one")
    os.utime(studies / "a_0000.nii", ns=(1, 1))
    assert run_batch(studies, out, again) == {KEPT: 1, ANSWERED: 1}
    assert again.asked == [b"0: b_0000.nii; 1: another one"]
    (studies / "a_0001.nii").unlink()
    (studies / "a_0001.nii").mkdir()  # cannot be read
    assert run_batch(studies, out, StandIn(channels=both))[ANSWERED] == 1
