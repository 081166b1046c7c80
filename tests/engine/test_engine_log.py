"""TorchServe's output tells why a worker died."""

from __future__ import annotations

import io
import logging

import pytest

from medserve.engine.torchserve.log import EngineLog, WorkerDeath

_START = ("[PID]4711", "Torch worker started.", "model_name: tiny, batchSize: 8")
_TRACEBACK = (
    "Backend worker process died.",
    "Traceback (most recent call last):",
    '  File "model_service_worker.py", line 301, in <module>',
    "    worker.run_server()",
)


def read(*messages: str, worker: str = "W-9000-tiny_1.0") -> EngineLog:
    """A log that has read the lines of one worker."""
    log = EngineLog(io.StringIO())
    for message in messages:
        log.feed(f"INFO|MODEL_LOG|{worker}-stdout|{message}")
    return log


def test_a_worker_that_runs_has_not_died() -> None:
    assert read(*_START).death("tiny", "1.0") is None


def test_our_own_error_is_the_reason_as_it_stands() -> None:
    log = read(*_START, *_TRACEBACK, "medserve.errors.ModelNotReadyError: expected logits")
    assert log.death("tiny", "1.0") == WorkerDeath(1, "expected logits")


def test_another_error_keeps_the_name_of_its_kind() -> None:
    log = read(*_START, *_TRACEBACK, "ModuleNotFoundError: No module named 'openvino'")
    assert log.death("tiny", "1.0") == WorkerDeath(
        1, "ModuleNotFoundError: No module named 'openvino'"
    )


def test_the_last_exception_of_a_chain_counts() -> None:
    cause = "During handling of the above exception, another exception occurred:"
    log = read(*_START, *_TRACEBACK, "KeyError: 'a'", cause, *_TRACEBACK[1:], "ValueError: b")
    assert log.death("tiny", "1.0") == WorkerDeath(1, "ValueError: b")


def test_the_error_that_torchserve_swallows_is_still_the_reason() -> None:
    swallowed = ("Failed to load model tiny, exception boom", "RuntimeError: boom")
    log = read(*_START, *swallowed, *_TRACEBACK, "RuntimeError: 500 - Unknown exception")
    assert log.death("tiny", "1.0") == WorkerDeath(1, "boom")


def test_a_worker_that_starts_again_without_a_word_was_killed() -> None:
    assert read(*_START, *_START).death("tiny", "1.0") == WorkerDeath(1, "")


def test_a_restart_after_a_spoken_death_is_not_counted_twice() -> None:
    log = read(*_START, *_TRACEBACK, "ValueError: b", *_START)
    assert log.death("tiny", "1.0") == WorkerDeath(1, "ValueError: b")


def test_the_death_of_another_version_does_not_count() -> None:
    assert read(*_START, *_TRACEBACK, "ValueError: b").death("tiny", "1.1") is None


def test_an_error_in_a_line_of_a_living_worker_is_no_death() -> None:
    assert read(*_START, "ValueError: printed by a handler").death("tiny", "1.0") is None


def test_a_restart_is_told_to_the_operator(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="medserve.engine"):
        read(*_START, *_TRACEBACK, "ValueError: b", *_START)
    assert caplog.messages == ["tiny_1.0: a worker died (ValueError: b) and starts again"]


def test_the_last_fitting_line_can_be_found() -> None:
    log = EngineLog(io.StringIO())
    for line in ("ERROR|ModelServer|main|Failed to bind to address: 7070", "done"):
        log.feed(line)
    assert log.tail("Failed to bind").startswith("Failed to bind")
    assert log.tail() == "done"
    assert log.tail("never") == ""


def test_the_stream_is_read_to_its_end() -> None:
    log = EngineLog(io.StringIO("one\ntwo\n"))
    log.start()
    log.join(timeout_s=5)
    assert log.tail() == "two"
