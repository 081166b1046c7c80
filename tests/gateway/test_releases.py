"""Shares of callers, copies of calls, their comparison and the decision on it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from medserve.errors import ConfigError, ForbiddenError, InvalidRequestError, UnknownModelError
from medserve.gateway.core.audit import AuditLog
from medserve.gateway.core.calls import Caller, EngineCall
from medserve.gateway.core.comparison import Comparison, binomial_interval, mcnemar
from medserve.gateway.core.releases import evidence_for, promote, set_route
from medserve.gateway.core.routes import Canary, Route, RouteFile, Routes, Shadowing
from medserve.gateway.core.served_models import ServedModels
from medserve.gateway.core.shadow import Shadow, ShadowBudget
from medserve.gateway.core.versions import Addition, Changer
from medserve.imaging.geometry import Geometry
from medserve.results.segmentation import Segmentation
from medserve.spec import Task
from tests.gateway.fake_engine import Request, model
from tests.gateway.test_versions import OPERATOR, Bench
from tests.pages import blocks
from tests.plain_archive import write_archive
from tests.tiny_room import REPOSITORY

_LABELS = ("dark", "bright")


def served() -> ServedModels:
    from dataclasses import replace

    return ServedModels([model(), replace(model(version="2.0"), default=False)])


def routed(path: Path, **routes: Any) -> Routes:
    path.write_text(json.dumps({"models": routes, "key": "k"}), encoding="utf-8")
    return Routes(path, served())


def test_a_share_of_the_cases_gets_the_version_and_keeps_it(tmp_path: Path) -> None:
    cases = [Caller("ward-7", case=f"case-{number}") for number in range(4000)]
    chosen: list[set[str]] = []
    for share in (0.05, 0.25):
        routes = routed(tmp_path / "r.json", tiny={"canary": {"version": "2.0", "share": share}})
        chosen.append({c.case for c in cases if routes.version_for("tiny", c)})
        low, high = binomtest(len(chosen[-1]), len(cases)).proportion_ci(0.9999)
        assert low <= share <= high
    assert chosen[0] < chosen[1]


def test_without_a_case_the_caller_decides(tmp_path: Path) -> None:
    routes = routed(tmp_path / "r.json", tiny={"canary": {"version": "2.0", "share": 0.5}})
    for number in range(50):
        caller = Caller(f"ward-{number}")
        assert len({routes.version_for("tiny", caller) for _ in range(5)}) == 1


def test_named_callers_get_it_whatever_the_share(tmp_path: Path) -> None:
    canary = {"version": "2.0", "callers": ["ward-7"]}
    routes = routed(tmp_path / "r.json", tiny={"canary": canary})
    assert routes.version_for("tiny", Caller("ward-7")) == "2.0"
    assert routes.version_for("tiny", Caller("ward-8")) == ""


def test_a_route_to_a_version_that_does_not_serve_leads_to_the_default(tmp_path: Path) -> None:
    routes = routed(tmp_path / "r.json", tiny={"canary": {"version": "3.0", "share": 1}})
    assert routes.version_for("tiny", Caller("ward-7")) == ""


@pytest.mark.parametrize(
    "content",
    [
        "{", "[]", '{"models": {"tiny": {"canary": {"version": "2.0", "share": 2}}}}',
        '{"models": {"tiny": {"canary": {"share": 0.5}}}}', '{"modles": {}}',
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_leaves_the_routes_of_before(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "r.json"
    routes = routed(path, tiny={"canary": {"version": "2.0", "share": 1}})
    path.write_text(content, encoding="utf-8")
    routes.reread()
    routes.reread()
    assert routes.version_for("tiny", Caller("ward-7")) == "2.0"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    with pytest.raises(ConfigError):
        Routes(path, served())


@pytest.mark.parametrize("dated_s", [0.0, 4_102_444_800.0], ids=["1970", "2100"])
def test_routes_are_followed_whatever_the_date_of_their_file(
    tmp_path: Path, dated_s: float
) -> None:
    path = tmp_path / "r.json"
    routes = routed(path)
    routed(path, tiny={"canary": {"version": "2.0", "share": 1}})
    os.utime(path, (dated_s, dated_s))  # the clock was set
    routes.reread()
    assert routes.version_for("tiny", Caller("ward-7")) == "2.0"


def test_a_route_that_is_set_leaves_what_was_just_written_into_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    routes = routed(path)
    routed(path, other={"canary": {"version": "7.0", "share": 0.5}})
    routes.set("tiny", Route(canary=Canary(version="2.0", share=1)))
    assert set(RouteFile.read(path).models) == {"tiny", "other"}
    assert routes.version_for("tiny", Caller("ward-7")) == "2.0"


def test_a_file_in_toml_is_followed_and_never_written(tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    path.write_text("", encoding="utf-8")
    routes = Routes(path, served())
    path.write_text('[models.tiny.canary]\nversion = "2.0"\nshare = 1.0\n', encoding="utf-8")
    routes.reread()
    assert routes.version_for("tiny", Caller("ward-7")) == "2.0"
    with pytest.raises(InvalidRequestError, match="edit it there"):
        routes.set("tiny", Route())


def test_the_routes_that_the_documentation_shows_can_be_used(tmp_path: Path) -> None:
    [example] = blocks(REPOSITORY / "docs" / "run" / "releases.md", "toml")
    path = tmp_path / "routes.toml"
    path.write_text(example, encoding="utf-8")
    route = RouteFile.read(path).models["mednist"]
    assert route.canary == Canary(version="1.1", share=0.05, callers=("ward-7",))
    assert route.shadow == Shadowing(version="1.1", share=0.2)


def test_a_route_that_is_set_outlives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "routes.json"
    Routes(path, served()).set("tiny", Route(canary=Canary(version="2.0", share=1)))
    again = Routes(path, served())
    assert again.version_for("tiny", Caller("ward-7")) == "2.0"
    with pytest.raises(UnknownModelError):
        again.set("tiny", Route(shadow=Shadowing(version="9.9", share=1)))
    again.set("tiny", Route())
    assert RouteFile.read(path).models == {}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 400), st.integers(1, 400))
def test_intervals_are_those_of_clopper_and_pearson(count: int, total: int) -> None:
    count = min(count, total)
    expected = binomtest(count, total).proportion_ci(0.95, "exact")
    np.testing.assert_allclose(binomial_interval(count, total), expected, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_the_binomial_test(before: int, after: int) -> None:
    expected = binomtest(before, before + after).pvalue if before + after else 1.0
    np.testing.assert_allclose(mcnemar(before, after), expected, atol=1e-9)


def answer(label: str) -> bytes:
    return json.dumps({"status": "ok", "label": label}).encode()


def mask(shift: int) -> bytes:
    """A cube of 8 x 8 x 8 voxels, moved along one axis."""
    labels = np.zeros((24, 12, 12), dtype=np.uint8)
    labels[4 + shift : 12 + shift, 2:10, 2:10] = 1
    geometry = Geometry(labels.shape, np.diag([1.0, 1.0, 2.0, 1.0]))
    return Segmentation(labels, geometry, _LABELS).to_nifti()


@pytest.mark.parametrize(
    ("same", "other", "excluded"),
    [(100, 0, False), (200, 0, True), (400, 8, False), (1000, 8, True)],
)
def test_few_pairs_or_many_differences_exclude_nothing(
    same: int, other: int, excluded: bool
) -> None:
    comparison = Comparison(Task.CLASSIFICATION, "1.0", "2.0")
    for _ in range(same):
        comparison.add(answer("dark"), answer("dark"))
    for _ in range(other):
        comparison.add(answer("dark"), answer("bright"))
    found = comparison.evidence(0.02)
    assert (found["pairs"], found["excluded"]) == (same + other, excluded)
    dark = next(row for row in found["classes"] if row["label"] == "dark")
    assert (dark["both"], dark["only_before"], dark["only_after"]) == (same, other, 0)


def test_answers_of_many_images_are_compared_one_by_one() -> None:
    comparison = Comparison(Task.CLASSIFICATION, "1.0", "2.0")
    refused = {"status": "error", "error": {"code": "INVALID_IMAGE", "message": "no"}}
    bright, dark = ({"status": "ok", "label": each} for each in ("bright", "dark"))
    first, second = [bright, dark, refused, dark], [bright, bright, dark, refused]
    comparison.add(*(json.dumps({"items": each}).encode() for each in (first, second)))
    assert comparison.labels == {("bright", "bright"): 1, ("dark", "bright"): 1}
    assert comparison.failed == 1
    comparison.add(answer("dark"), b"no answer")
    assert comparison.failed == 2


def test_dice_and_volumes_of_masks_are_those_of_the_cubes() -> None:
    comparison = Comparison(Task.VOLUMES, "1.0", "2.0")
    for _ in range(30):
        comparison.add(mask(0), mask(2))
    found = comparison.evidence(0.02)
    assert found["dice"]["mean"] == pytest.approx(0.75)  # 6 of 8 planes are in both
    assert found["volumes"]["1"]["mean"] == 0.0
    assert not found["excluded"]
    assert comparison.evidence(0.26)["excluded"]


def test_few_masks_exclude_nothing_and_a_failure_counts_as_none_found() -> None:
    comparison = Comparison(Task.VOLUMES, "1.0", "2.0")
    for _ in range(29):
        comparison.add(mask(0), mask(0))
    assert not comparison.evidence(0.02)["excluded"]
    comparison.add(mask(0), mask(0))
    assert comparison.evidence(0.02)["excluded"]
    comparison.failed += 3
    assert not comparison.evidence(0.02)["excluded"]
    comparison.add(b"DICM", mask(0))
    assert comparison.skipped == 1


def test_a_comparison_keeps_so_many_figures_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medserve.gateway.core.comparison._MOST_PAIRS", 2)
    comparison = Comparison(Task.VOLUMES, "1.0", "2.0")
    for _ in range(3):
        comparison.add(mask(0), mask(2))
    assert comparison.pairs == comparison.evidence(0.02)["pairs"] == 2


class Routed(Bench):
    """The same with routes, and 2.0 loaded; versions answer the classes in `says`."""

    def __init__(self, folder: Path, audit: AuditLog | None = None) -> None:
        super().__init__(folder, audit)
        write_archive(folder, "tiny", "2.0")
        self.says = {"1.0": "dark", "2.0": "dark"}
        routes = Routes(folder / "routes.json", self.served)
        self.gateway.routes = routes
        self.shadow = Shadow(self.gateway, self.engine, routes, self.served, seed=0)
        self.gateway.shadow = self.shadow
        self.versions.in_routes = routes.lead_to

    def _answer(self, request: Request) -> bytes:
        content = json.loads(super()._answer(request))
        return json.dumps(content | {"label": self.says[request.version]}).encode()

    async def begin(self, **route: Any) -> None:
        """Load 2.0 and set the route."""
        await self.versions.add(OPERATOR, Addition("tiny-2.0.mar"))
        await set_route(self.gateway, OPERATOR, "tiny", Route.model_validate(route))

    async def ask_for(self, caller: Caller) -> str:
        """Return the version that answers a caller."""
        call = EngineCall("tiny", "", {"data": b"x"}, "0" * 8, caller=caller)
        return str(json.loads(await self.gateway.predict(call))["version"])


@pytest.fixture
def bench(tmp_path: Path) -> Routed:
    return Routed(tmp_path / "store")


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario()

    asyncio.run(main())


async def copied(bench: Routed, calls: int) -> None:
    """Make calls, and wait until their copies are compared."""
    working = asyncio.create_task(bench.shadow.run())
    for _ in range(calls):
        assert await bench.ask() == "1.0"
        while bench.shadow._waiting:
            await asyncio.sleep(0)
    working.cancel()


def test_callers_of_a_share_get_the_version_of_the_route(bench: Routed) -> None:
    async def scenario() -> None:
        await bench.begin(canary={"version": "2.0", "callers": ["ward-7"]})
        assert await bench.ask_for(Caller("ward-7")) == "2.0"
        assert await bench.ask_for(Caller("ward-8")) == "1.0"
        with pytest.raises(InvalidRequestError, match="a route leads to tiny 2"):
            await bench.versions.remove(OPERATOR, "tiny", "2.0")
        await set_route(bench.gateway, OPERATOR, "tiny", Route())
        assert await bench.ask_for(Caller("ward-7")) == "1.0"
        await bench.versions.remove(OPERATOR, "tiny", "2.0")

    run(scenario)


@pytest.mark.cpu
def test_a_version_that_agrees_is_promoted_and_the_route_ends(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    audit = AuditLog(log)
    bench = Routed(tmp_path / "store", audit)

    async def scenario() -> None:
        await bench.begin(shadow={"version": "2.0", "share": 1.0})
        with pytest.raises(InvalidRequestError, match="no call to tiny has been copied"):
            await promote(bench.gateway, OPERATOR, "tiny", "2.0")
        await copied(bench, 50)
        with pytest.raises(InvalidRequestError, match=r"after 50 compared answers 2\.0 may"):
            await promote(bench.gateway, OPERATOR, "tiny", "2.0")
        assert bench.default == "1.0"
        await copied(bench, 150)
        found = await promote(bench.gateway, OPERATOR, "tiny", "2.0")
        assert (found["pairs"], found["excluded"], bench.default) == (200, True, "2.0")
        await bench.versions.remove(OPERATOR, "tiny", "1.0")  # no route is left

    run(scenario)
    audit.close()
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    changes = [(each["change"], each["status"], each["evidence"]) for each in lines]
    assert [each[:2] for each in changes] == [
        ("add", "OK"), ("route", "OK"), ("promote", "INVALID_REQUEST"), ("promote", "OK"),
        ("remove", "OK"),
    ]  # fmt: skip
    assert [each[2]["pairs"] for each in changes[2:4]] == [50, 200]


def test_a_version_that_differs_or_fails_is_not_promoted(bench: Routed) -> None:
    bench.says["2.0"] = "bright"

    async def scenario() -> None:
        await bench.begin(shadow={"version": "2.0", "share": 1.0})
        await copied(bench, 20)
        found = evidence_for(bench.gateway, OPERATOR, "tiny")
        assert found["different"]["share"] == 1.0
        del bench.says["2.0"]  # its worker answers with an exception
        await copied(bench, 5)
        assert evidence_for(bench.gateway, OPERATOR, "tiny")["failed"] == 5
        with pytest.raises(InvalidRequestError, match="may be worse"):
            await promote(bench.gateway, OPERATOR, "tiny", "2.0", 0.5)
        with pytest.raises(InvalidRequestError, match="was compared with"):
            await promote(bench.gateway, OPERATOR, "tiny", "1.0")
        with pytest.raises(ForbiddenError):
            evidence_for(bench.gateway, Changer(Caller("ward-7")), "tiny")

    run(scenario)


def test_copies_wait_for_idle_models_and_are_dropped_beyond_their_budget(bench: Routed) -> None:
    bench.shadow._budget = ShadowBudget(calls=3, held_bytes=2**20, wait_s=0.05)

    async def scenario() -> None:
        await bench.begin(shadow={"version": "2.0", "share": 1.0})
        working = asyncio.create_task(bench.shadow.run())
        await copied(bench, 1)
        bench.engine.hold = asyncio.Event()
        made = len(bench.engine.requests)
        busy = asyncio.create_task(bench.ask())  # a call is at work all the time
        while len(bench.engine.requests) == made:
            await asyncio.sleep(0.001)
        for _ in range(5):
            call = EngineCall("tiny", "", {"data": b"x"}, "0" * 8, caller=Caller())
            bench.shadow.offer(call, bench.served.find("tiny"), answer("dark"))
        asked = len(bench.engine.requests)
        while bench.shadow._waiting:
            await asyncio.sleep(0.01)
        assert len(bench.engine.requests) == asked
        assert bench.shadow._held == 0
        assert evidence_for(bench.gateway, OPERATOR, "tiny")["dropped"] >= 5
        bench.engine.hold.set()
        await busy
        working.cancel()

    run(scenario)
