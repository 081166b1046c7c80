"""Tokens: only hashes on disk, several at a time, changed without a restart."""

from __future__ import annotations

import json
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from medserve.errors import ConfigError
from medserve.gateway.core import tokens
from medserve.gateway.core.calls import Caller
from medserve.gateway.core.tokens import TokenFile, add_token, new_token, read_entries


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


@pytest.fixture(autouse=True)
def _look_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_LOOK_AGAIN_S", 0.0)


def give(file: Path, name: str = "ward-7", models: tuple[str, ...] = ("tiny",)) -> str:
    token, entry = new_token(name, models)
    add_token(file, entry)
    return token


def test_a_token_opens_its_models_and_no_other(file: Path) -> None:
    token = give(file)
    caller = TokenFile(file).caller(token)
    assert caller == Caller("ward-7", frozenset({"tiny"}))
    assert caller.may("tiny")
    assert not caller.may("mednist")


def test_the_file_holds_no_token_and_belongs_to_its_owner(file: Path) -> None:
    token = give(file)
    assert token.rsplit("_", 1)[1] not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_tokens_that_are_made_at_the_same_time_all_count(file: Path) -> None:
    together = threading.Barrier(8)

    def make(number: int) -> str:
        together.wait()
        return give(file, f"ward-{number}")

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make, range(8)))
    tokens_file = TokenFile(file)
    assert all(tokens_file.caller(token) for token in made)
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda token: token[:-1],
        lambda token: token + "A",
        lambda token: token.replace("ms_", "sm_"),
        lambda token: "ms__",
        lambda token: "",
        lambda token: "ms_" + token.split("_")[1] + "_",
    ],
)
def test_a_token_that_is_nearly_right_opens_nothing(file: Path, spoil) -> None:  # type: ignore[no-untyped-def]
    token = give(file)
    assert TokenFile(file).caller(spoil(token)) is None


def test_a_new_token_counts_and_a_removed_one_does_not_without_a_restart(file: Path) -> None:
    old = give(file)
    running = TokenFile(file)
    new = give(file)
    assert running.caller(old) == running.caller(new)  # both have the same owner
    content = json.loads(file.read_text())
    file.write_text(json.dumps({"tokens": content["tokens"][1:]}))
    assert running.caller(old) is None
    assert running.caller(new) is not None


def test_a_token_counts_to_the_end_of_its_last_day(file: Path) -> None:
    today = datetime.now(UTC).date()
    last, entry = new_token("a", expires=today)
    add_token(file, entry)
    over, entry = new_token("b", expires=today - timedelta(days=1))
    add_token(file, entry)
    assert TokenFile(file).caller(last) == Caller("a")
    assert TokenFile(file).caller(over) is None


def test_a_broken_file_leaves_the_tokens_of_before(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = give(file)
    running = TokenFile(file)
    file.write_text("{")
    assert running.caller(token) is not None
    assert "still count" in caplog.text
    file.unlink()
    assert running.caller(token) is not None


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[]",
        '{"tokens": {}}',
        '{"tokens": [{"id": "a1"}]}',
        '{"tokens": [{"id": "a1", "name": "x", "models": "tiny", "salt": "", "sha256": ""}]}',
        '{"tokens": [{"id": "a1", "name": "", "models": ["tiny"], "salt": "", "sha256": ""}]}',
        '{"tokens": [{"id": "a1", "name": "x", "models": [], "salt": "", "sha256": ""}]}',
        '{"tokens": [{"id": "a1", "name": "x", "models": ["*"], "salt": "s", "sha256": "h", '
        '"expires": "soon"}]}',
        '{"tokens": [{"id": "a1", "name": "x", "models": ["*"], "salt": "s", "sha256": "h", '
        '"token": "secret"}]}',
    ],
)
def test_a_file_that_is_wrong_at_the_start_is_told_without_its_secrets(
    file: Path, content: str
) -> None:
    file.write_text(content)
    with pytest.raises(ConfigError, match="tokens file") as caught:
        TokenFile(file)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_a_file_that_the_gateways_user_may_read_stays_so(file: Path, mode: int) -> None:
    give(file)
    file.chmod(mode)
    before = file.stat()
    give(file, "ward-8")
    after = file.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode, before.st_uid, before.st_gid,
    )  # fmt: skip
    assert len(read_entries(file)) == 2
