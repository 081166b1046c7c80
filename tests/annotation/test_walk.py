"""The commands of docs/build/frames-data.md, word for word, and how commands fail."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.pages import blocks
from training.frames.data import find_frames
from training.trus_prostate import run_command

PAGE = Path(__file__).parents[2] / "docs/build/frames-data.md"
FIRST = ["python", "-m", "training.trus_prostate"]


def first_block() -> list[list[str]]:
    """The lines of the page's first shell block, as arguments."""
    lines = [shlex.split(line) for line in blocks(PAGE, "bash")[0].splitlines()]
    assert all(line[:3] == FIRST for line in lines)
    return [line[3:] for line in lines]


@pytest.mark.cpu
def test_documented_way_leads_from_raw_files_to_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    walk = first_block()
    assert [each[0] for each in walk] == ["simulate", "prepare", "annotate", "import"]
    assert [run_command(arguments) for arguments in walk] == [0, 0, 0, 0]
    frames = find_frames(Path("work/trus"))  # as the training reads them
    assert len(frames) == 12
    assert len({frame.patient for frame in frames}) == 3


@pytest.mark.parametrize("argument", ["--batch-size", "fly"])
def test_what_is_no_command_is_left_to_the_training(
    argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_command([argument])
    assert argument in capsys.readouterr().err


@pytest.mark.parametrize("command", ["annotate", "import", "prepare", "simulate"])
def test_expected_failures_end_in_one_line(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    assert run_command([command, "--out-dir", "taken"]) == 2
    assert re.fullmatch(r"error: expected [^\n]+\n", capsys.readouterr().err)
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["file"]
