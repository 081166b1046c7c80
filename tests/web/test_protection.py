"""What every answer carries, and which requests get none."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from medserve.gateway.faces.page import exports
from medserve.gateway.settings import GatewaySettings
from tests.web.visiting import Visitor, begin, gateway, send, visit, visiting

WEB = Path(exports.__file__).parent
PAGES = ("/", "/classify", "/segment", "/generate", "/models", "/models/kinds", "/login")


@visit()
async def test_every_page_forbids_what_a_page_does_not_need(client: Visitor) -> None:
    for path in (*PAGES, "/nowhere", "/health/models", "/openapi.json", "/v1/models"):
        headers = (await client.get(path, headers={"accept": "text/html"})).headers
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert "unsafe" not in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"


@visit()
async def test_scripts_and_styles_may_be_kept_for_their_address_changes_with_them(
    client: Visitor,
) -> None:
    html = (await client.get("/classify")).text
    [address] = {
        line.split('"')[1]
        for line in html.splitlines()
        if "frame.css" in line
        for line in [line[line.index("href") :]]
    }
    answer = await client.get(address)
    assert answer.status_code == 200
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    for path in ("/../app.py", "/%2e%2e/app.py", "/../../../../../etc/passwd"):
        assert (await client.get(address.rpartition("/css")[0] + path)).status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:8000"},
    ],
    ids=str,
)
def test_a_request_from_another_site_changes_nothing(headers: dict[str, str]) -> None:
    async def run() -> None:
        async with visiting(gateway()) as (site, [client]):
            job = await begin(client)
            tries = [
                await client.post(
                    "/jobs", json={"kind": "classify", "model": "kinds"}, headers=headers
                ),
                await client.delete(job, headers=headers),
                await client.post("/logout", headers=headers),
                await client.post("/samples", json={"model": "sampler"}, headers=headers),
                await client.post("/v1/models/kinds/classify", content=b"ok", headers=headers),
            ]
            assert [each.status_code for each in tries] == [403] * len(tries)
            assert len(site.jobs._jobs) == 1

    asyncio.run(run())


@visit()
async def test_our_own_pages_and_programs_are_no_other_site(client: Visitor) -> None:
    for headers in (
        {},
        {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"},
        {"origin": "http://127.0.0.1:8000"},
    ):
        body = {"kind": "classify", "model": "kinds"}
        assert (await client.post("/jobs", json=body, headers=headers)).status_code == 201


@pytest.mark.parametrize(
    ("settings", "host", "status"),
    [
        (GatewaySettings(), "127.0.0.1:8000", 200),
        (GatewaySettings(), "localhost:8000", 200),
        (GatewaySettings(), "[::1]:8000", 200),
        (GatewaySettings(), "evil.example:8000", 403),  # a name that was made to lead here
        (GatewaySettings(), "127.0.0.1.evil.example", 403),
        *(
            (GatewaySettings(), host, 403)
            for host in ("evil.example@127.0.0.1:8000", "127.0.0.1:8000@evil.example", "127.0.0.1/")
        ),
        *((GatewaySettings(), host, 403) for host in ("[127.0.0.1", "127.0.0.1:80:80", "")),
        (GatewaySettings(host="0.0.0.0", hosts="page.lab"), "page.lab", 200),
        (GatewaySettings(host="0.0.0.0", hosts="page.lab"), "evil.example", 403),
        (GatewaySettings(host="0.0.0.0"), "any.name", 200),
    ],
    ids=str,
)
def test_the_page_answers_to_its_own_names(
    settings: GatewaySettings, host: str, status: int
) -> None:
    async def run() -> None:
        async with visiting(gateway(), settings) as (_, [client]):
            assert (await client.get("/", headers={"host": host})).status_code == status

    asyncio.run(run())


def test_a_bug_tells_a_visitor_a_reference_and_the_log_no_names(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(job: object) -> bytes:
        raise RuntimeError("cannot write Smith_John_1970.png")

    monkeypatch.setattr(exports, "to_csv", broken)

    async def run() -> None:
        async with visiting(gateway()) as (_, [client]):
            job = await begin(client)
            await send(client, job, {"Smith_John_1970.png": b"ok dark", "x": b"broken"})
            response = await client.get(f"{job}/results.csv")
            assert response.status_code == 500
            assert "Smith" not in response.text
            assert "reference" in response.json()["error"]["message"]
            assert response.headers["x-content-type-options"] == "nosniff"

    with caplog.at_level(logging.DEBUG):
        asyncio.run(run())
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "asyncio"))]
    assert any("RuntimeError" in record.getMessage() for record in ours)
    assert not any("Smith" in record.getMessage() for record in ours)


@pytest.mark.parametrize("path", sorted(WEB.glob("templates/*.html")), ids=lambda path: path.name)
def test_no_template_needs_what_the_policy_forbids(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for forbidden in (
        " style=",
        " onclick=",
        "javascript:",
        "<style",
        "http://",
        "https://",
        "|safe",
    ):
        assert forbidden not in text
    for script in text.split("<script")[1:]:
        assert "src=" in script.partition(">")[0] or 'type="application/json"' in script


@pytest.mark.parametrize("path", sorted(WEB.glob("static/js/*.js")), ids=lambda path: path.name)
def test_no_script_makes_markup_of_text_or_asks_another_site(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for forbidden in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "http",
    ):
        assert forbidden not in text.replace("httpx", "")


@pytest.mark.parametrize("settings", [GatewaySettings(), GatewaySettings(host="0.0.0.0")], ids=str)
@pytest.mark.parametrize("name", ["host", "origin"])
def test_a_header_that_is_no_address_is_refused_and_nowhere_quoted(
    settings: GatewaySettings, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with visiting(gateway(), settings) as (_, [client]):
            body = {"kind": "classify", "model": "kinds"}
            headers = {name: "http://[PATIENT-DOE^JANE]", "origin": "http://[PATIENT-DOE^JANE]"}
            answer = await client.post("/jobs", json=body, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "FOREIGN_SITE")
            assert answer.headers["x-content-type-options"] == "nosniff"

    with caplog.at_level(logging.DEBUG):
        asyncio.run(run())
    assert "DOE" not in caplog.text
