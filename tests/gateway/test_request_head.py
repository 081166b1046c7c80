"""The head of a request is read as protobuf's own parser reads it, or refused where it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medserve.errors import InvalidRequestError
from medserve.gateway.faces.torchserve.request_head import RequestHead, read_head
from medserve.wire import inference_pb2


def parsed(message: bytes) -> RequestHead | None:
    """As protobuf's parser sees it; None where it refuses."""
    try:
        request = inference_pb2.PredictionsRequest.FromString(message)
    except DecodeError:
        return None
    request_id = request.input.get("request_id", b"")
    return RequestHead(request.model_name, request.model_version, request_id)


def head(message: bytes) -> RequestHead | None:
    """What is read of it, without its inputs, which have tests of their own."""
    try:
        return replace(read_head(message), inputs={})
    except InvalidRequestError:
        return None


def varint(value: int, padding: int = 0) -> bytes:
    """A varint with some more bytes than it needs."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    for _ in range(padding):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


def field(number: int, content: bytes, padding: int = 0) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2, padding) + varint(len(content), padding) + content


_TEXT = st.text(max_size=6).map(str.encode)
_LEAVES = st.one_of(
    st.builds(field, st.integers(1, 9), _TEXT, st.integers(0, 3)),
    st.builds(field, st.integers(1, 2**29 - 1), st.binary(max_size=6)),
    st.builds(lambda n, v, p: varint(n << 3) + varint(v, p),
              st.integers(1, 9), st.integers(0, 2**64 - 1), st.integers(0, 2)),
    st.builds(lambda n: varint(n << 3 | 1) + b"8 bytes.", st.integers(1, 9)),
    st.builds(lambda n: varint(n << 3 | 5) + b"four", st.integers(1, 9)),
)  # fmt: skip
_GROUPS = st.recursive(
    _LEAVES,
    lambda inner: st.builds(
        lambda n, parts: varint(n << 3 | 3) + b"".join(parts) + varint(n << 3 | 4),
        st.integers(1, 9), st.lists(inner, max_size=3),
    ),
    max_leaves=6,
)  # fmt: skip
_KEYS = st.sampled_from([b"request_id", b"data", b"", b"params"])
_ENTRIES = st.lists(
    st.one_of(
        st.builds(field, st.just(1), _KEYS), st.builds(field, st.just(2), st.binary(max_size=9)),
        _GROUPS,
    ),
    max_size=5,
).map(lambda parts: field(3, b"".join(parts)))  # fmt: skip
_MESSAGES = st.lists(st.one_of(_ENTRIES, _GROUPS), max_size=8).map(b"".join)


@pytest.mark.cpu
@settings(max_examples=400)
@given(_MESSAGES)
def test_fields_in_any_order_are_read_as_protobuf_reads_them(message: bytes) -> None:
    assert head(message) == parsed(message)


@pytest.mark.cpu
@settings(max_examples=400)
@given(_MESSAGES)
def test_inputs_are_those_of_protobuf_where_nothing_else_would_reach_the_model(
    message: bytes,
) -> None:
    if parsed(message) is None:
        return
    request = inference_pb2.PredictionsRequest.FromString(message)
    carries_more = len(UnknownFieldSet(request)) > 0 or request.sequence_id != ""
    inputs = {key: value for key, value in request.input.items() if key != "request_id"}
    if found := dict(read_head(message).inputs):
        assert found == inputs
        assert not carries_more


def test_inputs_that_the_gateway_replaces_are_left_out() -> None:
    ours = {"transport": b"rest", "stream": b"1", "deadline_ms": b"900", "request_id": b"x"}
    given = {"data": b"pixels", "params": b"{}"}
    request = inference_pb2.PredictionsRequest(model_name="tiny", input=given | ours)
    assert read_head(request.SerializeToString()).inputs == given


@pytest.mark.parametrize(
    "rest",
    [
        b"\xa2\x06\x03abc",  # an unknown field
        field(4, b"sequence"),
        field(3, field(1, b"deadline_ms") + field(2, b"soon")),
        field(3, field(1, b"data") + field(2, b"pixels") + field(7, b"more")),
        field(3, field(1, b"data") + field(2, bytes(2**20))),
    ],
)
def test_a_message_with_more_than_its_inputs_or_a_large_one_goes_on_as_it_came(rest: bytes) -> None:
    request = inference_pb2.PredictionsRequest(model_name="tiny", input={"data": b"pixels"})
    assert read_head(request.SerializeToString() + rest).inputs == {}


@pytest.mark.cpu
@settings(max_examples=400)
@given(_MESSAGES, st.data())
def test_a_damaged_message_is_refused_where_protobuf_refuses_it(
    message: bytes, data: st.DataObject
) -> None:
    if not message:
        return
    place = data.draw(st.integers(0, len(message) - 1))
    kind = data.draw(st.sampled_from(["cut", "change", "insert"]))
    byte = data.draw(st.binary(min_size=1, max_size=3))
    rest = {"cut": b"", "change": byte + message[place + 1 :], "insert": byte + message[place:]}
    damaged = message[:place] + rest[kind]
    assert head(damaged) == parsed(damaged)


@settings(max_examples=300)
@given(st.binary(max_size=40))
@example(b"\xff\xff\xff")
def test_any_bytes_are_taken_or_refused_as_protobuf_does(message: bytes) -> None:
    assert head(message) == parsed(message)


@pytest.mark.parametrize(
    "message",
    [
        b"\x0a\xff\xff\xff\xff\x0fa",  # a length of 4 GiB
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01a",  # a length of ten bytes
        b"\x0a\x05abc",  # longer than the message
        b"\x1a\x03\x0a\x05abcde",  # a key longer than its entry
        b"\x0a",
        b"\x08\x80",  # a varint that does not end
        b"\x08" + b"\x80" * 10 + b"\x01",
        b"\x00\x01",  # field 0
        b"\x0e",  # a wire type that does not exist
        b"\x2b" * 101 + b"\x2c" * 101,  # groups in groups in groups
        b"\x2b\x34",  # a group with the end of another
        b"\x0c",
        b"\x0a\x01\xff",  # a name that is not UTF-8
        b"\x22\x01\xff",
    ],
)
def test_a_malformed_message_is_an_invalid_request(message: bytes) -> None:
    assert parsed(message) is None
    with pytest.raises(InvalidRequestError, match="expected a PredictionsRequest"):
        read_head(message)


def test_more_fields_than_any_request_has_are_refused_before_they_hold_up_other_calls() -> None:
    with pytest.raises(InvalidRequestError):
        read_head(b"\x28\x00" * 200_000)


def test_pixels_are_not_looked_at() -> None:
    request = inference_pb2.PredictionsRequest(
        model_name="tiny", input={"data": bytes(2**26), "request_id": b"0f8fad5b"}
    )
    assert read_head(request.SerializeToString()) == RequestHead("tiny", "", b"0f8fad5b")


@pytest.mark.parametrize(
    ("told", "left_s"), [(b"1500", 1.5), (b"", None), (b"-1", None), (b"1" * 11, None)]
)
def test_the_time_that_a_caller_allows_is_read_beside_the_model(
    told: bytes, left_s: float | None
) -> None:
    request = inference_pb2.PredictionsRequest(model_name="tiny", input={"deadline_ms": told})
    assert read_head(request.SerializeToString()).left_s == left_s
