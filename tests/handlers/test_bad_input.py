from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers import items, request
from handlers.mednist import MednistHandler
from medserve.errors import InvalidRequestError, MedserveError
from medserve.spec import InputSpec
from tests.handlers.worker import FakeContext, answer, answers, picture
from tests.phantoms import PATIENT, dicom_bytes, dicom_dataset, disc, raster_bytes, saved, wedge

GOOD = picture(0.5)


def dicom_without_pixels() -> bytes:
    dataset = dicom_dataset(disc())
    del dataset.PixelData
    return saved(dataset)


@pytest.mark.parametrize(
    ("payload", "code", "message"),
    [
        (b"", "INVALID_IMAGE", "got no bytes"),
        (b"patient: unknown\n", "INVALID_IMAGE", "got text"),
        (raster_bytes(wedge(99, 99), "JPEG")[:-300], "INVALID_IMAGE", "cut short"),
        (raster_bytes(np.zeros((1, 1), np.uint8)), "INVALID_IMAGE", "at least 8 x 8"),
        (raster_bytes(np.zeros((6325, 6325), np.uint8)), "PAYLOAD_TOO_LARGE", "at most 40000000"),
        (b"GIF89a" + b"\0" * 20, "INVALID_IMAGE", "got a GIF"),
        (dicom_without_pixels(), "INVALID_IMAGE", "without pixel data"),
        (GOOD + b"\0" * 200_000, "PAYLOAD_TOO_LARGE", "at most 200000 bytes"),
    ],
)
def test_each_kind_of_bad_file_has_its_code(
    handler: MednistHandler, payload: bytes, code: str, message: str
) -> None:
    error = answer(handler, data=payload)["error"]
    assert error["code"] == code
    assert message in error["message"]
    item = answer(handler, data_0=GOOD, data_1=payload)["items"][1]
    assert (item["status"], item["error"]) == ("error", error)


def test_a_sixteen_bit_tiff_is_no_bad_file(handler: MednistHandler) -> None:
    payload = raster_bytes(wedge(64, 64).astype(np.uint16) * 16, "TIFF")
    assert answer(handler, data=payload)["status"] == "ok"


@pytest.mark.parametrize(
    ("inputs", "code", "message"),
    [
        ({}, "INVALID_REQUEST", "expected either data or data.0, data.1, …; got none"),
        ({"image": GOOD}, "INVALID_REQUEST", "known input keys: data (or data.0"),
        ({"data": GOOD, "data.0": GOOD}, "INVALID_REQUEST", "got both"),
        ({"data.0": GOOD, "data.2": GOOD}, "INVALID_REQUEST", "got no data.1"),
        ({"data.1": GOOD}, "INVALID_REQUEST", "got no data.0"),
        ({"data.00": GOOD}, "INVALID_REQUEST", "known input keys"),
        ({"data": "text from a form"}, "INVALID_REQUEST", "bytes of a file"),
        ({f"data.{i}": GOOD for i in range(301)}, "PAYLOAD_TOO_LARGE", "at most 300 files a call"),
        ({"data": GOOD, "params": b"top_k=3"}, "INVALID_REQUEST", "no JSON"),
        ({"data": GOOD, "params": b"[3]"}, "INVALID_REQUEST", "another JSON value"),
        ({"data": GOOD, "params": b"[" * 60_000}, "INVALID_REQUEST", "no JSON"),
        ({"data": GOOD, "params": b" " * 70_000}, "INVALID_REQUEST", "at most 65536 bytes"),
        ({"data": GOOD, "params": b'{"topk": 3}'}, "INVALID_REQUEST", "known keys: explain, top_k"),
        ({"data": GOOD, "params": b'{"top_k": 0}'}, "INVALID_REQUEST", "from 1 to 3"),
        ({"data": GOOD, "params": b'{"top_k": 4}'}, "INVALID_REQUEST", "from 1 to 3"),
        ({"data": GOOD, "params": b'{"top_k": true}'}, "INVALID_REQUEST", "from 1 to 3"),
        ({"data": GOOD, "params": b'{"top_k": "3"}'}, "INVALID_REQUEST", "from 1 to 3"),
        ({"data.0": GOOD, "params": b'{"top_k": 9}'}, "INVALID_REQUEST", "from 1 to 3"),
        ({"data": GOOD, "deadline_ms": b"soon"}, "INVALID_REQUEST", "deadline_ms"),
        ({"data": GOOD, "deadline_ms": b"-5"}, "INVALID_REQUEST", "deadline_ms"),
        ({"data": GOOD, "stream": b"yes"}, "INVALID_REQUEST", "stream: expected 0 or 1"),
        ({"data": GOOD, "request_id": b"Jane Doe"}, "INVALID_REQUEST", "request_id"),
    ],
)
def test_each_malformed_request_says_what_is_expected(
    handler: MednistHandler, inputs: dict[str, Any], code: str, message: str
) -> None:
    got = answers(handler, inputs)[0]
    assert got["status"] == "error"
    assert got["error"]["code"] == code
    assert message in got["error"]["message"]


