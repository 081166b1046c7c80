"""Configs become flags, and what cannot work is refused in one line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from medserve.errors import ConfigError
from training.core.config import FitConfig, Setting, TrainPrecision, parse, run, write
from training.core.files import require_folder


@dataclass(frozen=True)
class Config(FitConfig):
    """Train something."""

    width: Annotated[int, Setting("channels", minimum=1, maximum=64)] = 16
    extra: Annotated[Path | None, Setting("a folder more")] = None


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line with which these flags are refused."""
    with pytest.raises(SystemExit) as stopped:
        parse(Config, arguments)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_no_flag_gives_the_defaults() -> None:
    assert parse(Config, []) == Config()


def test_a_flag_beats_the_default() -> None:
    config = parse(Config, ["--width", "24", "--out-dir", "here", "--precision", "bf16-mixed"])
    assert config == Config(width=24, out_dir=Path("here"), precision=TrainPrecision.BF16)


def test_a_switch_can_be_put_on_and_off() -> None:
    assert parse(Config, ["--resume"]).resume
    assert not parse(Config, ["--no-resume"]).resume


def test_an_optional_path_is_a_path_where_it_is_given() -> None:
    assert parse(Config, ["--extra", "a/b"]).extra == Path("a/b")


@pytest.mark.parametrize(
    ("flag", "value", "reason"),
    [
        ("--width", "0", "between 1 and 64"),
        ("--width", "65", "between 1 and 64"),
        ("--width", "wide", "expected int, got 'wide'"),
        ("--epochs", "-1", "expected a value >= 1"),
        ("--learning-rate", "nan", "expected a value >= 0"),
        ("--precision", "f16", "expected one of 32-true, bf16-mixed"),
        ("--widht", "16", "unrecognized arguments"),
    ],
)
def test_an_impossible_value_is_refused_in_one_line(
    flag: str, value: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reason in refusal(capsys, flag, value)


def test_an_expected_error_becomes_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main(config: Config) -> None:
        require_folder(config.data_dir, "--data-dir")

    assert run(main, Config, ["--data-dir", "/nowhere/at/all"]) == 2
    message = capsys.readouterr().err
    assert (
        message
        == "error: expected --data-dir to be a folder, but there is none at /nowhere/at/all\n"
    )


def test_a_folder_that_is_there_is_returned(tmp_path: Path) -> None:
    assert require_folder(tmp_path, "--data-dir") == tmp_path
    with pytest.raises(ConfigError, match="--data-dir"):
        require_folder(tmp_path / "missing", "--data-dir")


def test_the_resolved_config_is_written_as_json(tmp_path: Path) -> None:
    write(Config(width=8), tmp_path / "new" / "config.json")
    content = json.loads((tmp_path / "new" / "config.json").read_text())
    assert content["width"] == 8
    assert content["precision"] == "32-true"
    assert content["data_dir"] == "data"


@pytest.mark.parametrize("place", ["checkpoints", "member_0/checkpoints"])
def test_a_training_that_is_there_is_not_overwritten(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(config: Config) -> None:
        started.append(config.out_dir)

    started: list[Path] = []
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "last.ckpt").touch()
    assert run(main, Config, ["--out-dir", str(tmp_path)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert not started
    assert run(main, Config, ["--out-dir", str(tmp_path), "--resume"]) == 0
    assert run(main, Config, ["--out-dir", str(tmp_path / "another")]) == 0
    assert started == [tmp_path, tmp_path / "another"]
