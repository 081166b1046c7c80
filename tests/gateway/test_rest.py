"""The REST twins: what curl sends and gets, and what an attacker does."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi import Request as Received
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve.errors import InvalidRequestError, MedserveError, ServerBusyError
from medserve.gateway.core.gateway import Caller, Gateway, Guards, Limits
from medserve.gateway.faces.rest import app as rest
from medserve.gateway.faces.rest.body import FormFile, RestLimits, files
from medserve.results.segmentation import Segmentation
from medserve.spec import Task
from medserve.tasks import FrameOptions, GenerationOptions, VolumeOptions, declared
from medserve.tasks.volumes import VolumeResult
from tests.gateway.faces import DIGEST, LABELS, SEGMENTATION, classified, compact, drawn, segmented
from tests.gateway.fake_engine import FakeEngine, Request, fake_gateway, model

_MODELS = (
    model("kinds", labels=LABELS),
    model("hippocampus", Task.VOLUMES, labels=LABELS),
    model("sampler", Task.GENERATION, labels=("T1", "T2")),
)
_OCTETS = {"content-type": "application/octet-stream"}
_CLASSIFY = "/v1/models/kinds/classify"
_SEGMENT = "/v1/models/hippocampus/segment"
_SAMPLE = "/v1/models/sampler/sample"


class OneToken:
    """Knows a single token, for a single model."""

    def caller(self, token: str) -> Caller | None:
        """Whose it is."""
        return Caller("ward-7", frozenset({"kinds"})) if token == "secret" else None


def one(request: Request) -> bytes:
    """As a classifier answers a call with one file."""
    packed = Request(request.model, "", {"data.0": request.inputs["data"]}, 1)
    content = json.loads(classified(packed))
    [item] = content.pop("items")
    return compact(content | item)


def answers(request: Request) -> bytes | Sequence[bytes]:
    """As each of the three models answers."""
    match request.model:
        case "hippocampus":
            return segmented(request)
        case "sampler":
            return drawn(request)
    return one(request) if "data" in request.inputs else classified(request)


def gateway(engine: FakeEngine | None = None, **guards: Any) -> Gateway:
    return fake_gateway(engine or FakeEngine(answers), *_MODELS, guards=Guards(**guards))


def app(to: Gateway, **limits: Any) -> FastAPI:
    application = FastAPI()
    application.include_router(rest.router(to, limits=RestLimits(**limits)))
    return application


def browse(
    application: FastAPI, visit: Callable[[httpx.AsyncClient], Coroutine[Any, Any, Any]]
) -> Any:
    """Let a client talk to the application."""

    async def run() -> Any:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await visit(client)

    return asyncio.run(run())


class Stage:
    """Stands for the gateway of the test that runs: building an application takes a second."""

    current: Gateway

    def __getattr__(self, name: str) -> Any:
        return getattr(self.current, name)


STAGE: Any = Stage()
APP = functools.cache(lambda: app(STAGE))


def ask(to: Gateway, method: str, path: str, **request: Any) -> httpx.Response:
    STAGE.current = to
    response: httpx.Response = browse(APP(), lambda client: client.request(method, path, **request))
    return response


def form(contents: Sequence[bytes], name: str = "image.png") -> list[tuple[str, Any]]:
    return [("files", (name, content)) for content in contents]


def code(response: httpx.Response) -> str:
    content = response.json()
    assert set(content) == {"error"}
    assert set(content["error"]) == {"code", "message"}
    return str(content["error"]["code"])


def test_one_file_is_classified() -> None:
    response = ask(gateway(), "POST", _CLASSIFY, content=b"bright", headers=_OCTETS)
    assert response.status_code == 200
    content = response.json()
    assert (content["status"], content["label"]) == ("ok", "bright")
    assert content["archive_digest"] == DIGEST


def test_a_file_that_cannot_be_read_is_an_error_of_the_request() -> None:
    response = ask(gateway(), "POST", _CLASSIFY, content=b"text", headers=_OCTETS)
    assert (response.status_code, code(response)) == (400, "INVALID_IMAGE")


def test_files_of_a_form_are_answered_in_order_and_a_broken_one_costs_no_other() -> None:
    response = ask(gateway(), "POST", _CLASSIFY, files=form([b"dark", b"broken", b"bright"]))
    content = response.json()
    assert response.status_code == 200
    assert [item["index"] for item in content["items"]] == [0, 1, 2]
    assert [item.get("label") for item in content["items"]] == ["dark", None, "bright"]
    assert content["items"][1]["error"]["code"] == "INVALID_IMAGE"
    assert (content["model"], content["archive_digest"]) == ("kinds", DIGEST)


def test_hundreds_of_files_travel_in_few_calls_of_the_engine() -> None:
    engine = FakeEngine(answers)
    response = ask(gateway(engine), "POST", _CLASSIFY, files=form([b"dark"] * 300))
    assert len(response.json()["items"]) == 300
    assert len(engine.requests) < 60


def test_a_line_per_file_comes_as_soon_as_it_is_known() -> None:
    headers = {"accept": "application/x-ndjson"}
    response = ask(gateway(), "POST", _CLASSIFY, files=form([b"dark"] * 40), headers=headers)
    assert response.headers["content-type"] == "application/x-ndjson"
    items = [json.loads(line) for line in response.text.splitlines()]
    assert sorted(item["index"] for item in items) == list(range(40))


def test_parameters_of_a_classifier_reach_it() -> None:
    engine = FakeEngine(answers)
    ask(gateway(engine), "POST", f"{_CLASSIFY}?top_k=2", content=b"dark", headers=_OCTETS)
    assert json.loads(engine.requests[0].inputs["params"]) == {"top_k": 2}


def test_a_mask_comes_as_json_with_its_measurements() -> None:
    response = ask(gateway(), "POST", f"{_SEGMENT}?output=json", content=b"volume", headers=_OCTETS)
    assert response.headers["content-type"] == "application/json"
    found = Segmentation.from_result(VolumeResult.from_json(response.json()))
    assert (found.mask == SEGMENTATION.mask).all()
    assert (found.geometry.affine == SEGMENTATION.geometry.affine).all()


@pytest.mark.parametrize(
    ("answer", "media_type", "name"),
    [
        (b"\x1f\x8b...", "application/gzip", "mask.nii.gz"),
        (b"\x89PNG...", "image/png", "mask.png"),
        (bytes(128) + b"DICM", "application/dicom", "mask.dcm"),
        (b"something", "application/octet-stream", None),
    ],
)
def test_a_mask_comes_as_the_file_that_it_is(
    answer: bytes, media_type: str, name: str | None
) -> None:
    engine = FakeEngine(lambda _: answer)
    response = ask(gateway(engine), "POST", _SEGMENT, files={"file": ("x.html", b"volume")})
    assert response.content == answer
    assert response.headers["content-type"] == media_type
    disposition = response.headers.get("content-disposition")
    assert disposition == (name and f'attachment; filename="{name}"')


def test_options_of_a_segmentation_reach_the_model() -> None:
    engine = FakeEngine(answers)
    query = "?format=dicom-seg&flips=false&spacing_mm=1,1,2.5&channel=0"
    ask(gateway(engine), "POST", _SEGMENT + query, content=b"volume", headers=_OCTETS)
    assert json.loads(engine.requests[0].inputs["params"]) == {
        "format": "dicom-seg", "flips": False, "spacing_mm": [1, 1, 2.5], "channel": 0,
    }  # fmt: skip


def test_images_are_drawn_from_a_json_order() -> None:
    engine = FakeEngine(answers)
    response = ask(gateway(engine), "POST", _SAMPLE, json={"n": 2, "class": "T1", "seed": 5})
    assert json.loads(engine.requests[0].inputs["params"]) == {"n": 2, "class": "T1", "seed": 5}
    assert [image["seed"] for image in response.json()["images"]] == [5, 6]
    assert not engine.requests[0].stream


@pytest.mark.parametrize(
    ("accept", "start"), [("application/x-ndjson", ""), ("text/event-stream", "data: ")]
)
def test_pictures_come_while_they_form(accept: str, start: str) -> None:
    response = ask(gateway(), "POST", _SAMPLE, json={}, headers={"accept": accept})
    lines = [line for line in response.text.splitlines() if line]
    assert all(line.startswith(start) for line in lines)
    parts = [json.loads(line.removeprefix(start)) for line in lines]
    assert [part.get("step") for part in parts] == [1, 2, None]
    assert len(parts[-1]["images"]) == 1


def test_an_error_in_a_stream_is_its_last_line() -> None:
    def busy(_: Request) -> bytes:
        raise ServerBusyError("full")

    response = ask(
        gateway(FakeEngine(busy)), "POST", _SAMPLE, headers={"accept": "application/x-ndjson"}
    )
    assert json.loads(response.text.splitlines()[-1])["error"]["code"] == "BUSY"


def test_models_are_listed_with_figures_health_and_cards() -> None:
    found = ask(gateway(), "GET", "/v1/models").json()["models"]
    assert [each["name"] for each in found] == ["kinds", "hippocampus", "sampler"]
    assert found[0]["task"] == "classification"
    assert (found[0]["ready"], found[0]["metrics"]) == (True, {"accuracy": 1})
    card = ask(gateway(), "GET", found[0]["card"])
    assert card.text.startswith("# kinds")
    assert card.headers["content-type"] == "text/markdown; charset=utf-8"
    assert ask(gateway(), "GET", "/v1/models/kinds").json() == found[0]


def test_health_needs_no_token_and_tells_no_names() -> None:
    guarded = gateway(tokens=OneToken())
    assert ask(guarded, "GET", "/healthz").status_code == 200
    ready = ask(guarded, "GET", "/readyz")
    assert (ready.status_code, ready.json()) == (200, {"ready": True})


def test_metadata_of_the_open_inference_protocol_has_sizes_as_numbers() -> None:
    server = ask(gateway(), "GET", "/v2").json()
    assert server["name"] == "medserve"
    found = ask(gateway(), "GET", "/v2/models/kinds/versions/1.0").json()
    assert found["inputs"] == [{"name": "data", "datatype": "BYTES", "shape": [-1]}]
    assert ask(gateway(), "GET", "/v2/models/kinds/ready").json() == {
        "name": "kinds", "ready": True,
    }  # fmt: skip
    assert ask(gateway(), "GET", "/v2/health/ready").json() == {"ready": True}


def test_every_error_has_its_status_and_its_code() -> None:
    for error in (*MedserveError.__subclasses__(), *_grandchildren()):

        def failing(_: Request, error: type[MedserveError] = error) -> bytes:
            raise error("expected, got, do")

        response = ask(
            gateway(FakeEngine(failing)), "POST", _SEGMENT, content=b"volume", headers=_OCTETS
        )
        assert (response.status_code, code(response)) == (error.http_status, error.code)
        assert ("retry-after" in response.headers) == issubclass(error, ServerBusyError)


def _grandchildren() -> list[type[MedserveError]]:
    return [each for kind in MedserveError.__subclasses__() for each in kind.__subclasses__()]


def test_a_bug_is_answered_with_a_reference_and_quotes_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(caller: Caller) -> Any:
        raise RuntimeError("Mr Smith")

    whole = gateway()
    monkeypatch.setattr(whole, "models", broken)
    response = ask(whole, "GET", "/v1/models")
    assert (response.status_code, code(response)) == (500, "INTERNAL")
    assert response.headers["x-request-id"] in response.text
    assert "Smith" not in response.text + caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models/nobody", 404),
        ("GET", "/v1/models/nobody/card", 404),
        ("POST", "/v1/models/nobody/classify", 404),
        ("POST", "/v1/models/%3Cscript%3E/classify", 404),
        ("POST", "/v1/models/hippocampus/classify", 400),
        ("GET", "/v1/models/kinds?version=9.9", 404),
        ("GET", "/v1/models/kinds?vesion=1.0", 400),
        ("POST", f"{_CLASSIFY}?topk=2", 400),
        ("POST", f"{_CLASSIFY}?top_k=many", 400),
        ("POST", f"{_SEGMENT}?format=exe", 400),
        ("POST", f"{_SEGMENT}?spacing_mm=1", 400),
    ],
)
def test_a_wrong_address_is_refused_in_the_words_of_the_api(
    method: str, path: str, status: int
) -> None:
    content = b"bright" if method == "POST" else None
    response = ask(gateway(), method, path, content=content, headers=_OCTETS)
    assert response.status_code == status
    assert code(response) in ("UNKNOWN_MODEL", "INVALID_REQUEST")
    assert "exe" not in response.text
    assert "script" not in response.text


@pytest.mark.parametrize(
    "token", [None, "Bearer wrong", "Basic secret", "Bearer ", "secret", "Bearer secret\x00"]
)
def test_a_bad_token_opens_nothing(token: str | None) -> None:
    headers = _OCTETS | ({"authorization": token} if token else {})
    response = ask(gateway(tokens=OneToken()), "POST", _CLASSIFY, content=b"dark", headers=headers)
    assert (response.status_code, code(response)) == (401, "UNAUTHENTICATED")
    assert response.headers["www-authenticate"] == "Bearer"


def test_a_token_opens_its_model_and_no_other() -> None:
    guarded = gateway(tokens=OneToken())
    headers = _OCTETS | {"authorization": "bearer secret"}
    own = ask(guarded, "POST", _CLASSIFY, content=b"dark", headers=headers)
    assert own.json()["label"] == "dark"
    other = ask(guarded, "POST", _SEGMENT, content=b"volume", headers=headers)
    assert (other.status_code, code(other)) == (403, "FORBIDDEN")
    listed = ask(guarded, "GET", "/v1/models", headers=headers).json()["models"]
    assert [each["name"] for each in listed] == ["kinds"]


@pytest.mark.parametrize(
    "kind",
    ["application/json", "application/x-www-form-urlencoded", "text/html", "multipart/mixed"],
)
def test_a_body_that_is_no_file_is_refused_before_it_is_read(kind: str) -> None:
    response = ask(gateway(), "POST", _CLASSIFY, content=b"{}", headers={"content-type": kind})
    assert (response.status_code, code(response)) == (400, "INVALID_REQUEST")
    assert "multipart/form-data" in response.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no form at all",
        b"--x\r\n\r\nno headers\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\nno file\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="else"; filename="a"\r\n\r\n.\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\ncut off',
        b"--x\r\n" + b"a: b\r\n" * 100_000,
        b"--x\r\n" + b"a" * 1_000_000,
    ],
    ids=["empty", "text", "bare", "field", "name", "cut", "many headers", "long header"],
)
def test_a_malformed_form_is_refused(body: bytes) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    response = ask(gateway(), "POST", _CLASSIFY, content=body, headers=headers)
    assert (response.status_code, code(response)) == (400, "INVALID_REQUEST")


_PIECES = st.lists(
    st.sampled_from(
        [
            b"--x", b"--x--", b"\r\n", b"\r\n\r\n", b"\r", b"-", b"dark", b"\0", b'filename="',
            b'Content-Disposition: form-data; name="files"; filename="a"',
        ]
    ),
    max_size=12,
)  # fmt: skip


@settings(deadline=None)  # machines differ
@given(_PIECES)
def test_a_form_of_any_kind_is_files_or_refused(pieces: list[bytes]) -> None:
    left = iter(pieces)

    async def receive() -> dict[str, Any]:
        piece = next(left, None)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    async def read() -> list[FormFile]:
        headers = [(b"content-type", b"multipart/form-data; boundary=x")]
        request = Received({"type": "http", "headers": headers}, receive)
        return [file async for file in files(request, 10_000, RestLimits())]

    with contextlib.suppress(InvalidRequestError):
        assert all(file.name == "a" for file in asyncio.run(read()))


def test_a_form_without_boundary_is_refused() -> None:
    headers = {"content-type": "multipart/form-data"}
    response = ask(gateway(), "POST", _CLASSIFY, content=b"--x", headers=headers)
    assert (response.status_code, code(response)) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\Smith\\hand.png", "hand.png"),
        ("<script>alert(1)<script>.png", "<script>alert(1)<script>.png"),
        ("a\u202egnp.exe", "agnp.exe"),
        ("n" * 1000, "n" * 255),
    ],
)
def test_a_name_is_text_to_show_and_never_a_path(name: str, shown: str) -> None:
    response = ask(gateway(), "POST", _CLASSIFY, files=form([b"dark"], name))
    [item] = response.json()["items"]
    assert item["name"] == shown
    # a browser that is sent here by a link must not find markup
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in response.headers["content-security-policy"]


def test_a_huge_body_is_refused_while_it_comes() -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 2**16
            yield bytes(2**16)

    small = gateway(limits=Limits(message_bytes=2**20))
    for path in (_CLASSIFY, _SEGMENT):
        taken = 0
        response = ask(small, "POST", path, content=endless(), headers=_OCTETS)
        assert (response.status_code, code(response)) == (413, "PAYLOAD_TOO_LARGE")
        assert taken < 2**20 + 2**18
    assert small.budget.reserved == 0


def test_a_body_that_announces_too_much_is_not_read_at_all() -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("a piece was read")
        yield b""

    headers = _OCTETS | {"content-length": str(2**21)}
    small = gateway(limits=Limits(message_bytes=2**20))
    response = ask(small, "POST", _SEGMENT, content=unread(), headers=headers)
    assert (response.status_code, code(response)) == (413, "PAYLOAD_TOO_LARGE")


def test_a_huge_file_in_a_form_and_too_many_files_are_refused() -> None:
    small = gateway(limits=Limits(message_bytes=2**10))
    response = ask(small, "POST", _CLASSIFY, files=form([bytes(2**11)]))
    assert (response.status_code, code(response)) == (413, "PAYLOAD_TOO_LARGE")
    response = ask(gateway(), "POST", _SEGMENT, files=form([b"volume"] * 2))
    assert (response.status_code, code(response)) == (413, "PAYLOAD_TOO_LARGE")
    crowded = app(gateway(), files=3)
    response = browse(crowded, lambda client: client.post(_CLASSIFY, files=form([b"dark"] * 4)))
    assert (response.status_code, code(response)) == (413, "PAYLOAD_TOO_LARGE")


@pytest.mark.parametrize("limits", [{"silence_s": 0.1}, {"upload_s": 0.1}])
def test_a_body_that_drips_is_cut_off(limits: dict[str, float]) -> None:
    async def dripping() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"."
            await asyncio.sleep(0.2)

    response = browse(
        app(gateway(), **limits),
        lambda client: client.post(_SEGMENT, content=dripping(), headers=_OCTETS),
    )
    assert (response.status_code, code(response)) == (504, "DEADLINE_EXCEEDED")


def test_the_time_that_a_caller_names_is_kept() -> None:
    slow = gateway(FakeEngine(answers, pause_s=2))
    headers = _OCTETS | {"x-deadline-ms": "100"}
    response = ask(slow, "POST", _SEGMENT, content=b"volume", headers=headers)
    assert (response.status_code, code(response)) == (504, "DEADLINE_EXCEEDED")


def test_an_order_that_is_no_order_is_refused_without_quoting_it() -> None:
    for body in (b"no json", b"[1]", b'{"n": 0}', b'{"Mr Smith": 1}', bytes(2**17)):
        response = ask(gateway(), "POST", _SAMPLE, content=body)
        assert response.status_code in (400, 413)
        assert "Smith" not in response.text


def test_the_request_id_goes_to_the_engine_and_back() -> None:
    engine = FakeEngine(answers)
    given = "01234567-89ab-cdef-0123-456789abcdef"
    headers = _OCTETS | {"x-request-id": given}
    response = ask(gateway(engine), "POST", _SEGMENT, content=b"volume", headers=headers)
    assert response.headers["x-request-id"] == given
    assert engine.requests[0].request_id == given


def test_openapi_describes_every_call_with_its_errors_and_examples() -> None:
    document = APP().openapi()
    assert "HTTPBearer" in document["components"]["securitySchemes"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], path
            assert operation["description"], path
            assert "422" not in operation["responses"], path
            if path.startswith("/v1"):
                assert "default" in operation["responses"], path
            if method == "post" and path not in ("/models", "/v1/models/{model}/rollback"):
                assert operation["requestBody"]["content"], path
    schemas = document["components"]["schemas"]
    for name in ("Error", "ClassifiedFiles"):
        assert schemas[name]["example"]


def test_answers_are_what_openapi_says() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema (the dev extra)")
    document = APP().openapi()

    def errors(path: str, method: str, response: httpx.Response) -> list[str]:
        responses = document["paths"][path][method]["responses"]
        described = responses.get(str(response.status_code), responses.get("default"))
        schema = described["content"]["application/json"]["schema"]
        whole = {**schema, "components": document["components"]}
        validator = jsonschema.validators.validator_for(whole)
        validator.check_schema(whole)
        return [error.message for error in validator(whole).iter_errors(response.json())]

    many = ask(gateway(), "POST", _CLASSIFY, files=form([b"dark", b"broken"]))
    assert errors("/v1/models/{model}/classify", "post", many) == []
    for path, asked in (
        ("/v1/models", "/v1/models"),
        ("/v1/models/{model}", "/v1/models/kinds"),
        ("/v1/models/{model}", "/v1/models/nobody"),
        ("/readyz", "/readyz"),
    ):
        assert errors(path, "get", ask(gateway(), "GET", asked)) == []


@pytest.mark.parametrize(
    ("query", "named"),
    [("view=axial", "view"), ("step_mm=5", "step_mm"), ("length_mm=40", "length_mm")],
)
def test_an_option_of_another_task_is_refused_by_name_before_the_file_is_read(
    query: str, named: str
) -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("a piece was read")
        yield b""

    engine = FakeEngine(answers)
    path = f"{_SEGMENT}?{query}"
    response = ask(gateway(engine), "POST", path, content=unread(), headers=_OCTETS)
    assert (response.status_code, code(response)) == (400, "INVALID_REQUEST")
    message = response.json()["error"]["message"]
    assert message.startswith(f"{named} is no option of hippocampus")
    assert "fill_holes" in message
    assert not engine.requests


def test_guidance_and_files_of_a_sampler_can_be_asked_for() -> None:
    engine = FakeEngine(answers)
    ask(gateway(engine), "POST", _SAMPLE, json={"guidance": 2.5, "format": "dicom"})
    assert json.loads(engine.requests[0].inputs["params"]) == {"guidance": 2.5, "format": "dicom"}


def test_openapi_shows_type_bounds_words_default_and_help_of_every_option() -> None:
    paths = APP().openapi()["paths"]
    sample = paths["/v1/models/{model}/sample"]["post"]["requestBody"]["content"]
    body = sample["application/json"]["schema"]["properties"]
    assert set(body) == {option.key for option in declared(GenerationOptions)}
    assert body["format"]["enum"] == ["png", "npz", "nifti", "dicom"]
    assert (body["format"]["default"], body["n"]["minimum"]) == ("png", 1)
    segment = paths["/v1/models/{model}/segment"]["post"]["parameters"]
    query = {each["name"]: each for each in segment if each["in"] == "query"}
    for option in (*declared(VolumeOptions), *declared(FrameOptions)):
        assert option.help in query[option.key]["description"]
        shown = query[option.key]["schema"]
        words: dict[str, Any] = next(
            (each for each in (shown, *shown.get("anyOf", ())) if "enum" in each), {}
        )
        assert set(option.choices) <= set(words.get("enum", ()))
    assert query["overlay"]["schema"]["default"] is False


def test_a_model_tells_its_options_with_its_own_bounds() -> None:
    options = ask(gateway(), "GET", "/v1/models/sampler").json()["options"]
    by_name = {each["name"]: each for each in options}
    assert by_name["class"]["choices"] == ["T1", "T2"]
    assert (by_name["guidance"]["least"], by_name["guidance"]["most"]) == (0, 8)
    assert by_name["format"]["default"] == "png"


@pytest.mark.parametrize(
    ("field", "content", "named"),
    [
        ("image", ("a.png", b"dark"), "'image'"),
        ("x" * 300, ("a.png", b"dark"), "'" + "x" * 40 + "'"),
        ("files", b"dark", "field files, got a text"),
    ],
)
def test_a_wrong_field_of_a_form_is_named(field: str, content: Any, named: str) -> None:
    sent = {"files": {field: content if isinstance(content, tuple) else (None, content)}}
    response = ask(gateway(), "POST", _CLASSIFY, **sent)
    assert (response.status_code, code(response)) == (400, "INVALID_REQUEST")
    assert named in response.json()["error"]["message"]