def test_no_error_repeats_a_key_or_a_value_of_the_caller(handler: MednistHandler) -> None:
    got = answers(
        handler,
        {"Doe_Jane.png": GOOD},
        {"data": GOOD, "params": b'{"Doe": 1}'},
        {"data": GOOD, "params": b'{"top_k": "Doe"}'},
        {"data": GOOD, "deadline_ms": b"Doe"},
        {"data": b"Doe, Jane, born 1970"},
    )
    assert "Doe" not in str(got)


def test_everything_that_callers_may_send_is_accepted_together(handler: MednistHandler) -> None:
    got = answer(
        handler,
        data=GOOD,
        params=b'{"top_k": 3}',
        transport=b"grpc",
        stream=b"0",
        deadline_ms=b"60000",
        request_id=b"0f8fad5b-d9cb-469f-a165-70867728950e",
    )
    assert got["status"] == "ok"


def test_a_bare_rest_body_is_one_file(handler: MednistHandler) -> None:
    assert answer(handler, body=GOOD)["status"] == "ok"


def test_an_expired_deadline_is_answered_without_work(handler: MednistHandler) -> None:
    got = answer(handler, data=GOOD, deadline_ms=b"0")
    assert got["error"]["code"] == "DEADLINE_EXCEEDED"


def test_files_that_were_reached_in_time_keep_their_answers(
    handler: MednistHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            Clock.now += 0.001
            return Clock.now

        perf_counter = monotonic

    clock = Clock()
    monkeypatch.setattr(items, "time", clock)
    monkeypatch.setattr(request, "time", clock)
    got = answer(handler, **{f"data_{i}": GOOD for i in range(100)}, deadline_ms=b"70")
    statuses = [each.get("error", {}).get("code", "ok") for each in got["items"]]
    assert statuses == sorted(statuses, key=lambda each: each != "ok")
    assert 60 < statuses.count("ok") < 80
    assert statuses[-1] == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize(
    ("inputs", "marked"),
    [
        ({"data": GOOD}, False),  # REST: the header would make the call hang
        ({"data": GOOD, "transport": b"rest"}, False),
        ({"data": GOOD, "transport": b"grpc"}, True),
        ({"data": GOOD, "stream": b"1"}, True),
        ({"data": b"rubbish", "transport": b"grpc"}, True),
        ({"unknown": b"key", "transport": b"grpc"}, True),
        ({"data": GOOD, "stream": b"nonsense"}, True),
    ],
)
def test_only_grpc_and_stream_calls_get_the_header_that_ends_a_stream(
    handler: MednistHandler, inputs: dict[str, bytes], marked: bool
) -> None:
    context = FakeContext({})
    handler.handle([{"data": GOOD}, inputs], context)
    assert context.headers == ({1: {"ts_stream_next": "false"}} if marked else {})


def test_an_answer_too_large_for_the_server_becomes_an_error(
    handler: MednistHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "_max_response_bytes", 1000)
    got = answers(handler, {f"data.{i}": GOOD for i in range(9)}, {"data": GOOD})
    assert got[0]["error"]["code"] == "PAYLOAD_TOO_LARGE"
    assert "at most 1000 bytes" in got[0]["error"]["message"]
    assert got[1]["status"] == "ok"


SECRET = "pixel values of Doe"


class Faulty:
    """Fails in one verb for the dark picture, with a message that quotes the input."""

    def __init__(self, verb: Any) -> None:
        self.verb = verb

    def __call__(self, value: Any) -> Any:
        """Do it, then fail where the picture is dark."""
        result = self.verb(value)
        if "dark" in str(getattr(result, "label", "")) or (
            isinstance(result, np.ndarray) and result.mean() < 0.2
        ):
            raise KeyError(SECRET)
        return result


@pytest.mark.parametrize("verb", ["to_network", "from_network"])
def test_a_bug_costs_its_own_file_and_tells_the_log_where_not_what(
    handler: MednistHandler,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    verb: str,
) -> None:
    monkeypatch.setattr(handler, verb, Faulty(getattr(handler, verb)))
    got = answer(handler, data_0=picture(0.9), data_1=picture(0.05), request_id=b"abcd-1234")
    assert [each["status"] for each in got["items"]] == ["ok", "error"]
    assert got["items"][1]["error"] == {
        "code": "INTERNAL",
        "message": "internal error, reference abcd-1234",
    }
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "reference abcd-1234: KeyError at test_bad_input.py:" in record.getMessage()
    assert SECRET not in caplog.text


def test_a_failing_engine_is_an_internal_error_of_every_file_in_the_call(
    handler: MednistHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "infer", Faulty(lambda tensors: tensors * 0))
    got = answers(handler, {"data": GOOD}, {"data": b"text"}, {"data": GOOD})
    assert [each["error"]["code"] for each in got] == ["INTERNAL", "INVALID_IMAGE", "INTERNAL"]
    assert got[0]["error"]["message"] == "internal error, reference server-id-0"


def test_an_answer_that_is_no_number_is_an_internal_error(
    handler: MednistHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = np.full((1, 3), np.nan, np.float32)
    monkeypatch.setattr(handler, "infer", lambda _: {"logits": nan, "novelty": nan[:, 0]})
    assert answer(handler, data=GOOD)["error"]["code"] == "INTERNAL"


def test_damaged_headers_leave_no_trace_in_log_or_on_the_terminal(
    handler: MednistHandler,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    whole = dicom_bytes(disc())
    for position in range(132, len(whole) - 900, 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        handler.handle([{"data": damaged}], FakeContext({}))
    for end in range(100, len(whole), 90):
        handler.handle([{"data": bytearray(whole[:end])}], FakeContext({}))
    seen = caplog.text + "".join(capfd.readouterr())
    assert PATIENT not in seen
    assert "Doe" not in seen
    assert "pydicom" not in seen


@pytest.mark.cpu
@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            ["data", "data.0", "data.1", "params", "transport", "stream", "deadline_ms", "x", ""]
        ),
        st.one_of(st.binary(max_size=40), st.text(max_size=10), st.just({}), st.just(GOOD)),
        max_size=5,
    )
)
def test_no_input_map_can_break_a_batch(handler: MednistHandler, inputs: dict[str, Any]) -> None:
    got = answers(handler, inputs, {"data": GOOD})
    assert got[1]["status"] == "ok"
    if "error" in got[0]:
        assert got[0]["error"]["code"] != MedserveError.code, got[0]


def test_a_model_that_makes_images_is_asked_without_data() -> None:
    limits = InputSpec(kinds=(), size=(64, 64))
    parsed = request.parse({"params": b'{"n": 4}'}, limits, needs_data=False)
    assert parsed.payloads == ()
    assert parsed.params == {"n": 4}
    for sent in ({"data": GOOD}, {"data.0": GOOD}):
        with pytest.raises(InvalidRequestError, match="from params alone"):
            request.parse(sent, limits, needs_data=False)
    with pytest.raises(InvalidRequestError, match="got none"):
        request.parse({"params": b"{}"}, limits)
