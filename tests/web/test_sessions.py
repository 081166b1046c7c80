"""Logging in where the gateway asks for tokens."""

from __future__ import annotations

import asyncio

import pytest

from medserve.gateway.core.gateway import Caller, Gateway
from medserve.gateway.faces.page import pages, sessions
from tests.web.visiting import Visitor, begin, gateway, send, visit, visiting


class Tokens:
    """Two people: one for every model, one for a single one. `taken` are no longer good."""

    def __init__(self) -> None:
        self.taken: set[str] = set()

    def caller(self, token: str) -> Caller | None:
        """Whose it is."""
        known = {"all-models": Caller("lab"), "one": Caller("ward", frozenset({"organs"}))}
        return None if token in self.taken else known.get(token)


def closed() -> Gateway:
    return gateway(tokens=Tokens())


@pytest.fixture(autouse=True)
def _quick_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_REFUSAL_S", 0.0)


async def log_in(client: Visitor, token: str = "all-models", target: str = "/classify") -> None:
    response = await client.post("/login", data={"token": token, "next": target})
    assert (response.status_code, response.headers["location"]) == (303, target)


@visit(closed)
async def test_without_a_token_a_visitor_is_sent_to_the_login_and_back(client: Visitor) -> None:
    response = await client.get("/models/kinds")
    assert response.status_code == 303
    assert response.headers["location"] == "/login?next=/models/kinds"
    assert 'value="/models/kinds"' in (await client.get(response.headers["location"])).text
    await log_in(client, target="/models/kinds")
    assert (await client.get("/models/kinds")).status_code == 200


@visit(closed)
async def test_without_a_token_no_call_is_answered(client: Visitor) -> None:
    for answer in (
        await client.post("/jobs", json={"kind": "classify", "model": "kinds"}),
        await client.post("/samples", json={"model": "sampler"}),
        await client.get("/health/models"),
        await client.get("/jobs/x"),
        await client.get("/v1/models"),
    ):
        assert answer.status_code == 401


@visit(closed)
async def test_a_wrong_token_is_refused_and_never_shown_again(client: Visitor) -> None:
    response = await client.post("/login", data={"token": "guess-123", "next": "/"})
    assert response.status_code == 401
    assert "guess-123" not in response.text
    assert "set-cookie" not in response.headers
    assert 'role="alert"' in response.text


@visit(closed)
async def test_the_cookie_is_out_of_reach_for_scripts_and_other_sites(client: Visitor) -> None:
    response = await client.post("/login", data={"token": "all-models"})
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "all-models" not in cookie.partition(";")[0].partition("=")[2]


@visit(closed)
async def test_a_token_for_one_model_opens_no_other(client: Visitor) -> None:
    await log_in(client, "one")
    assert "kinds" not in (await client.get("/models")).text
    assert (await client.get("/models/kinds")).status_code == 404
    response = await client.post("/jobs", json={"kind": "classify", "model": "kinds"})
    assert response.status_code == 404


def test_a_token_that_is_taken_back_ends_the_visit() -> None:
    tokens = Tokens()

    async def run() -> None:
        async with visiting(gateway(tokens=tokens)) as (_, [client]):
            await log_in(client)
            assert (await client.get("/health/models")).status_code == 200
            tokens.taken.add("all-models")
            assert (await client.get("/health/models")).status_code == 401

    asyncio.run(run())


def test_logging_out_deletes_what_was_sent() -> None:
    async def run() -> None:
        async with visiting(gateway(tokens=Tokens())) as (site, [client]):
            await log_in(client)
            await send(client, await begin(client), {"a.png": b"ok dark"})
            assert (await client.post("/logout")).status_code == 303
            assert not site.jobs._jobs
            assert (await client.get("/classify")).status_code == 303

    asyncio.run(run())


@pytest.mark.parametrize(
    "target",
    ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)", "/a\r\nb"],
)
def test_the_login_leads_nowhere_else(target: str) -> None:
    async def run() -> None:
        async with visiting(gateway(tokens=Tokens())) as (_, [client]):
            response = await client.post("/login", data={"token": "all-models", "next": target})
            assert response.headers["location"] == "/"

    asyncio.run(run())


@visit(closed)
async def test_a_large_login_is_not_read(client: Visitor) -> None:
    assert (await client.post("/login", data={"token": "x" * 20_000})).status_code == 413
    many = {f"field {n}": "x" for n in range(20)}
    assert (await client.post("/login", data=many)).status_code == 400


@pytest.mark.parametrize("secret", ["", "x", "x" * 5000, "\u0430" * 43, "a b" * 14 + "a"])
def test_a_made_up_session_owns_nothing(secret: str) -> None:
    async def run() -> None:
        async with visiting(gateway(), visitors=2) as (site, [owner, forger]):
            job = await begin(owner)
            header = f"medserve_session={secret}".encode()
            response = await forger.get(job, headers={b"cookie": header})
            assert response.status_code == 404
            assert len(site.jobs._jobs) == 1

    asyncio.run(run())


def test_a_secret_that_was_never_issued_is_no_session() -> None:
    async def run() -> None:
        async with visiting(gateway()) as (site, [client]):
            planted = "a" * 43
            client.cookies.set("medserve_session", planted)
            job = await begin(client)
            assert len(site.jobs._jobs) == 1
            thief = Visitor(transport=client._transport, base_url=client.base_url)
            thief.cookies.set("medserve_session", planted)
            assert (await thief.get(job)).status_code == 404

    asyncio.run(run())


def test_one_holder_of_a_token_ends_only_sessions_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "_MOST_EACH", 3)

    async def run() -> None:
        async with visiting(closed(), visitors=2) as (_, [lab, ward]):
            await log_in(ward, "one")
            for _ in range(10):
                lab.cookies.clear()
                await log_in(lab)
            assert (await ward.get("/models/organs")).status_code == 200
            assert (await lab.get("/models/kinds")).status_code == 200

    asyncio.run(run())


def test_a_session_ends_after_a_working_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_LIFE_S", 0.0)

    async def run() -> None:
        async with visiting(closed()) as (_, [client]):
            await log_in(client)
            assert (await client.get("/models/kinds")).status_code == 303

    asyncio.run(run())
