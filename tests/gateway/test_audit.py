"""The audit log names who asked what, nothing of the input, and shows if it was altered."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from medserve.errors import ArchiveError, ConfigError, MedserveError, ServerFailedError
from medserve.gateway.core.audit import AuditLog, AuditRecord, verify
from medserve.gateway.core.gateway import Caller, EngineCall, Guards, new_request_id
from tests.gateway.fake_engine import FakeEngine, fake_gateway

_RECORD = AuditRecord(
    who="ward-7",
    face="typed",
    request_id="0f8fad5b-d9cb-469f-a165-70867728950e",
    model="tiny",
    version="1.0",
    archive="sha256:00",
    request_bytes=10,
    response_bytes=20,
    status="OK",
    took_ms=1.5,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def filled(path: Path, lines: int = 5) -> list[bytes]:
    log = AuditLog(path)
    for _ in range(lines):
        log.write(_RECORD)
    log.close()
    return path.read_bytes().splitlines(keepends=True)


def test_every_line_names_the_call_and_holds_the_chain(path: Path) -> None:
    lines = filled(path)
    first, second = json.loads(lines[0]), json.loads(lines[1])
    assert second["previous"] == first["hash"]
    assert {key: first[key] for key in ("who", "model", "version", "status")} == {
        "who": "ward-7",
        "model": "tiny",
        "version": "1.0",
        "status": "OK",
    }
    verdict = verify(path)
    assert (verdict.lines, verdict.last_hash) == (5, json.loads(lines[-1])["hash"])


def test_the_chain_goes_on_after_a_restart(path: Path) -> None:
    filled(path)
    filled(path)
    assert verify(path).lines == 10


@pytest.mark.parametrize(
    "alter",
    [
        lambda lines: [lines[0].replace(b"ward-7", b"ward-8"), *lines[1:]],
        lambda lines: [*lines[:2], *lines[3:]],
        lambda lines: lines[1:],
        lambda lines: [lines[0], lines[0], *lines[1:]],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [*lines[:-1], lines[-1][:-5]],
        lambda lines: [*lines, b"[]\n"],
    ],
)
def test_an_altered_log_is_found(path: Path, alter: Any) -> None:
    path.write_bytes(b"".join(alter(filled(path))))
    with pytest.raises(ArchiveError, match=r"audit\.jsonl:\d"):
        verify(path)


def test_a_log_whose_end_was_cut_off_lacks_the_hash_that_was_written_down(path: Path) -> None:
    lines = filled(path)
    expected = verify(path).last_hash
    assert verify(path, expected).lines == 5
    path.write_bytes(b"".join(lines[:3]))
    assert verify(path).lines == 3
    with pytest.raises(ArchiveError, match="cut off"):
        verify(path, expected)


def test_a_line_that_a_crash_cut_off_is_dropped_at_the_next_start(path: Path) -> None:
    filled(path)
    with path.open("ab") as file:
        file.write(b'{"at":"2026')
    filled(path, lines=1)
    assert verify(path).lines == 6


def test_two_gateways_do_not_write_one_log(path: Path) -> None:
    log = AuditLog(path)
    with pytest.raises(ConfigError, match="another gateway"):
        AuditLog(path)
    log.close()


def test_a_file_that_is_no_log_is_not_written_to(path: Path) -> None:
    path.write_text("something else\n")
    with pytest.raises(ConfigError):
        AuditLog(path)
    assert path.read_text() == "something else\n"


def test_a_call_leaves_one_line_without_anything_of_its_input(path: Path) -> None:
    log = AuditLog(path)
    gateway = fake_gateway(FakeEngine(lambda _: b"answer"), guards=Guards(audit=log))

    async def calls() -> None:
        for name in ("tiny", "Smith^John"):
            wanted = EngineCall(
                name,
                "",
                {"data": b"Smith^John", "params": b'{"note":"Smith^John"}'},
                new_request_id(),
                caller=Caller("ward-7"),
            )
            await asyncio.gather(gateway.predict(wanted), return_exceptions=True)

    asyncio.run(calls())
    log.close()
    good, bad = (json.loads(line) for line in path.read_text().splitlines())
    assert (good["status"], good["model"], good["response_bytes"]) == ("OK", "tiny", 6)
    assert (bad["status"], bad["model"]) == ("UNKNOWN_MODEL", "unknown")
    assert "Smith" not in path.read_text()
    assert verify(path).lines == 2


def test_an_answer_that_cannot_be_logged_is_not_given(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(path)
    gateway = fake_gateway(FakeEngine(lambda _: b"answer"), guards=Guards(audit=log))

    def full(file: int, line: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    wanted = EngineCall("tiny", "", {"data": b"x"}, new_request_id(), caller=Caller())
    with pytest.raises(MedserveError) as caught:
        asyncio.run(gateway.predict(wanted))
    assert isinstance(caught.value, ServerFailedError)
    assert "audit log" in str(caught.value)
    monkeypatch.undo()
    log.close()


def test_no_part_of_a_stream_that_cannot_be_logged_is_given(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(path)
    gateway = fake_gateway(FakeEngine(lambda _: [b"one", b"two"]), guards=Guards(audit=log))
    wanted = EngineCall("tiny", "", {"data": b"x"}, new_request_id(), caller=Caller())
    given: list[bytes] = []

    async def read() -> None:
        async for part in gateway.stream(wanted):
            given.append(part)

    asyncio.run(read())
    statuses = [json.loads(line)["status"] for line in path.read_text().splitlines()]
    assert (given, statuses) == ([b"one", b"two"], ["STREAMING", "OK"])
    given.clear()

    def full(file: int, line: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ServerFailedError, match="audit log"):
        asyncio.run(read())
    assert given == []
    monkeypatch.undo()
    log.close()
