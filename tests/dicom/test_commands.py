from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medserve.cli.main import app
from medserve.dicom.spool import Spool
from tests.dicom.series import RULES, series, write
from tests.dicom.test_spool import made, receive, settle_all


def medserve(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["dicom", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.toml"
    path.write_text(RULES.format(quiet_s=0))
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return the folder of a node that has a held task and a task that waits."""
    spool = Spool(tmp_path / "state")
    for number in (1, 2):
        receive(spool, number, 1)
    settle_all(spool)
    spool.change(1, "held", "INVALID_IMAGE: expected slices")
    spool.close()
    return tmp_path / "state"


def tasks(state: Path) -> Sequence[tuple[int, str]]:
    spool = Spool(state)
    found = [(each.id, each.state) for each in spool.tasks("held", "waiting", "answered")]
    spool.close()
    return found


def test_a_dry_run_ends_with_1_where_a_series_is_not_complete(rules: Path, tmp_path: Path) -> None:
    write(tmp_path / "good", series(1))
    assert "complete" in medserve("check", rules, tmp_path / "good")
    write(tmp_path / "bad", series(2)[:3])
    output = medserve("check", rules, tmp_path / "bad", code=1)
    assert "got 3" in output
    assert "Secret" not in output


def test_the_queue_tells_numbers_and_reasons_and_no_names(state: Path) -> None:
    output = medserve("queue", "--state", state)
    assert "INVALID_IMAGE" in output
    assert "1 held, 1 waiting" in output
    assert "1.1.1" not in output


def test_held_tasks_are_tried_again_and_others_are_not(state: Path) -> None:
    output = medserve("retry", 1, 2, 3, "--state", state)
    assert output.count("nothing of it is held") == 2
    assert tasks(state) == [(1, "waiting"), (2, "waiting")]


def test_forgotten_series_are_new_again(state: Path) -> None:
    output = medserve("forget", 1, 7, "--state", state)
    assert "there is none" in output
    assert tasks(state) == [(2, "waiting")]
    assert len(list(state.rglob("*.dcm"))) == 1


def test_results_of_a_forgotten_series_go_with_it(state: Path) -> None:
    spool = Spool(state)
    [task] = spool.tasks("waiting")
    assert spool.finish(task, [made(spool, "9.9")], ["PACS@h:1"])
    spool.close()
    medserve("forget", 2, "--state", state)
    assert not list((state / "results").iterdir())


def test_a_node_beyond_loopback_wants_to_know_its_senders(rules: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    output = medserve("serve", rules, "--host", "0.0.0.0", "--state", state, code=2)
    assert output.startswith("error: --allow")


def test_a_web_face_beyond_loopback_is_not_open_to_everybody(rules: Path, tmp_path: Path) -> None:
    arguments = ("--web", "0.0.0.0:0", "--destination", "PACS@h:1", "--state", tmp_path / "state")
    output = medserve("serve", rules, *arguments, code=2)
    assert output.startswith("error: --web")


def test_a_folder_that_is_no_state_is_refused(tmp_path: Path) -> None:
    assert "folder of a node" in medserve("queue", "--state", tmp_path, code=2)
