from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from medserve.errors import ConfigError
from training.core.config import Setting
from training.core.ini import parse_with_file, read_ini


@dataclass(frozen=True)
class Settings:
    """Made up for these tests."""

    lr: Annotated[float, Setting("rate", minimum=0.0)] = 0.001
    n_epochs: Annotated[int, Setting("passes", minimum=1)] = 10
    debug: Annotated[bool, Setting("pictures")] = True
    output_path: Annotated[Path | None, Setting("folder")] = None


def written(folder: Path, text: str) -> Path:
    path = folder / "config.ini"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_flag_beats_the_file_and_the_file_beats_the_default(tmp_path: Path) -> None:
    path = written(tmp_path, "[DEFAULT]\nlr = 0.5\nn_epochs = 3\n[Output]\noutput_path = out\n")
    settings = parse_with_file(Settings, ["--config", str(path), "--n-epochs", "7"])
    assert settings == Settings(lr=0.5, n_epochs=7, debug=True, output_path=Path("out"))


@pytest.mark.parametrize("text", ["False", "false", "no", "0", "off"])
def test_false_in_any_spelling_is_false(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, f"[DEFAULT]\ndebug = {text}\n")
    assert parse_with_file(Settings, ["--config", str(path)]).debug is False


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lr = fast", r"\[DEFAULT\] lr: expected float, got 'fast'"),
        ("n_epochs = 0", r"\[DEFAULT\] n_epochs: expected a value >= 1, got 0"),
        ("n_epochs = 2.5", r"\[DEFAULT\] n_epochs: expected int, got '2.5'"),
        ("debug = perhaps", r"\[DEFAULT\] debug: expected true or false, got 'perhaps'"),
        ("epochs = 3", r"\[DEFAULT\] epochs: no such key; known are debug, lr"),
    ],
)
def test_a_wrong_line_is_named_by_file_section_key_and_value(
    tmp_path: Path, line: str, said: str
) -> None:
    path = written(tmp_path, f"[DEFAULT]\n{line}\n")
    with pytest.raises(ConfigError, match=rf"config\.ini: {said}"):
        read_ini(path, Settings)


@pytest.mark.parametrize("content", ["lr = 0.5\n", "[DEFAULT\n", "\x00\xff"])
def test_what_is_no_ini_file_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.ini"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match="expected an INI file") as error:
        read_ini(path, Settings)
    assert "\n" not in str(error.value)


def test_a_key_may_have_another_name_in_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "[DEFAULT]\nepochs = 4\n")
    aliases = {"epochs": "n_epochs"}
    assert parse_with_file(Settings, ["--config", str(path)], aliases).n_epochs == 4


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.ini"):
        read_ini(tmp_path / "absent.ini", Settings)
